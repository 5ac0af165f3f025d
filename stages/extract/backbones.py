"""Backbones: what turns windows of an image into a grid of features, and windows sent through one.

Windows are regrouped into batches of one size. Features that are not finite are found, put into
words, and laid to the image or to the weights. The arrays of ``features.zarr`` are laid out here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compute.devices import resolve_device
from pipeline.compute.memory import compute_halving
from pipeline.errors import RunError, UsageError, WeightsError
from pipeline.registry import Registry
from pipeline.storage.arrays import ArraySpec
from stages.extract.settings import ExtractSettings
from stages.extract.weights import Report, WeightsFile

COMMON_SIZE = 320
_TOGETHER = 2
Floats = tuple[float, float, float]


class Backbone(ABC):
    """A frozen network, or any other function, from windows of an image to a grid of features.

    Subclass it to bring one of another kind, and name the class in the entry points of its package,
    in the group ``primaps_pipe.backbones``: the entry's name is then one for ``--backbone``. An
    instance is made from that name alone and knows its patch and channels; :meth:`load` makes it
    ready to compute.

    Parameters
    ----------
    name
        As the user gave it.

    Attributes
    ----------
    patch : int
        Pixels per side of a feature's cell.
    channels : int
        Channels of a feature.
    mean, std : three floats
        Normalisation of red, green and blue, on values in 0..1; none where a class does not say.
    takes_weights : bool
        Whether it needs a file of weights, of which :meth:`find_weights` says where it lies.
    takes_bfloat16 : bool
        Whether its matrices may be multiplied in bfloat16; otherwise all is float32.
    version : int
        To be raised when the same images and weights give other features: cached ones are stale.
    device : torch.device
        Where it computes; set before :meth:`load`.
    precision : str
        ``float32`` or ``bfloat16``; set before :meth:`load`.
    """

    takes_weights: ClassVar[bool] = False
    takes_bfloat16: ClassVar[bool] = False
    version: ClassVar[int] = 1

    name: str
    patch: int
    channels: int
    mean: Floats = (0.0, 0.0, 0.0)
    std: Floats = (1.0, 1.0, 1.0)
    device: torch.device = torch.device("cpu")
    precision: str = "float32"

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def compute_features(self, images: Tensor) -> Tensor:
        """Compute the features of a batch of windows.

        Parameters
        ----------
        images : float32 tensor [window, rgb, y, x]
            Normalised, on the backbone's device; y and x are multiples of the patch.

        Returns
        -------
        float tensor [window, row, column, channel]
            With y / patch rows and x / patch columns; a window's features depend on it alone.
        """

    def compute_attention(self, images: Tensor) -> Tensor:
        """Compute the last block's attention of every position to the 3 x 3 positions around it.

        Parameters
        ----------
        images : float32 tensor [window, rgb, y, x]
            As for the features.

        Returns
        -------
        float tensor [window, row, column, neighbour]
            Probabilities, averaged over the heads; nine neighbours row by row, the position itself
            the fifth, 0 outside the grid.

        Raises
        ------
        UsageError
            There is none, as where a class does not say how to compute it.
        """
        raise no_attention(self.name)

    def check_attention(self) -> None:
        """Refuse, before there are weights, a backbone that cannot compute attention.

        Raises
        ------
        UsageError
            It cannot, as where a class does not say that it can.
        """
        raise no_attention(self.name)

    def find_weights(self, given: Path | None, report: Report) -> WeightsFile | None:
        """Find the file of weights.

        Parameters
        ----------
        given
            The file that the user names, if any.
        report
            Takes a line that says what is fetched from where.

        Returns
        -------
        WeightsFile or None
            None where none are needed.

        Raises
        ------
        WeightsError
            They are nowhere, or damaged.
        UsageError
            The file that is named is not there, or none is taken.
        """
        if given is not None:
            raise UsageError(f"The backbone {self.name} takes no weights: leave --weights away.")
        return None

    def load(self, weights: WeightsFile | None, size: int) -> None:  # noqa: B027
        """Get ready to compute: build the network and load its weights.

        Parameters
        ----------
        weights
            What :meth:`find_weights` has found.
        size
            Side of the windows in pixels.

        Raises
        ------
        WeightsError
            They are broken or are those of another model.
        """

    @property
    def default_size(self) -> int:
        """Side of a window where none is given: the multiple of the patch nearest to 320 pixels."""
        return max(1, (2 * COMMON_SIZE + self.patch) // (2 * self.patch)) * self.patch

    def check_size(self, size: int) -> None:
        """Refuse a size in pixels that is not a multiple of the patch, naming the nearest two."""
        below = size // self.patch * self.patch
        if size < 1 or below != size:
            nearest = f"{below} or {below + self.patch}" if below > 0 else f"{self.patch}"
            raise UsageError(
                f"The size {size} does not fit {self.name}, whose patch is {self.patch} pixels: "
                f"take {nearest} with --size."
            )

    def __call__(self, images: Tensor) -> Tensor:
        """Give the features of windows [window, rgb, y, x] with values in 0..1, in float32."""
        return self._run(self.compute_features, images)

    def attend(self, images: Tensor) -> Tensor:
        """Give the attention in windows [window, rgb, y, x] with values in 0..1, in float32."""
        return self._run(self.compute_attention, images)

    def _run(self, compute: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        self.check_size(images.shape[-2])
        self.check_size(images.shape[-1])
        autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
        )
        with torch.inference_mode(), autocast:
            images = images.to(self.device, torch.float32, non_blocking=True)
            mean, std = (images.new_tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
            return compute((images - mean) / std).float()


TIMM = "timm"
# Any other name is one of timm's.
BACKBONES: Registry[type[Backbone]] = Registry(
    "backbone",
    "primaps_pipe.backbones",
    {
        "handcrafted": "stages.extract.handcrafted:HandcraftedBackbone",
        TIMM: "stages.extract.transformers:TimmBackbone",
    },
)


def describe_backbone(name: str) -> Backbone:
    """Make a backbone that says what it is, and cannot compute: its weights are not loaded."""
    return BACKBONES[name if name in BACKBONES else TIMM](name)


def no_attention(name: str) -> UsageError:
    """Give the error for a backbone whose attention is wanted and cannot be had."""
    return UsageError(
        f"The backbone {name} has no last block whose attention can be read: leave --attention "
        "away, or take a backbone such as vit_small_patch14_dinov2.lvd142m."
    )


def build_backbone(
    name: str,
    weights: WeightsFile | None,
    *,
    size: int,
    device: torch.device,
    precision: str,
) -> Backbone:
    """Build a backbone, its weights loaded, ready for windows of one size in pixels."""
    backbone = describe_backbone(name)
    backbone.check_size(size)
    if backbone.takes_weights and weights is None:
        raise WeightsError(f"The backbone {name} needs weights: name a file with --weights FILE.")
    backbone.device = device
    backbone.precision = precision if backbone.takes_bfloat16 else "float32"
    backbone.load(weights, size)
    return backbone


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
    backbone = describe_backbone(name)
    weights = backbone.find_weights(given if backbone.takes_weights else None, lambda _: None)
    if weights is not None and weights.digest != digest:
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


GRID = ("window", "row", "column")
NEIGHBOURS = 9


def features_spec(facts: Mapping[str, Any], text: str) -> ArraySpec:
    """Lay out the features of one view: float16 [window, row, column, channel]."""
    return ArraySpec(
        shape=(*facts["grid"], facts["channels"]),
        dims=(*GRID, "channel"),
        dtype="float16",
        compress=False,
        attributes={"long_name": text, "units": "1"},
    )


def attention_spec(facts: Mapping[str, Any]) -> ArraySpec:
    """Lay out the attention to the neighbourhood: float16 [window, row, column, neighbour]."""
    return ArraySpec(
        shape=(*facts["grid"], NEIGHBOURS),
        dims=(*GRID, "neighbour"),
        dtype="float16",
        compress=False,
        attributes={
            "long_name": "last block's attention of a position to the 3 x 3 positions around it, "
            "row by row, mean over heads; 0 outside the grid",
            "units": "1",
        },
    )


def group_attributes(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Give the attributes of the group, which are the same whichever stage writes them."""
    return {name: facts[name] for name in ("backbone", "patch", "size", "weights_source")}
