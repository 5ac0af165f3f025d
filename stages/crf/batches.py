"""Many images refined one after the other: in threads, or in batches on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.frames import count_threads, map_ahead
from stages.crf.backends import Backend, BatchBackend
from stages.crf.settings import CrfSettings

T = TypeVar("T")
K = TypeVar("K")
R = TypeVar("R")

# Energies that are gathered for one batch, bytes: twenty images of 320 x 320 and 27 labels.
GATHERED = 2**28


def refine_each(
    backend: Backend,
    items: Iterable[T],
    prepare: Callable[[T], tuple[K, Tensor, NDArray[np.uint8]]],
    finish: Callable[[K, Tensor], R],
    settings: CrfSettings,
) -> Iterator[R]:
    """Refine one image after the other, as many at once as suits the backend.

    On the processor every item goes through all three steps in one of the threads. A
    `BatchBackend` is given batches of prepared items; the steps around it run in threads. Either
    way only a few items are held at a time, however many there are.

    Parameters
    ----------
    backend : Backend
        The dense CRF.
    items : iterable
        Whatever stands for an image.
    prepare : callable
        Gives, of an item, what `finish` will need, the energies, float32 [label, y, x] (see
        `place_beside`), and the image, uint8 [y, x, rgb].
    finish : callable
        Takes what was kept and the posterior, float32 [label, y, x], on the backend's device.
    settings : CrfSettings
        Kernels and iterations.

    Yields
    ------
    R
        What `finish` returns, in the order of the items.
    """
    threads = count_threads()
    if isinstance(backend, BatchBackend):
        for batch in _gather(map_ahead(prepare, items, threads, threads)):
            kept, unaries, images = zip(*batch, strict=True)
            posteriors = backend.refine_batch(unaries, images, settings)
            pairs = zip(kept, posteriors, strict=True)
            yield from map_ahead(lambda pair: finish(*pair), pairs, threads, threads)
        return

    def refine(item: T) -> R:
        kept, unary, image = prepare(item)
        posterior = backend.refine(unary.cpu().numpy(), image, settings)
        return finish(kept, torch.from_numpy(posterior))

    yield from map_ahead(refine, items, threads, threads)


def place_beside(values: Tensor, backend: Backend | None) -> Tensor:
    """Move values to where the backend wants its energies: its device, or the processor."""
    return values.to(backend.device if isinstance(backend, BatchBackend) else "cpu")


def _gather(
    samples: Iterable[tuple[K, Tensor, NDArray[np.uint8]]],
) -> Iterator[list[tuple[K, Tensor, NDArray[np.uint8]]]]:
    """Gather prepared images until their energies fill a batch."""
    batch = []
    held = 0
    for sample in samples:
        batch.append(sample)
        held += sample[1].nbytes
        if held >= GATHERED:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch
