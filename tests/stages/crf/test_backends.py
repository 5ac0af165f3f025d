"""The choice of a backend, and the sentences of those that cannot be had."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.errors import PipelineError, UsageError
from stages.crf import BACKENDS, CrfError, CrfSettings, choose_backend

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
    code = "import sys, stages.crf as c; c.choose_backend('auto'); print('numba' in sys.modules)"
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
