"""Images refined one after the other: each backend's way gives the same, in order."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stages.crf import batches
from stages.crf.batches import place_beside, refine_each
from stages.crf.inputs import CrfError
from stages.crf.settings import CrfSettings

Arrays = NDArray[np.uint8]


class Single:
    """Refines by adding 1."""

    name = "single"

    def refine(
        self, unary: NDArray[np.float32], image: Arrays, settings: CrfSettings
    ) -> NDArray[np.float32]:
        if image[0, 0, 0] == 255:
            raise CrfError("white")
        return np.asarray(unary + 1)


class Batched(Single):
    """The same on a device."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def refine_batch(
        self, unaries: Sequence[torch.Tensor], images: Sequence[Arrays], settings: CrfSettings
    ) -> list[torch.Tensor]:
        self.sizes.append(len(unaries))
        pairs = zip(unaries, images, strict=True)
        return [torch.from_numpy(self.refine(u.numpy(), i, settings)) for u, i in pairs]


def prepare(number: int) -> tuple[int, torch.Tensor, Arrays]:
    return 10 * number, torch.full((2, 1, 1), float(number)), np.full((1, 1, 3), number, np.uint8)


def finish(kept: int, posterior: torch.Tensor) -> tuple[int, float]:
    return kept, float(posterior[0, 0, 0])


@pytest.mark.parametrize("backend", [Single(), Batched()])
def test_every_item_comes_back_in_order(backend: Single) -> None:
    found = refine_each(backend, range(50), prepare, finish, CrfSettings())
    assert list(found) == [(10 * number, number + 1.0) for number in range(50)]


def test_a_device_is_given_as_many_as_fill_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Batched()
    monkeypatch.setattr(batches, "GATHERED", 3 * 2 * 4)  # three images of two float32
    list(refine_each(backend, range(8), prepare, finish, CrfSettings()))
    assert backend.sizes == [3, 3, 2]


@pytest.mark.parametrize("backend", [Single(), Batched()])
def test_only_a_few_items_are_taken_before_they_are_needed(
    backend: Single, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(batches, "GATHERED", 4 * 2 * 4)
    taken: list[int] = []

    def items() -> range:
        for number in range(100):
            taken.append(number)
            yield number

    results = refine_each(backend, items(), prepare, finish, CrfSettings())
    next(results)
    assert len(taken) <= 4 + 2 + 2
    results.close()


@pytest.mark.parametrize("backend", [Single(), Batched()])
def test_an_error_is_raised_where_it_happened(backend: Single) -> None:
    with pytest.raises(CrfError, match="white"):
        list(refine_each(backend, [1, 255, 2], prepare, finish, CrfSettings()))


def test_on_the_processor_all_steps_of_an_item_run_in_one_thread() -> None:
    threads: dict[int, int] = {}

    def begin(number: int) -> tuple[int, torch.Tensor, Arrays]:
        threads[number] = threading.get_ident()
        return number, *prepare(number)[1:]

    def end(number: int, posterior: torch.Tensor) -> bool:
        return threads[number] == threading.get_ident() != threading.main_thread().ident

    assert all(refine_each(Single(), range(20), begin, end, CrfSettings()))


def test_energies_are_moved_to_the_backend() -> None:
    backend = Batched()
    backend.device = torch.device("meta")
    assert place_beside(torch.zeros(1), backend).device.type == "meta"
    assert place_beside(torch.zeros(1), Single()).device.type == "cpu"
    assert place_beside(torch.zeros(1), None).device.type == "cpu"
