"""Mean-field inference in the dense CRF with a spatial and a bilateral kernel.

Source: Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", NeurIPS 2011, algorithm 1, with Potts compatibility.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stages.crf.definition import NARROWEST
from stages.crf.lattice import Lattice, build_lattice
from stages.crf.rows import (
    BAND,
    BORDER,
    REACH,
    Floats,
    Sweep,
    arrange_logits,
    collect_labels,
    compile_rows,
    multiply_out,
    pad_labels,
)
from stages.crf.settings import CrfSettings
from stages.crf.vectors import take_scratch

# The width at which the spatial kernel is a stencil that repeats in every row.
STENCIL_SXY = 1.0


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
    lanes = pad_labels(labels)
    kernels = compile_rows(lanes)
    near = build_spatial_operator(height, width, settings.spatial_sxy)
    alike = build_lattice(
        bilateral_features(image, settings.bilateral_sxy, settings.bilateral_srgb)
    )
    logits = take_scratch("logits", (height * width, lanes))
    arrange_logits(np.ascontiguousarray(unary).reshape(labels, -1), logits)
    messages = take_scratch("messages", (2, BAND, width, lanes))
    posterior = take_scratch("posterior", (height + 2 * REACH, width + 2 * REACH, lanes))
    posterior[:REACH] = posterior[-REACH:] = 0.0
    posterior[:, :REACH] = posterior[:, -REACH:] = 0.0
    old = take_scratch("old", (alike.size + 1, lanes))
    new = take_scratch("new", (alike.size + 1, lanes))
    beside = near.size if isinstance(near, Lattice) else 0
    splatted = take_scratch("near", (beside + 1, lanes))
    # The neighbour of all vertices that have none.
    old[-1] = new[-1] = splatted[-1] = 0.0
    sweep = Sweep(
        logits=logits,
        corners=(alike.vertices, alike.weights),
        old=old,
        new=new,
        near_weight=np.float32(settings.spatial_weight),
        alike_weight=np.float32(settings.bilateral_weight),
        posterior=posterior,
        first=True,
        last=settings.iterations == 0,
    )
    for iteration in range(settings.iterations + 1):
        if isinstance(near, Lattice):
            if not sweep.first:
                kernels.splat((near.vertices, near.weights), posterior, splatted)
                kernels.blur(near.chains, near.axes, splatted)
            kernels.sweep_lattice(sweep, (near.vertices, near.weights), splatted, messages)
        else:
            kernels.sweep_stencil(sweep, near, messages)
        if not sweep.last:
            kernels.blur(alike.chains, alike.axes, sweep.new)
        sweep = sweep._replace(
            old=sweep.new,
            new=sweep.old,
            first=False,
            last=iteration + 1 == settings.iterations,
        )
    probabilities = np.empty(unary.shape, np.float32)
    collect_labels(posterior, probabilities)
    return probabilities


def bilateral_features(image: NDArray[np.uint8], sxy: float, srgb: float) -> Floats:
    """Place pixels in units of the bilateral kernel, float32 [(x, y, r, g, b), pixel]."""
    height, width = image.shape[:2]
    features = take_scratch("features", (5, height, width))
    features[:2] = spatial_features(height, width, sxy).reshape(2, height, width)
    np.divide(image.transpose(2, 0, 1), np.float32(max(srgb, NARROWEST)), out=features[2:])
    return features.reshape(5, -1)


def spatial_features(height: int, width: int, sxy: float) -> Floats:
    """Place pixels in units of the spatial kernel, float32 [(x, y), pixel]."""
    rows, columns = np.indices((height, width), dtype=np.float32)
    return np.stack([columns.ravel(), rows.ravel()]) / np.float32(max(sxy, NARROWEST))


@lru_cache(maxsize=2)
def build_spatial_operator(height: int, width: int, sxy: float) -> Lattice | Floats:
    """Build the operator of the spatial kernel, which all images of one size share.

    Kept for the next image of the same size; nobody may write to it. At a width of one pixel it is
    a stencil of at most 13 rows, float32 [row, x, column, row], else a lattice.
    """
    if sxy != STENCIL_SXY:
        return build_lattice(spatial_features(height, width, sxy)).keep()
    rows = min(height, 2 * BORDER + 1)
    return multiply_out(build_lattice(spatial_features(rows, width, sxy)), rows, width)
