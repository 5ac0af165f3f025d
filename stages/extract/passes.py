"""Forward passes: windows regrouped into batches of one size and sent through the backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.devices import resolve_device
from pipeline.errors import RunError
from pipeline.memory import compute_halving
from stages.extract.settings import HANDCRAFTED, ExtractSettings
from stages.extract.weights import find_weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from stages.extract.backbones import Backbone

_TOGETHER = 2


def load_backbone(settings: ExtractSettings, digest: str) -> Backbone:
    """Build the backbone of a run, or give the one that this process built for it last.

    Parameters
    ----------
    settings
        Resolved.
    digest
        sha256 of the weights that the run was planned with; empty for ``handcrafted``.

    Raises
    ------
    RunError
        The weights are others by now.
    """
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
    """Regroup windows into batches of one size.

    Parameters
    ----------
    frames
        Row numbers [window] and pixels [window, y, x, rgb] of one image after the other.
    batch
        Windows per batch.

    Yields
    ------
    rows, pixels
        The same windows in the same order, ``batch`` at a time; the last may be fewer.
    """
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
    """Extract the features of some windows and of their mirror images.

    Parameters
    ----------
    backbone
        The frozen backbone.
    pixels
        uint8 [window, y, x, rgb].

    Returns
    -------
    clean, mirror : numpy.ndarray
        float16 [window, row, column, channel]; the columns of ``mirror`` are mirrored.
    """
    clean, mirror = _apply(
        (backbone, lambda images: backbone(images.flip(-1))), pixels, backbone.device
    )
    return clean, mirror


def extract_clean(backbone: Backbone, pixels: np.ndarray) -> np.ndarray:
    """Extract the features of some windows alone: float16 [window, row, column, channel]."""
    (clean,) = _apply((backbone,), pixels, backbone.device)
    return clean


def extract_attention(backbone: Backbone, pixels: np.ndarray) -> np.ndarray:
    """Extract the last block's attention of every position to its neighbourhood.

    Parameters
    ----------
    backbone
        The frozen backbone.
    pixels
        uint8 [window, y, x, rgb].

    Returns
    -------
    numpy.ndarray
        float16 [window, row, column, neighbour], as ``Backbone.attend`` gives it.
    """
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
