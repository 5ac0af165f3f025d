"""Forward passes: windows regrouped into batches of one size and sent through the backbone.

Features that are not finite: found, put into words, and laid to the image or to the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.compute.devices import resolve_device
from pipeline.compute.memory import compute_halving
from pipeline.errors import RunError, WeightsError
from stages.extract.settings import HANDCRAFTED, ExtractSettings
from stages.extract.weights import find_weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from stages.extract.backbones import Backbone

_TOGETHER = 2


def load_backbone(settings: ExtractSettings, digest: str) -> Backbone:
    """Build the backbone of a run, or give the one that this process built for it last."""
    assert settings.size is not None
    return _build(
        settings.backbone,
        settings.weights,
        digest,
        settings.size,
        settings.device,
        settings.precision,
    )


@lru_cache(maxsize=1)
def _build(
    name: str, given: Path | None, digest: str, size: int, device: str, precision: str
) -> Backbone:
    from stages.extract.backbones import build_backbone

    weights = None
    if name != HANDCRAFTED:
        weights = find_weights(name, given, report=lambda _: None)
        if weights.digest != digest:
            raise RunError(
                f"the weights at {weights.path} are not those that extract was planned with; "
                "run `primaps-pipe extract` again."
            )
    return build_backbone(
        name, weights, size=size, device=resolve_device(device), precision=precision
    )


def gather_batches(
    frames: Iterator[tuple[np.ndarray, np.ndarray]], batch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Regroup windows into batches of one size."""
    rows: list[int] = []
    pixels: list[np.ndarray] = []
    for numbers, stack in frames:
        rows.extend(int(number) for number in numbers)
        pixels.extend(stack)
        while len(rows) >= batch:
            yield np.array(rows[:batch]), np.stack(pixels[:batch])
            del rows[:batch], pixels[:batch]
    if rows:
        yield np.array(rows), np.stack(pixels)


def extract_views(backbone: Backbone, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Extract the features of some windows and of their mirror images."""
    clean, mirror = _apply(
        (backbone, lambda images: backbone(images.flip(-1))), pixels, backbone.device
    )
    return clean, mirror


def extract_clean(backbone: Backbone, pixels: np.ndarray) -> np.ndarray:
    """Extract the features of some windows alone: float16 [window, row, column, channel]."""
    (clean,) = _apply((backbone,), pixels, backbone.device)
    return clean


def extract_attention(backbone: Backbone, pixels: np.ndarray) -> np.ndarray:
    """Extract the last block's attention of every position to its neighbourhood."""
    (attention,) = _apply((backbone.attend,), pixels, backbone.device)
    return attention


def _apply(
    functions: Sequence[Callable[[Tensor], Tensor]], pixels: np.ndarray, device: torch.device
) -> list[np.ndarray]:
    """Apply functions to images [window, rgb, y, x] in 0..1; give the results in float16."""
    import torch

    # A processor gains nothing from more windows at a time, and what it computes in between is then
    # small enough to stay in the cache and to be allocated again and again. The number does not
    # follow the threads: another one may round differently.
    together = len(pixels) if device.type != "cpu" else _TOGETHER

    def compute(part: Tensor) -> list[np.ndarray]:
        images = part.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
        return [function(images).to(torch.float16).cpu().numpy() for function in functions]

    grids = compute_halving(
        compute, torch.from_numpy(pixels), together, what="windows of the backbone", device=device
    )
    return [np.concatenate(grid) for grid in zip(*grids, strict=True)]


_SHOWN = 3
_REMEDY = "try --precision float32, or other weights with --weights"


def find_faulty(blocks: Mapping[str, NDArray[np.float16]]) -> NDArray[np.int64]:
    """Find the windows of which any value of any array is not finite."""
    faulty = np.zeros(len(next(iter(blocks.values()))), np.bool_)
    for block in blocks.values():
        # one pass tells the usual case, in which no window is looked at by itself
        if not np.isfinite(block).all():
            faulty |= ~np.isfinite(block).reshape(len(block), -1).all(axis=1)
    return np.flatnonzero(faulty)


def describe_faults(blocks: Mapping[str, NDArray[np.float16]], places: Sequence[int]) -> str:
    """Say what is not finite in the windows of one image."""
    for name, block in blocks.items():
        values = block[list(places)]
        kinds = {"NaN": np.isnan(values), "infinity": np.isinf(values)}
        counts = {kind: int(found.any(axis=-1).sum()) for kind, found in kinds.items()}
        if any(counts.values()):
            where = "" if name == "clean" else f" of {name}"
            found = " and ".join(f"{kind} in {count}" for kind, count in counts.items() if count)
            return f"{found} of {values[..., 0].size} positions{where}"
    raise ValueError("none of these windows has a value that is not finite")


def check_finite(
    blocks: Mapping[str, NDArray[np.float16]], images: Sequence[str], stage: str
) -> None:
    """Refuse features that are not finite, where their images cannot be rejected any more."""
    faulty = find_faulty(blocks)
    if not len(faulty):
        return
    paths = list(dict.fromkeys(images[place] for place in faulty))
    first = [int(place) for place in faulty if images[place] == paths[0]]
    shown = ", ".join(paths[:_SHOWN]) + (", ..." if len(paths) > _SHOWN else "")
    raise RunError(
        f"{stage}: the features of {len(paths)} images are not finite in float16 ({shown}; "
        f"{describe_faults(blocks, first)} of the first): take these images out of the folder and "
        f"run `primaps-pipe extract` again, or {_REMEDY}."
    )


def check_backbone(backbone: Backbone, size: int) -> None:
    """Refuse a backbone that gives nothing finite for a plain picture, whatever the images are."""
    ramp = np.linspace(64, 192, size).astype(np.uint8)
    picture = np.broadcast_to(ramp[None, None, :, None], (1, size, size, 3))
    features = {"clean": extract_clean(backbone, np.ascontiguousarray(picture))}
    if len(find_faulty(features)):
        raise WeightsError(
            f"the weights of {backbone.name} are damaged, or overflow in {backbone.precision}: "
            f"even a plain grey picture has features that are not finite "
            f"({describe_faults(features, [0])}); {_REMEDY}."
        )
