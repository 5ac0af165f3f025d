"""What all implementations of the dense CRF share: features, coordinates, and what they refuse."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError

# Arrays of the compiled loops.
Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]

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


class CrfError(PipelineError):
    """The dense CRF cannot work on these arrays, with these kernels, or with this backend."""


def check_inputs(unary: Floats, image: NDArray[np.uint8]) -> None:
    """Refuse arrays that do not fit each other, or hold no image or a number that is not finite."""
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


def spatial_features(height: int, width: int, sxy: float) -> Floats:
    """Place pixels in units of the spatial kernel, float32 [(x, y), pixel]."""
    rows, columns = np.indices((height, width), dtype=np.float32)
    return np.stack([columns.ravel(), rows.ravel()]) / np.float32(max(sxy, NARROWEST))


# Float32 tells whole numbers apart, and halves between them, up to here.
_LARGEST_COORDINATE = 2**22
TOO_NARROW = (
    "the dense CRF's kernel is too narrow for an image of this size: "
    "raise spatial_sxy, bilateral_sxy or bilateral_srgb, or make the image smaller"
)


def scale_axes(dimension: int) -> Floats:
    """Return the factor of each feature that makes the lattice's blurred kernel's deviation 1.

    Source: Adams, Baek and Davis 2010, section 3.1.
    """
    axis = np.arange(dimension)
    deviation = np.sqrt(2.0 / 3.0) * (dimension + 1)
    scales = deviation / np.sqrt((axis + 1.0) * (axis + 2.0))
    return np.asarray(scales, np.float32)


def bound_coordinates(
    smallest: NDArray[np.float64], largest: NDArray[np.float64]
) -> tuple[Longs, Longs]:
    """Bound the lattice coordinates [axis] of all vertices about features between two bounds."""
    dimension = len(smallest)
    # Elevated coordinate j sums the scaled features from j on, less j times the one before.
    elevate = np.triu(np.ones((dimension + 1, dimension)))
    elevate[np.arange(1, dimension + 1), np.arange(dimension)] = -np.arange(1, dimension + 1)
    elevate *= scale_axes(dimension)
    low = np.minimum(elevate * smallest, elevate * largest).sum(axis=1)
    high = np.maximum(elevate * smallest, elevate * largest).sum(axis=1)
    if not max(-low.min(), high.max()) < _LARGEST_COORDINATE:
        raise CrfError(TOO_NARROW)
    # A pixel's 0-coloured vertex is within two cells of it, the others within one of that, and
    # their neighbours within one more.
    margin = 4 * (dimension + 1)
    return np.floor(low).astype(np.int64) - margin, np.ceil(high).astype(np.int64) + margin


def pack_strides(spans: Sequence[int], most_bits: int) -> Longs:
    """Give each number from 0 to its span a place in as many integers as it takes, [word, number].

    With room left for a vertex's neighbours, the keys of two neighbours differ by a constant of the
    axis between them, with no carry from one coordinate into the next.
    """
    strides = np.zeros((len(spans), len(spans)), np.int64)
    word = used = 0
    for place, span in enumerate(spans):
        bits = int(span).bit_length()
        if used + bits > most_bits:
            word, used = word + 1, 0
        # A number that is always 0 needs no place, and behind a full word there is none.
        strides[word, place] = 1 << used if bits else 0
        used += bits
    return strides[: word + 1]
