"""What all implementations of the dense CRF share: numbers, and what they refuse in which words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError

# Energies that exceed the lowest of their pixel by this much are as good as infinite; the labels
# that pad a pixel's row have it too.
FORBIDDEN = 1e30
# Below e^-40 of the likeliest label a probability is far under a float32's last digit of 1: taking
# it as 0 changes no label, and keeps the filter's products out of the denormal numbers, which
# are many times slower and would otherwise need a switch of the whole thread's arithmetic.
NEGLIGIBLE = -40.0
# A kernel this much narrower than one pixel or one grey level ties no two of them together (the
# lattice's kernel ends at 4.5 standard deviations): a narrower one would only lose precision.
NARROWEST = 0.1
# Float32 tells whole numbers apart, and halves between them, up to here.
LARGEST_COORDINATE = 2**22
TOO_NARROW = (
    "the dense CRF's kernel is too narrow for an image of this size: "
    "raise spatial_sxy, bilateral_sxy or bilateral_srgb, or make the image smaller"
)


def scale_axes(dimension: int) -> NDArray[np.float32]:
    """Return the factor of each feature that makes the lattice's blurred kernel's deviation 1.

    Source: Adams, Baek and Davis 2010, section 3.1.
    """
    axis = np.arange(dimension)
    deviation = np.sqrt(2.0 / 3.0) * (dimension + 1)
    scales = deviation / np.sqrt((axis + 1.0) * (axis + 2.0))
    return np.asarray(scales, np.float32)


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
