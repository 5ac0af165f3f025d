"""Who computes the dense CRF, chosen by name, and how many images go through it.

The optional package pydensecrf2 is the oracle that our own implementations must agree with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compute.devices import resolve_device
from pipeline.errors import UsageError
from pipeline.run.frames import count_threads, map_ahead
from stages.crf.definition import CrfError, check_inputs
from stages.crf.settings import BACKENDS, CrfSettings


class PydensecrfBackend:
    """Krähenbühl and Koltun's implementation, as wrapped by pydensecrf."""

    name = "pydensecrf"

    def __init__(self) -> None:
        try:
            from pydensecrf.densecrf import DenseCRF2D
        except ImportError as error:
            raise CrfError(
                "the CRF backend pydensecrf is not installed: run "
                "`pip install 'primaps-pipe[pydensecrf]'`, or choose --crf auto"
            ) from error
        self._model = DenseCRF2D

    def refine(
        self, unary: NDArray[np.float32], image: NDArray[np.uint8], settings: CrfSettings
    ) -> NDArray[np.float32]:
        """Infer the posterior; see `stages.crf.backends.Backend.refine`."""
        check_inputs(unary, image)
        labels, height, width = unary.shape
        crf = self._model(width, height, labels)
        # The extension asks for arrays that it could write to: both are copied.
        crf.setUnaryEnergy(np.array(unary.reshape(labels, -1), order="C"))
        crf.addPairwiseGaussian(sxy=settings.spatial_sxy, compat=settings.spatial_weight)
        crf.addPairwiseBilateral(
            sxy=settings.bilateral_sxy,
            srgb=settings.bilateral_srgb,
            rgbim=np.array(image, order="C"),
            compat=settings.bilateral_weight,
        )
        posterior = np.array(crf.inference(settings.iterations), np.float32)
        return posterior.reshape(labels, height, width)


class Backend(Protocol):
    """Something that refines label energies along the edges of an image."""

    name: str

    def refine(
        self, unary: NDArray[np.float32], image: NDArray[np.uint8], settings: CrfSettings
    ) -> NDArray[np.float32]:
        """Infer the posterior of the labels.

        Parameters
        ----------
        unary : float32 [label, y, x]
            Energies, that is negative log probabilities; finite.
        image : uint8 [y, x, rgb]
            The image, 0..255.
        settings : CrfSettings
            Kernels and iterations.

        Returns
        -------
        float32 [label, y, x]
            Probabilities: in 0..1, with a sum of 1 over the labels.

        Raises
        ------
        CrfError
            The arrays do not fit each other, or hold numbers that are not finite.
        """
        ...


@runtime_checkable
class BatchBackend(Backend, Protocol):
    """A backend that is fastest when it is given many images at once."""

    device: torch.device  # where it computes

    def refine_batch(
        self,
        unaries: Sequence[Tensor],
        images: Sequence[NDArray[np.uint8]],
        settings: CrfSettings,
    ) -> list[Tensor]:
        """Infer the posteriors of many images, in their order, as `refine` that of one.

        Energies may lie on any device; sizes and numbers of labels may differ. The posteriors stay
        on the backend's: who wants labels alone takes them there.
        """
        ...


class NumbaBackend:
    """The project's own dense CRF, compiled at first use; many threads may share one."""

    name = "numba"

    def refine(
        self, unary: NDArray[np.float32], image: NDArray[np.uint8], settings: CrfSettings
    ) -> NDArray[np.float32]:
        """Infer the posterior; see `Backend.refine`."""
        # Imported here because loading numba takes longer than most commands' start-up.
        from stages.crf.mean_field import infer_posterior

        check_inputs(unary, image)
        return infer_posterior(unary, image, settings)


def choose_backend(name: str, device: str = "cpu") -> Backend | None:
    """Choose the backend of the dense CRF by a name of `BACKENDS`: None for "none".

    "auto" takes the project's own for the device where the stage computes.
    """
    if name == "none":
        return None
    if name == "auto":
        name = "cuda" if resolve_device(device).type == "cuda" else "numba"
    if name == "numba":
        return NumbaBackend()
    if name == "cuda":
        return _choose_cuda(device)
    if name == "pydensecrf":
        return PydensecrfBackend()
    raise UsageError(f"no CRF backend is called {name!r}: choose one of {', '.join(BACKENDS)}")


def _choose_cuda(device: str) -> Backend:
    if not torch.cuda.is_available():
        raise CrfError(
            "the CRF backend cuda needs a CUDA device, and this machine has none: choose --crf auto"
        )
    from stages.crf.cuda import CudaBackend

    # The labels may be refined on the device though everything else stays on the processor.
    return CudaBackend(resolve_device("cuda" if device == "cpu" else device))


T = TypeVar("T")
K = TypeVar("K")
R = TypeVar("R")
# What `finish` will need of an image, its energies, float32 [label, y, x], and its pixels.
Prepared = tuple[K, Tensor, NDArray[np.uint8]]

# Energies that are gathered for one batch, bytes: twenty images of 320 x 320 and 27 labels.
GATHERED = 2**28


def refine_each(
    backend: Backend,
    items: Iterable[T],
    prepare: Callable[[T], Prepared[K]],
    finish: Callable[[K, Tensor], R],
    settings: CrfSettings,
) -> Iterator[R]:
    """Refine one image after the other, as many at once as suits the backend.

    On the processor every item goes through all three steps in one of the threads. A `BatchBackend`
    is given batches of prepared items, with energies where `place_beside` puts them; the steps
    around it run in threads. Either way only a few items are held at a time. `finish` takes what
    was kept and the posterior, float32 [label, y, x], on the backend's device; what it gives is
    yielded, in the order of the items.
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


def _gather(samples: Iterable[Prepared[K]]) -> Iterator[list[Prepared[K]]]:
    """Gather prepared images until their energies fill a batch."""
    batch, held = [], 0
    for sample in samples:
        batch.append(sample)
        held += sample[1].nbytes
        if held >= GATHERED:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch
