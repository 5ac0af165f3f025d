"""Classifiers: from features to the logits of classes, by prototypes, or weights with a bias."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

LOGITS = ("inner product", "cosine")


@dataclass(frozen=True)
class Classifier:
    """A linear classifier.

    Attributes
    ----------
    prototypes
        float32 [class, channel].
    bias
        float32 [class], added to the logits; or None.
    logits
        ``inner product`` of feature and prototype, or their ``cosine``.
    gain
        Factor on cosines, which have no scale of their own.

    Raises
    ------
    ValueError
        The parts do not fit together.
    """

    prototypes: Tensor
    bias: Tensor | None = None
    logits: str = "inner product"
    gain: float = 1.0

    def __post_init__(self) -> None:
        count = len(self.prototypes)
        if self.logits not in LOGITS:
            raise ValueError(f"logits {self.logits!r} are none of {', '.join(LOGITS)}")
        if self.bias is not None and self.bias.shape != (count,):
            raise ValueError(f"bias is {tuple(self.bias.shape)} for {count} prototypes")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.prototypes)


def classify(features: Tensor, classifier: Classifier) -> Tensor:
    """Compute the class logits of every position.

    Parameters
    ----------
    features
        float [window, row, column, channel].
    classifier
        What classifies them; on any device.

    Returns
    -------
    Tensor
        [window, class, row, column], of the features' type and device.
    """
    prototypes = classifier.prototypes.to(features)
    if classifier.logits == "cosine":
        features = F.normalize(features, dim=-1)
        prototypes = classifier.gain * F.normalize(prototypes, dim=-1)
    logits = torch.einsum("nhwd,kd->nkhw", features, prototypes)
    if classifier.bias is not None:
        logits = logits + classifier.bias.to(features)[:, None, None]
    return logits
