"""Backbones: what turns windows of an image into a grid of features, found by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from pipeline.compute.devices import resolve_device
from pipeline.errors import RunError, UsageError, WeightsError
from pipeline.registry import Registry
from stages.extract.settings import ExtractSettings
from stages.extract.weights import Report, WeightsFile

COMMON_SIZE = 320
Floats = tuple[float, float, float]


class Backbone(ABC):
    """A frozen network, or any other function, from windows of an image to a grid of features.

    Subclass it to bring one of another kind, and name the class in the entry points of its package,
    in the group ``primaps_pipe.backbones``: the entry's name is then one for ``--backbone``. An
    instance is made from that name alone and knows its patch and channels; :meth:`load` makes it
    ready to compute.
    """

    # whether it needs a file of weights, of which `find_weights` says where it lies
    takes_weights: ClassVar[bool] = False
    # whether its matrices may be multiplied in bfloat16; otherwise all is float32
    takes_bfloat16: ClassVar[bool] = False
    # to be raised when the same images and weights give other features: cached ones are stale
    version: ClassVar[int] = 1

    # pixels per side of a feature's cell
    patch: int
    # of a feature
    channels: int
    # normalisation of red, green and blue, on values in 0..1
    mean: Floats = (0.0, 0.0, 0.0)
    std: Floats = (1.0, 1.0, 1.0)
    # where it computes, in float32 or bfloat16; set before `load`
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
        """Compute the last block's attention of every position to every position.

        Images are as for the features. Gives float [window, from, to], averaged over the heads,
        positions row by row; what other tokens attract is left out, so sums may be below 1.
        Refused, with a ``UsageError``, where a class does not say how to compute it.
        """
        raise no_attention(self.name)

    def check_attention(self) -> None:
        """Refuse, before there are weights, a backbone that cannot compute attention."""
        raise no_attention(self.name)

    def find_weights(self, given: Path | None, report: Report) -> WeightsFile | None:
        """Find the file of weights, ``given`` by the user or not; None where none is needed.

        ``report`` takes a line that says what is fetched from where. Weights that are nowhere or
        damaged are a ``WeightsError``; a file named in vain a ``UsageError``.
        """
        if given is not None:
            raise UsageError(f"The backbone {self.name} takes no weights: leave --weights away.")
        return None

    def load(self, weights: WeightsFile | None, size: int) -> None:  # noqa: B027
        """Get ready to compute on windows of ``size`` pixels: build the network, load its weights.

        Weights that are broken, or those of another model, are a ``WeightsError``.
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


@lru_cache(maxsize=1)
def load_backbone(settings: ExtractSettings, digest: str) -> Backbone:
    """Build the backbone of a run, or give the one that this process built for it last."""
    assert settings.size is not None
    backbone = describe_backbone(settings.backbone)
    given = settings.weights if backbone.takes_weights else None
    weights = backbone.find_weights(given, lambda _: None)
    if weights is not None and weights.digest != digest:
        raise RunError(
            f"the weights at {weights.path} are not those that extract was planned with; "
            "run `primaps-pipe extract` again."
        )
    return build_backbone(
        settings.backbone,
        weights,
        size=settings.size,
        device=resolve_device(settings.device),
        precision=settings.precision,
    )
