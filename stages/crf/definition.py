"""What the implementations of the dense CRF share, so that they compute the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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

    Parameters
    ----------
    dimension : int
        Number of features.

    Returns
    -------
    float32 [dimension]
        Adams, Baek and Davis 2010, section 3.1.
    """
    axis = np.arange(dimension)
    deviation = np.sqrt(2.0 / 3.0) * (dimension + 1)
    scales = deviation / np.sqrt((axis + 1.0) * (axis + 2.0))
    return np.asarray(scales, np.float32)
