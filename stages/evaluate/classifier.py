"""Classifiers: from features to the logits of classes, by prototypes or by weights with a bias."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

LOGITS = ("inner product", "cosine")


@dataclass(frozen=True)
class Classifier:
    """A linear classifier, or a mixture of several prototypes in each class.

    Attributes
    ----------
    prototypes
        float32 [prototype, channel]; a prototype is a class where ``class_of`` is None.
    bias
        float32 [prototype], added to the logits; or None.
    class_of
        int64 [prototype]: the class of every prototype, each class below the largest having one;
        or None.
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
    class_of: Tensor | None = None
    logits: str = "inner product"
    gain: float = 1.0

    def __post_init__(self) -> None:
        count = len(self.prototypes)
        if self.logits not in LOGITS:
            raise ValueError(f"logits {self.logits!r} are none of {', '.join(LOGITS)}")
        for name in ("bias", "class_of"):
            value = getattr(self, name)
            if value is not None and value.shape != (count,):
                raise ValueError(f"{name} is {tuple(value.shape)} for {count} prototypes")
        if self.class_of is not None:
            found = self.class_of.unique().tolist()
            if found != list(range(len(found))):
                raise ValueError(f"class_of names the classes {found}, which have gaps")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.prototypes) if self.class_of is None else int(self.class_of.max()) + 1


def classify(features: Tensor, classifier: Classifier) -> Tensor:
    """Compute the class logits of every position.

    Several prototypes of a class are components of a mixture, whose log-likelihoods are the logits
    of the prototypes: the class's is the logarithm of the sum of their exponentials.

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
    if classifier.class_of is None:
        return logits
    return _sum_exponentials(logits, classifier.class_of.to(logits.device), classifier.classes)


def _sum_exponentials(logits: Tensor, class_of: Tensor, classes: int) -> Tensor:
    """Take the log-sum-exp over the prototypes of every class, [window, class, row, column]."""
    shape = (len(logits), classes, *logits.shape[2:])
    index = class_of[:, None, None].expand_as(logits)
    # with the largest of a class taken out, no exponential overflows and one of them is 1
    largest = logits.new_zeros(shape).scatter_reduce(1, index, logits, "amax", include_self=False)
    parts = (logits - largest[:, class_of]).exp()
    return largest + logits.new_zeros(shape).index_add(1, class_of, parts).log()
