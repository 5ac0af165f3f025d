"""How batches reach the compiled loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.em.compiled import NEVER, map_windows, pad_classes, runs_compiled


def test_only_float32_on_the_processor_is_compiled() -> None:
    assert runs_compiled(torch.zeros(1))
    assert not runs_compiled(torch.zeros(1, dtype=torch.float64))
    assert not runs_compiled(torch.zeros(1, device="meta"))


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_classes_are_padded_to_an_even_number(classes: int) -> None:
    logits = torch.randn(2, 3, 4, classes).permute(0, 3, 1, 2)
    padded = pad_classes(logits)
    assert padded.flags.c_contiguous
    assert padded.shape == (2, classes + classes % 2, 3, 4)
    np.testing.assert_array_equal(padded[:, :classes], logits)
    assert (padded[:, classes:] == NEVER).all()


@pytest.mark.parametrize("threads", ["1", "2", "3", "7"])
@pytest.mark.parametrize("windows", [1, 2, 5, 8])
def test_every_window_once(monkeypatch: pytest.MonkeyPatch, threads: str, windows: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    visits = np.zeros(windows, int)
    runs = []

    def visit(run: slice) -> None:
        visits[run] += 1
        runs.append(run)

    map_windows(visit, windows)
    assert visits.tolist() == [1] * windows
    assert len(runs) == min(int(threads), windows)


def test_an_error_in_a_thread_is_raised() -> None:
    def fail(run: slice) -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        map_windows(fail, 3)
