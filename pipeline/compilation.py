"""How loops over arrays are compiled: at first use, without a compiler, for any thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compile_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of arrays to machine code that holds no interpreter lock.

    The code is kept on disk beside the module, or in the user's cache where that is read-only.
    Strict floating-point rules hold, so that the same image gives the same bytes everywhere; a
    division by 0 gives infinity, as in numpy, and no test for it.

    Parameters
    ----------
    function : callable
        Arrays, scalars and tuples of these in; no Python objects.

    Returns
    -------
    callable
        The compiled function; it may run in many threads at once.
    """
    try:
        kernel: Callable[..., Any] = njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:
        # Neither the package nor the user's home can be written: every process compiles anew.
        kernel = njit(nogil=True, error_model="numpy")(function)
    return kernel
