"""What the dense CRF takes, and the sentence with which it refuses anything else."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError


class CrfError(PipelineError):
    """The dense CRF cannot work on these arrays, with these kernels, or with this backend."""


def check_inputs(unary: NDArray[np.float32], image: NDArray[np.uint8]) -> None:
    """Refuse arrays that do not belong together or that no posterior can be inferred from.

    Parameters
    ----------
    unary : float32 [label, y, x]
        Energies, finite, at least one label.
    image : uint8 [y, x, rgb]
        The image, at least one pixel.

    Raises
    ------
    CrfError
        A wrong dtype, a wrong shape, sizes that differ, or a number that is not finite.
    """
    if unary.dtype != np.float32 or unary.ndim != 3 or 0 in unary.shape:
        raise CrfError(
            "the dense CRF's unary must be float32 of shape (labels, height, width), none of them "
            f"0, not {unary.dtype} of shape {unary.shape}"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise CrfError(
            "the dense CRF's image must be uint8 of shape (height, width, 3), "
            f"not {image.dtype} of shape {image.shape}"
        )
    if unary.shape[1:] != image.shape[:2]:
        raise CrfError(
            "the dense CRF's unary and image must have the same height and width: the unary has "
            f"{unary.shape[1:]}, the image {image.shape[:2]}; resize one to the other"
        )
    if not np.isfinite(unary).all():
        raise CrfError(
            "the dense CRF's unary holds NaN or infinite energies: clip the probabilities above 0 "
            "before taking the logarithm"
        )
