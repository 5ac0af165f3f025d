"""The choice of a backend, and the sentences of those that cannot be had.

Our dense CRF and pydensecrf's must choose the same labels.

Images refined one after the other: each backend's way gives the same, in order.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from benchmarks.samples import PHOTOGRAPHS, draw_unary, load_square
from pipeline.errors import PipelineError, UsageError
from stages.crf import backends
from stages.crf.backends import choose_backend, place_beside, refine_each
from stages.crf.definition import CrfError
from stages.crf.settings import BACKENDS, CrfSettings

REPOSITORY = Path(__file__).resolve().parents[3]


def test_auto_takes_our_own() -> None:
    backend = choose_backend("auto")
    assert backend is not None and backend.name == "numba"


def test_none_is_no_backend() -> None:
    assert choose_backend("none") is None


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        choose_backend("gpu")
    assert all(name in str(caught.value) for name in ("gpu", *BACKENDS))


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(PipelineError, match=r"pip install 'primaps-pipe\[pydensecrf\]'"):
        choose_backend("pydensecrf")


def test_the_room_is_entered_without_numba() -> None:
    code = "import sys, stages.crf.backends as c; c.choose_backend('auto'); "
    code += "print('numba' in sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "False"


def test_auto_refines() -> None:
    backend = choose_backend("auto")
    assert backend is not None
    unary = np.random.default_rng(0).random((2, 5, 6)).astype(np.float32)
    posterior = backend.refine(unary, np.zeros((5, 6, 3), np.uint8), CrfSettings())
    assert posterior.shape == (2, 5, 6) and posterior.dtype == np.float32


UNARY = np.zeros((2, 4, 5), np.float32)
IMAGE = np.zeros((4, 5, 3), np.uint8)
BROKEN = UNARY.copy()
BROKEN[1, 2, 3] = np.nan
ENDLESS = UNARY.copy()
ENDLESS[0, 0, 0] = np.inf


@pytest.mark.parametrize("name", ["numba", "pydensecrf"])
@pytest.mark.parametrize(
    ("unary", "image", "sentence"),
    [
        (UNARY.astype(np.float64), IMAGE, "must be float32"),
        (UNARY[0], IMAGE, r"\(4, 5\)"),
        (UNARY[:0], IMAGE, r"\(0, 4, 5\)"),
        (UNARY, IMAGE.astype(np.float32), "must be uint8"),
        (UNARY, IMAGE[..., 0], "height, width, 3"),
        (UNARY, IMAGE[:3], "same height and width"),
        (BROKEN, IMAGE, "NaN or infinite"),
        (ENDLESS, IMAGE, "NaN or infinite"),
    ],
)
def test_bad_arrays_are_refused_with_a_sentence(
    name: str, unary: np.ndarray, image: np.ndarray, sentence: str
) -> None:
    if name == "pydensecrf":
        pytest.importorskip("pydensecrf")
    backend = choose_backend(name)
    assert backend is not None
    with pytest.raises(CrfError, match=sentence):
        backend.refine(unary, image, CrfSettings())


@pytest.mark.parametrize(
    "wrong",
    [
        {"iterations": -1},
        {"spatial_sxy": 0.0},
        {"bilateral_sxy": float("nan")},
        {"bilateral_srgb": float("inf")},
        {"bilateral_weight": -1.0},
        {"sxy": 3.0},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        CrfSettings.model_validate(wrong)


pytest.importorskip("pydensecrf", reason="the oracle needs primaps-pipe[pydensecrf]")

SHARPNESS = (0.5, 1.5, 4.0, 20.0)


def measure_agreement(
    unary: NDArray[np.float32], image: NDArray[np.uint8], settings: CrfSettings
) -> float:
    """Give the share of pixels whose likeliest label is the same with both backends."""
    ours, oracle = choose_backend("numba"), choose_backend("pydensecrf")
    assert ours is not None and oracle is not None
    found = ours.refine(unary, image, settings)
    expected = oracle.refine(unary, image, settings)
    changed = (expected.argmax(axis=0) != unary.argmin(axis=0)).mean()
    assert changed > 0.005 or settings.iterations == 0, "a CRF that changes nothing proves nothing"
    return float((found.argmax(axis=0) == expected.argmax(axis=0)).mean())


@pytest.mark.parametrize("labels", [6, 12, 27])
@pytest.mark.parametrize("name", sorted(PHOTOGRAPHS))
def test_photographs_agree(name: str, labels: int) -> None:
    image = load_square(PHOTOGRAPHS[name], 160)
    unary = draw_unary(image, labels, SHARPNESS[labels % 4], seed=labels)
    assert measure_agreement(unary, image, CrfSettings()) >= 0.999


@pytest.mark.parametrize(
    "settings",
    [
        CrfSettings(iterations=0),
        CrfSettings(iterations=1),
        CrfSettings(spatial_weight=0.0),
        CrfSettings(bilateral_weight=0.0),
        CrfSettings(spatial_sxy=5.0, bilateral_sxy=20.0, bilateral_srgb=13.0),
        CrfSettings(spatial_sxy=0.5, bilateral_sxy=200.0, bilateral_srgb=1.0),
        CrfSettings(spatial_weight=20.0, bilateral_weight=30.0),
    ],
)
def test_other_settings_agree(settings: CrfSettings) -> None:
    image = load_square(PHOTOGRAPHS["coffee"], 128)
    unary = draw_unary(image, 5, 1.5, seed=1)
    assert measure_agreement(unary, image, settings) >= 0.999


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (13, 1), (31, 57)])
@pytest.mark.parametrize("labels", [1, 2, 3])
def test_posteriors_agree_on_small_images(shape: tuple[int, int], labels: int) -> None:
    image = load_square(PHOTOGRAPHS["flower"], 64)[: shape[0], : shape[1]]
    unary = draw_unary(image, labels, 1.0, seed=2)
    ours, oracle = choose_backend("numba"), choose_backend("pydensecrf")
    assert ours is not None and oracle is not None
    np.testing.assert_allclose(
        ours.refine(unary, image, CrfSettings()),
        oracle.refine(unary, image, CrfSettings()),
        atol=2e-3,
    )


@pytest.mark.parametrize("labels", [6, 12, 27])
def test_camvid_agrees(shared: Path, labels: int) -> None:
    folder = shared / "datasets/camvid/val"
    paths = sorted(folder.glob("*.png"))[:20]
    assert len(paths) == 20, f"{folder} holds too few images"
    agreements = []
    for seed, path in enumerate(paths):
        image = load_square(path, 320)
        unary = draw_unary(image, labels, SHARPNESS[seed % 4], seed)
        agreements.append(measure_agreement(unary, image, CrfSettings()))
    assert min(agreements) >= 0.999, agreements


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
    monkeypatch.setattr(backends, "GATHERED", 3 * 2 * 4)  # three images of two float32
    list(refine_each(backend, range(8), prepare, finish, CrfSettings()))
    assert backend.sizes == [3, 3, 2]


@pytest.mark.parametrize("backend", [Single(), Batched()])
def test_only_a_few_items_are_taken_before_they_are_needed(
    backend: Single, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(backends, "GATHERED", 4 * 2 * 4)
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
