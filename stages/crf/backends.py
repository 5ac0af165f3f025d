"""Who computes the dense CRF: the choice of a backend by its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipeline.devices import resolve_device
from pipeline.errors import UsageError
from stages.crf.inputs import CrfError, check_inputs
from stages.crf.settings import CrfSettings

if TYPE_CHECKING:
    import torch

BACKENDS = ("auto", "numba", "cuda", "pydensecrf", "none")


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
    """A backend that is fastest when it is given many images at once.

    Attributes
    ----------
    device : torch.device
        Where it computes.
    """

    device: torch.device

    def refine_batch(
        self,
        unaries: Sequence[torch.Tensor],
        images: Sequence[NDArray[np.uint8]],
        settings: CrfSettings,
    ) -> list[torch.Tensor]:
        """Infer the posteriors of many images.

        Parameters
        ----------
        unaries : sequence of float32 [label, y, x]
            Energies, as in `refine`, on any device; sizes and numbers of labels may differ.
        images : sequence of uint8 [y, x, rgb]
            The images.
        settings : CrfSettings
            Kernels and iterations.

        Returns
        -------
        list of float32 [label, y, x]
            Probabilities, in the order of the images, still on the device: who wants labels alone
            takes them there.

        Raises
        ------
        CrfError
            As in `refine`; or the device's memory does not hold a batch.
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
    """Choose the backend of the dense CRF.

    Parameters
    ----------
    name : str
        One of `BACKENDS`: "auto" takes the project's own for the device.
    device : str
        Where the stage computes, as `pipeline.devices.resolve_device` takes it.

    Returns
    -------
    Backend or None
        None for "none": the labels stay as they are.

    Raises
    ------
    UsageError
        No backend has this name, or there is no such device.
    CrfError
        The backend is not installed, or has no device to run on.
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
        from stages.crf.oracle import PydensecrfBackend

        return PydensecrfBackend()
    raise UsageError(f"no CRF backend is called {name!r}: choose one of {', '.join(BACKENDS)}")


def _choose_cuda(device: str) -> Backend:
    import torch

    if not torch.cuda.is_available():
        raise CrfError(
            "the CRF backend cuda needs a CUDA device, and this machine has none: choose --crf auto"
        )
    from stages.crf.cuda import CudaBackend

    # The labels may be refined on the device though everything else stays on the processor.
    chosen = resolve_device("cuda" if device == "cpu" else device)
    return CudaBackend(chosen)
