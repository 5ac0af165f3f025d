"""The dense CRF against pydensecrf on one thread, and two threads against one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.comparison import Comparison, Section, one_thread, race
from benchmarks.machine import Machine
from benchmarks.samples import PHOTOGRAPHS, draw_unary, load_square
from stages.crf.backends import NumbaBackend, choose_backend
from stages.crf.lattice import build_lattice
from stages.crf.mean_field import bilateral_features
from stages.crf.settings import CrfSettings

SIZE = 320
LABELS = (6, 12, 27)
SHARPNESS = (0.5, 3.0, 20.0)

# What one label of one pixel takes in one iteration: multiply-adds count as two.
SPATIAL_TAPS, CORNERS = 41, 6
SOFTMAX_OPERATIONS = 25
BLUR_OPERATIONS = 3


def list_samples() -> dict[str, NDArray[np.uint8]]:
    """Return the photographs, 320 x 320."""
    return {name: load_square(path, SIZE) for name, path in PHOTOGRAPHS.items()}


def bound_seconds(
    image: NDArray[np.uint8], labels: int, settings: CrfSettings, machine: Machine
) -> float:
    """Bound the time of an inference from below.

    Parameters
    ----------
    image : uint8 [y, x, rgb]
        The image, whose lattice is built to see how many vertices have neighbours.
    labels : int
        Number of labels L.
    settings : CrfSettings
        Kernels and iterations.
    machine : Machine
        The measured limits.

    Returns
    -------
    float
        Seconds. The larger of: the arithmetic (41 taps of the spatial kernel, slice and splat at
        the 6 corners of a simplex, the blur of every vertex with a neighbour along each axis, the
        softmax), as fast as the machine's matrix product; the rows of L float32 that these read
        and write, as fast as its second-level cache; energies and posterior, read and written once
        per iteration, as fast as its memory. To build the lattice is not in it.
    """
    pixels = image[..., 0].size
    features = bilateral_features(image, settings.bilateral_sxy, settings.bilateral_srgb)
    entries = len(build_lattice(features).chains)
    kernels = 2 * (SPATIAL_TAPS + 2 * CORNERS) + SOFTMAX_OPERATIONS
    steps = settings.iterations * labels
    return machine.least_seconds(
        operations=steps * (pixels * kernels + entries * BLUR_OPERATIONS),
        cache=4 * steps * (pixels * 3 * CORNERS + entries * 3),
        memory=4 * steps * pixels * 3,
    )


def compare_crf(repeats: int, machine: Machine) -> Iterator[Comparison]:
    """Compare the own dense CRF with pydensecrf: all photographs, each number of labels.

    Parameters
    ----------
    repeats : int
        Runs of each side per input, in turn; the best counts.
    machine : Machine
        The measured limits.

    Yields
    ------
    Comparison
        Times of a whole refinement on one thread, from energies and image to the posterior. As in a
        run, the own backend keeps the spatial operator from one image to the next of the same size.
    """
    settings = CrfSettings()
    ours, theirs = choose_backend("numba"), choose_backend("pydensecrf")
    assert ours is not None and theirs is not None
    images = list_samples()
    first = next(iter(images.values()))
    with one_thread():
        for labels in LABELS:
            ours.refine(draw_unary(first, labels, 1.0, 0), first, settings)
            for seed, (name, image) in enumerate(images.items()):
                unary = draw_unary(image, labels, SHARPNESS[seed % len(SHARPNESS)], seed)
                own, other, mine, reference = race(
                    partial(ours.refine, unary, image, settings),
                    partial(theirs.refine, unary, image, settings),
                    repeats,
                )
                yield Comparison(
                    group=f"L = {labels}",
                    sample=name,
                    ours=own,
                    theirs=other,
                    agreement=100 * float((mine.argmax(0) == reference.argmax(0)).mean()),
                    limit=bound_seconds(image, labels, settings, machine),
                )


def compare_threads(repeats: int, machine: Machine) -> Iterator[Comparison]:
    """Compare two threads with one, each photograph refined twice.

    Parameters
    ----------
    repeats : int
        Runs of each side per input, in turn; the best counts.
    machine : Machine
        The measured limits.

    Yields
    ------
    Comparison
        Times of two refinements of one photograph: in two threads, and one after the other. The
        limit is half the time of one after the other.
    """
    settings, backend = CrfSettings(), NumbaBackend()
    with one_thread(), ThreadPoolExecutor(2) as pool:
        for labels in LABELS:
            for seed, (name, image) in enumerate(list_samples().items()):
                unary = draw_unary(image, labels, SHARPNESS[seed % len(SHARPNESS)], seed)
                refine = partial(backend.refine, unary, image, settings)
                refine()

                def together(refine: partial[NDArray[np.float32]] = refine) -> list[bytes]:
                    futures = [pool.submit(refine) for _ in range(2)]
                    return [future.result().tobytes() for future in futures]

                def alone(refine: partial[NDArray[np.float32]] = refine) -> list[bytes]:
                    return [refine().tobytes() for _ in range(2)]

                own, other, mine, reference = race(together, alone, repeats)
                yield Comparison(
                    group=f"L = {labels}",
                    sample=name,
                    ours=own,
                    theirs=other,
                    agreement=100.0 * (mine == reference),
                    limit=other / 2,
                )


SECTIONS = (
    Section(
        f"dense CRF, {SIZE} x {SIZE}, one thread",
        "pydensecrf",
        "equal labels\nlowest, %",
        compare_crf,
    ),
    Section(
        f"dense CRF, two images of {SIZE} x {SIZE}, two threads",
        "one thread",
        "equal bytes\n%",
        compare_threads,
    ),
)
