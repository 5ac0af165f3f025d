"""Kernels compile wherever the package lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest

from pipeline import compilation


def test_a_place_that_cannot_be_written_compiles_without_a_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def refuse_cache(*, nogil: bool, error_model: str, cache: bool = False) -> Callable[..., Any]:
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return numba.njit(nogil=nogil, error_model=error_model)  # type: ignore[no-any-return]

    monkeypatch.setattr(compilation, "njit", refuse_cache)

    @compilation.compile_kernel
    def double(values: np.ndarray) -> np.ndarray:
        return 2 * values

    assert asked == [True, False]
    assert double(np.array([1.5])).tolist() == [3.0]
