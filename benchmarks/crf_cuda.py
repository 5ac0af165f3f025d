"""The dense CRF on a CUDA device, sixteen images at once, against the processor's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.comparison import Comparison, Section, race
from benchmarks.machine import Machine
from benchmarks.samples import PHOTOGRAPHS, draw_unary, load_square
from stages.crf.backends import choose_backend
from stages.crf.cuda import CudaBackend
from stages.crf.cuda.backend import (
    LANES,
    build_bilateral_lattice,
    build_spatial_lattice,
    choose_passes,
)
from stages.crf.settings import CrfSettings

SIZE, BATCH = 320, 16
LABELS = (6, 12, 27)
SHARPNESS = (0.5, 3.0, 20.0)
COPIED = 2**30


def compare_crf_cuda(repeats: int, machine: Machine) -> Iterator[Comparison]:
    """Compare batches of sixteen on the device with the same images on the processor.

    Parameters
    ----------
    repeats : int
        Runs of each side per photograph, in turn; the best counts.
    machine : Machine
        Not used: the limit is the device's.

    Yields
    ------
    Comparison
        Seconds per image. A batch holds sixteen different images: a photograph at eight
        brightnesses, and mirrored. Its energies lie in the processor's memory and the labels come
        back there, so that both transfers count. The processor's side is one image of the batch.
        Nothing where there is no CUDA device, which is said.
    """
    if not torch.cuda.is_available():
        print("the CRF backend cuda is not compared: this machine has no CUDA device")
        return
    settings, bandwidth = CrfSettings(), measure_bandwidth()
    theirs = choose_backend("numba")
    assert theirs is not None
    ours = CudaBackend("cuda")
    for labels in LABELS:
        for seed, (name, path) in enumerate(PHOTOGRAPHS.items()):
            images = vary(load_square(path, SIZE))
            sharpness = SHARPNESS[seed % len(SHARPNESS)]
            unaries = [
                draw_unary(image, labels, sharpness, seed + index)
                for index, image in enumerate(images)
            ]
            tensors = [torch.from_numpy(unary).pin_memory() for unary in unaries]

            refine = partial(_label, ours, tensors, images, settings)
            refine()  # compiles the kernels, and keeps the spatial lattice as a run does
            own, other, mine, reference = race(
                refine,
                partial(theirs.refine, unaries[0], images[0], settings),
                repeats,
            )
            yield Comparison(
                group=f"L = {labels}",
                sample=name,
                ours=own / BATCH,
                theirs=other,
                agreement=100 * float((mine[0] == reference.argmax(axis=0)).mean()),
                limit=count_bytes(images[0], labels, settings) / bandwidth,
            )


def count_bytes(image: NDArray[np.uint8], labels: int, settings: CrfSettings) -> float:
    """Count the bytes that the sweeps over one image move through the device's memory.

    Parameters
    ----------
    image : uint8 [y, x, rgb]
        The image.
    labels : int
        Number of labels.
    settings : CrfSettings
        Kernels and iterations.

    Returns
    -------
    float
        Every array once per sweep, its repeated reads coming from the caches. Rows of labels: for
        each kernel a splat reads the posterior and writes the vertices, a blur reads and writes
        them once per axis, the update reads them; and it reads the energies and writes the
        posterior. Places and weights: 8 bytes for each of a splat's entries, each pair of
        neighbours and each of the update's corners; those of the spatial kernel are shared by the
        batch and not counted. The lattice: one radix sort of 8-byte keys with 8-byte places, read
        and written in eight rounds.
    """
    passes = choose_passes(torch.device("cpu"))
    pixels = image.shape[0] * image.shape[1]
    near = build_spatial_lattice(*image.shape[:2], settings.spatial_sxy, "cpu", passes)
    alike = build_bilateral_lattice(torch.from_numpy(image[None]), settings, passes)
    rows = sum(pixels + 2 * (1 + each.axes) * each.size for each in (near, alike)) + 2 * pixels
    places = 8.0 * (2 * alike.vertices.numel() + alike.axes * alike.size)
    row = 4.0 * (-(-labels // LANES) * LANES)
    sort = 8 * 2 * 16.0 * alike.vertices.numel()
    return settings.iterations * (rows * row + places) + sort


def measure_bandwidth() -> float:
    """Measure the bytes per second that a copy within the device's memory reads and writes."""
    source = torch.ones(COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(10):
        torch.cuda.synchronize()
        start = perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best = min(best, perf_counter() - start)
    return 2 * COPIED / best


def _label(
    backend: CudaBackend,
    unaries: list[torch.Tensor],
    images: list[NDArray[np.uint8]],
    settings: CrfSettings,
) -> NDArray[np.uint8]:
    posteriors = backend.refine_batch(unaries, images, settings)
    labels = torch.stack([posterior.argmax(dim=0).byte() for posterior in posteriors])
    return np.asarray(labels.cpu())


def vary(image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Make sixteen images of one: as it is and mirrored, at eight brightnesses."""
    factors = np.linspace(1.0, 0.65, BATCH // 2)
    return [
        np.ascontiguousarray((factor * side).astype(np.uint8))
        for factor in factors
        for side in (image, image[:, ::-1])
    ]


SECTIONS = (
    Section(
        f"dense CRF on a CUDA device, {SIZE} x {SIZE}, {BATCH} images at once, per image",
        "numba",
        "equal labels\nlowest, %",
        compare_crf_cuda,
    ),
)
