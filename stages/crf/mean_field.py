"""Mean-field inference in the dense CRF with a spatial and a bilateral kernel.

Source: Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", NeurIPS 2011, algorithm 1, with Potts compatibility.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stages.crf.lattice import Lattice, blur, build_lattice, splat
from stages.crf.settings import CrfSettings
from stages.crf.softmax import LANES, update_posterior

# Energies that exceed the lowest of their pixel by this much are as good as infinite; the labels
# that pad a pixel's row to whole vector registers have it too.
FORBIDDEN = np.float32(1e30)
# A kernel this much narrower than one pixel or one grey level ties no two of them together (the
# lattice's kernel ends at 4.5 standard deviations): a narrower one would only lose precision.
NARROWEST = 0.1


def infer_posterior(
    unary: NDArray[np.float32], image: NDArray[np.uint8], settings: CrfSettings
) -> NDArray[np.float32]:
    """Infer the mean-field posterior of the labels.

    Parameters
    ----------
    unary : float32 [label, y, x]
        Energies, that is negative log probabilities up to a constant per pixel; finite.
    image : uint8 [y, x, rgb]
        The image whose colours the bilateral kernel compares, 0..255.
    settings : CrfSettings
        Kernel widths, weights and the number of iterations.

    Returns
    -------
    float32 [label, y, x]
        Probabilities: in 0..1, with a sum of 1 over the labels; those below e^-40 of their pixel's
        largest come out as 0.

    Raises
    ------
    CrfError
        A kernel is too narrow for an image of this size.
    """
    labels, height, width = unary.shape
    energies = _arrange_energies(unary)
    pixels, padded = energies.shape
    spatial = build_spatial_lattice(height, width, settings.spatial_sxy)
    bilateral = build_lattice(
        bilateral_features(image, settings.bilateral_sxy, settings.bilateral_srgb)
    )
    posterior = np.empty((pixels, padded), np.float32)
    near = np.zeros((spatial.size, padded), np.float32)
    alike = np.zeros((bilateral.size, padded), np.float32)
    for iteration in range(settings.iterations + 1):
        # The first posterior is the softmax of the unary alone: both filters are still zero.
        if iteration:
            _filter(spatial, posterior, near)
            _filter(bilateral, posterior, alike)
        update_posterior(
            energies,
            (spatial.vertices, spatial.weights, near),
            np.float32(settings.spatial_weight),
            (bilateral.vertices, bilateral.weights, alike),
            np.float32(settings.bilateral_weight),
            posterior,
        )
    return np.ascontiguousarray(posterior[:, :labels].T).reshape(labels, height, width)


def bilateral_features(image: NDArray[np.uint8], sxy: float, srgb: float) -> NDArray[np.float32]:
    """Place every pixel in the space of the bilateral kernel.

    Parameters
    ----------
    image : uint8 [y, x, rgb]
        Colours, 0..255.
    sxy, srgb : float
        Standard deviations over positions (pixels) and over colours (levels), greater than 0.

    Returns
    -------
    float32 [pixel, (x, y, r, g, b)]
        In units of the standard deviations, row by row.
    """
    height, width = image.shape[:2]
    colours = image.reshape(-1, 3).astype(np.float32) / np.float32(max(srgb, NARROWEST))
    return np.concatenate([spatial_features(height, width, sxy), colours], axis=1)


def spatial_features(height: int, width: int, sxy: float) -> NDArray[np.float32]:
    """Place every pixel of an image in the space of the spatial kernel.

    Parameters
    ----------
    height, width : int
        Size of the image, in pixels.
    sxy : float
        Standard deviation, in pixels, greater than 0.

    Returns
    -------
    float32 [pixel, (x, y)]
        In units of the standard deviation, row by row.
    """
    rows, columns = np.indices((height, width), dtype=np.float32)
    positions = np.stack([columns.ravel(), rows.ravel()], axis=1)
    return positions / np.float32(max(sxy, NARROWEST))


@lru_cache(maxsize=2)
def build_spatial_lattice(height: int, width: int, sxy: float) -> Lattice:
    """Build the lattice of the spatial kernel, which all images of one size share.

    Parameters
    ----------
    height, width, sxy
        As in `spatial_features`.

    Returns
    -------
    Lattice
        Kept for the next image of the same size; nobody may write to it.

    Raises
    ------
    CrfError
        The kernel is too narrow for an image of this size.
    """
    return build_lattice(spatial_features(height, width, sxy))


def _arrange_energies(unary: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lay the energies out as [pixel, label], lowest 0, padded with labels that never win."""
    labels = len(unary)
    energies = np.full((unary[0].size, -(-labels // LANES) * LANES), FORBIDDEN, np.float32)
    own = energies[:, :labels]
    with np.errstate(over="ignore"):
        np.subtract(unary, unary.min(axis=0), out=own.T.reshape(unary.shape))
    np.minimum(own, FORBIDDEN, out=own)
    return energies


def _filter(lattice: Lattice, posterior: NDArray[np.float32], values: NDArray[np.float32]) -> None:
    """Splat and blur the posterior into the rows of the lattice's vertices."""
    values.fill(0.0)
    splat(lattice.vertices, lattice.weights, posterior, values)
    blur(lattice.chains, lattice.axes, values)
