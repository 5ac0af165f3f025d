"""The dense CRF against pydensecrf, one thread each."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.comparison import Comparison, Section, race
from benchmarks.machine import Machine
from benchmarks.samples import PHOTOGRAPHS, draw_unary, load_square
from stages.crf import CrfSettings, choose_backend

SIZE = 320
LABELS = (6, 12, 27)
SHARPNESS = (0.5, 3.0, 20.0)


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
        Times of a whole refinement, from energies and image to the posterior. As in a run, the
        own backend keeps the spatial operator from one image to the next of the same size.
    """
    settings = CrfSettings()
    ours, theirs = choose_backend("numba"), choose_backend("pydensecrf")
    assert ours is not None and theirs is not None
    images = {name: load_square(path, SIZE) for name, path in PHOTOGRAPHS.items()}
    first = next(iter(images.values()))
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
                limit=float("nan"),
            )


SECTIONS = (
    Section(
        f"dense CRF, {SIZE} x {SIZE}, one thread",
        "pydensecrf",
        "equal labels\nlowest, %",
        compare_crf,
    ),
)
