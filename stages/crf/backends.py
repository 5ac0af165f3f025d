"""Who computes the dense CRF: the choice of a backend by its name."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from stages.crf.inputs import check_inputs
from stages.crf.settings import CrfSettings

BACKENDS = ("auto", "numba", "pydensecrf", "none")


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


def choose_backend(name: str) -> Backend | None:
    """Choose the backend of the dense CRF.

    Parameters
    ----------
    name : str
        One of `BACKENDS`: "auto" takes the project's own.

    Returns
    -------
    Backend or None
        None for "none": the labels stay as they are.

    Raises
    ------
    UsageError
        No backend has this name.
    CrfError
        The backend is not installed.
    """
    if name == "none":
        return None
    if name in ("auto", "numba"):
        return NumbaBackend()
    if name == "pydensecrf":
        from stages.crf.oracle import PydensecrfBackend

        return PydensecrfBackend()
    raise UsageError(f"no CRF backend is called {name!r}: choose one of {', '.join(BACKENDS)}")
