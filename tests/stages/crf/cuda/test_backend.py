"""The backend `cuda` on torch's processor device: all of it but the kernels.

Batched inference against the dense float64 reference.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages.crf.backends import BatchBackend, choose_backend
from stages.crf.cuda import CudaBackend, backend
from stages.crf.cuda.backend import (
    arrange_energies,
    build_spatial_lattice,
    infer_posteriors,
    stack_unaries,
)
from stages.crf.cuda.lattice import TORCH_PASSES
from stages.crf.definition import CrfError
from stages.crf.settings import CrfSettings
from tests.stages.crf.cuda.samples import Sample, draw_photograph, draw_sample
from tests.stages.crf.reference import infer_reference

CUDA = torch.cuda.is_available()
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not CUDA, reason="no CUDA"))]


def refine(
    samples: list[Sample], crf: CrfSettings | None = None, device: str = "cpu"
) -> list[NDArray[np.float32]]:
    unaries = [torch.from_numpy(unary) for unary, _ in samples]
    images = [image for _, image in samples]
    found = CudaBackend(device).refine_batch(unaries, images, crf or CrfSettings())
    return [posterior.cpu().numpy() for posterior in found]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("labels", [2, 6, 27])
def test_labels_equal_those_of_the_processor(labels: int, device: str) -> None:
    oracle = choose_backend("numba")
    assert oracle is not None
    samples = [draw_photograph(labels, 96, 120, seed) for seed in range(3)]
    for (unary, image), posterior in zip(samples, refine(samples, device=device), strict=True):
        expected = oracle.refine(unary, image, CrfSettings())
        assert (posterior.argmax(axis=0) == expected.argmax(axis=0)).mean() >= 0.9999
        np.testing.assert_allclose(posterior, expected, atol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "crf",
    [
        CrfSettings(spatial_sxy=1e-9, bilateral_sxy=1e-9, bilateral_srgb=1e-9),
        CrfSettings(spatial_sxy=0.3, bilateral_sxy=2.0, bilateral_srgb=0.1),
        CrfSettings(spatial_sxy=7.5, bilateral_sxy=300.0, bilateral_srgb=80.0),
    ],
)
def test_any_widths_equal_the_processor(crf: CrfSettings, device: str) -> None:
    oracle = choose_backend("numba")
    assert oracle is not None
    unary, image = draw_photograph(5, 40, 50)
    (posterior,) = refine([(unary, image)], crf, device)
    np.testing.assert_allclose(posterior, oracle.refine(unary, image, crf), atol=1e-4)


MIXED = [
    draw_photograph(6, 30, 40, seed=1),
    draw_sample(3, 30, 40, seed=2),
    draw_photograph(8, 30, 40, seed=3),
    draw_photograph(12, 30, 40, seed=4),
    draw_sample(1, 30, 40, seed=5),
    draw_sample(2, 1, 1, seed=6),
    draw_sample(5, 1, 17, seed=7),
    draw_photograph(4, 40, 30, seed=8),
]


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_gives_the_bytes_of_each_alone(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = refine(MIXED, device=device)
    alone = [refine([sample], device=device)[0] for sample in MIXED]
    assert [each.shape for each in together] == [unary.shape for unary, _ in MIXED]
    assert [each.tobytes() for each in together] == [each.tobytes() for each in alone]
    monkeypatch.setattr(backend, "MOST_PIXELS", 2 * 30 * 40)
    assert [each.tobytes() for each in refine(MIXED, device=device)] == [
        each.tobytes() for each in together
    ]


@pytest.mark.parametrize("device", DEVICES)
def test_again_gives_the_same_bytes(device: str) -> None:
    first, second = refine(MIXED, device=device), refine(MIXED, device=device)
    assert [each.tobytes() for each in first] == [each.tobytes() for each in second]


def test_an_empty_batch_is_empty() -> None:
    assert refine([]) == []


def test_one_pixel_by_hand() -> None:
    # Alone, a pixel's normalised kernels are 1: Q = softmax(-U + (3 + 4) Q), step by step.
    energies = np.array([0.2, 0.5])
    posterior = np.exp(-energies) / np.exp(-energies).sum()
    for _ in range(10):
        logits = -energies + 7.0 * posterior
        posterior = np.exp(logits) / np.exp(logits).sum()
    unary = energies.astype(np.float32).reshape(2, 1, 1)
    (found,) = refine([(unary, np.zeros((1, 1, 3), np.uint8))])
    np.testing.assert_allclose(found.ravel(), posterior, atol=1e-6)


def test_one_label_is_certain() -> None:
    (found,) = refine([draw_sample(1, 5, 6)])
    assert (found == 1.0).all()


def test_huge_energies_forbid_a_label() -> None:
    unary, image = draw_sample(3, 5, 5)
    unary[0] = 3e38
    unary[1, 2, 2] = -3e38
    (posterior,) = refine([(unary, image)])
    assert (posterior[0] == 0.0).all()
    assert posterior[1, 2, 2] == 1.0


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 9),
    st.integers(1, 12),
    st.integers(1, 12),
    st.floats(1e-6, 1e6),
    st.floats(1e-6, 1e6),
    st.floats(1e-3, 1e4),
    st.integers(0, 2**32 - 1),
)
def test_posteriors_sum_to_one_for_any_size_and_width(
    labels: int, height: int, width: int, sxy: float, srgb: float, scale: float, seed: int
) -> None:
    unary, image = draw_sample(labels, height, width, seed)
    crf = CrfSettings(spatial_sxy=sxy, bilateral_sxy=sxy, bilateral_srgb=srgb, iterations=3)
    (posterior,) = refine([(scale * unary, image)], crf)
    assert posterior.dtype == np.float32 and posterior.min() >= 0.0
    np.testing.assert_allclose(posterior.sum(axis=0), 1.0, atol=1e-5)


@pytest.mark.filterwarnings("error")
def test_inputs_of_any_layout_are_read_and_not_changed() -> None:
    unary, image = draw_sample(4, 10, 12)
    cuda = CudaBackend("cpu")
    expected = cuda.refine(unary, image, CrfSettings())
    strided = np.ascontiguousarray(unary.transpose(2, 0, 1)).transpose(1, 2, 0)
    flipped = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
    backwards = np.ascontiguousarray(unary[:, ::-1])[:, ::-1]
    for array in (strided, flipped, backwards):
        array.setflags(write=False)
    assert (cuda.refine(strided, flipped, CrfSettings()) == expected).all()
    assert (cuda.refine(backwards, flipped, CrfSettings()) == expected).all()
    assert expected.flags.c_contiguous


BAD = draw_sample(2, 4, 5)
BROKEN, ENDLESS = BAD[0].copy(), BAD[0].copy()
BROKEN[1, 2, 3] = np.nan
ENDLESS[0, 0, 0] = np.inf


@pytest.mark.parametrize(
    ("unary", "image", "sentence"),
    [
        (BAD[0].astype(np.float64), BAD[1], "must be float32"),
        (BAD[0][0], BAD[1], r"\(4, 5\)"),
        (BAD[0][:0], BAD[1], r"\(0, 4, 5\)"),
        (BAD[0], BAD[1].astype(np.float32), "must be uint8"),
        (BAD[0], BAD[1][:3], "same height and width"),
        (BROKEN, BAD[1], "NaN or infinite"),
        (ENDLESS, BAD[1], "NaN or infinite"),
    ],
)
def test_bad_arrays_are_refused_with_a_sentence(
    unary: np.ndarray, image: np.ndarray, sentence: str
) -> None:
    with pytest.raises(CrfError, match=sentence):
        refine([draw_sample(2, 4, 5, seed=1), (unary, image)])
    with pytest.raises(CrfError, match=sentence):
        CudaBackend("cpu").refine(unary, image, CrfSettings())


def test_a_full_device_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr(backend, "infer_posteriors", fill)
    with pytest.raises(CrfError, match=r"1 images of 5 x 4 pixels .* choose --crf numba"):
        refine([BAD])


def test_the_choice_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    names = {}
    for device in ("auto", "cpu", "cuda", "cuda:1"):
        chosen = choose_backend("auto", device)
        assert chosen is not None
        names[device] = chosen.name, str(getattr(chosen, "device", "cpu"))
    assert names == {
        "auto": ("cuda", "cuda"),
        "cpu": ("numba", "cpu"),
        "cuda": ("cuda", "cuda"),
        "cuda:1": ("cuda", "cuda:1"),
    }
    asked = choose_backend("cuda", "cpu")
    assert isinstance(asked, BatchBackend) and str(asked.device) == "cuda"


def test_without_a_device_cuda_is_refused_and_auto_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CrfError, match="needs a CUDA device, and this machine has none"):
        choose_backend("cuda", "auto")
    chosen = choose_backend("auto", "auto")
    assert chosen is not None and chosen.name == "numba"
    assert not isinstance(chosen, BatchBackend)


def test_a_device_without_triton_is_served_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "stages.crf.cuda.kernels", raising=False)
    assert backend.choose_passes(torch.device("cuda")) is TORCH_PASSES


CPU = torch.device("cpu")


def infer(samples: list[Sample], settings: CrfSettings) -> list[NDArray[np.float32]]:
    stacked = stack_unaries([torch.from_numpy(unary) for unary, _ in samples], 8, CPU)
    images = torch.from_numpy(np.stack([image for _, image in samples]))
    found = infer_posteriors(arrange_energies(stacked), images, settings, TORCH_PASSES).numpy()
    return [
        row[:, : len(unary)].T.reshape(unary.shape)
        for row, (unary, _) in zip(found, samples, strict=True)
    ]


@pytest.mark.parametrize(
    "settings",
    [CrfSettings(), CrfSettings(spatial_sxy=1.03, bilateral_sxy=4.1, bilateral_srgb=3.3)],
)
def test_equals_the_dense_reference(settings: CrfSettings) -> None:
    samples = [draw_sample(labels, 6, 7, seed=labels) for labels in (1, 3, 8)]
    for (unary, image), posterior in zip(samples, infer(samples, settings), strict=True):
        np.testing.assert_allclose(posterior, infer_reference(unary, image, settings), atol=2e-5)


def test_no_iterations_give_the_softmax_of_the_unary() -> None:
    unary, image = draw_sample(5, 4, 9)
    expected = np.exp(-unary.astype(np.float64))
    (found,) = infer([(unary, image)], CrfSettings(iterations=0))
    np.testing.assert_allclose(found, expected / expected.sum(axis=0), atol=1e-6)


def test_energies_by_hand() -> None:
    unaries = [torch.tensor([2.0, 5.0]).reshape(2, 1, 1), torch.tensor([[[-3e38]], [[3e38]]])]
    stacked = stack_unaries(unaries, 3, CPU)
    assert stacked.flatten().tolist()[:3] == [2.0, 5.0, torch.inf]
    energies = arrange_energies(stacked)
    assert energies.shape == (2, 1, 3)
    forbidden = float(np.float32(1e30))
    assert energies.flatten().tolist() == [0.0, 3.0, forbidden, 0.0, forbidden, forbidden]


def test_the_spatial_lattice_is_kept_and_unchanged() -> None:
    build_spatial_lattice.cache_clear()
    sample = draw_sample(3, 17, 19)
    first = infer([sample], CrfSettings())[0]
    second = infer([sample], CrfSettings())[0]
    assert build_spatial_lattice.cache_info().misses == 1
    assert first.tobytes() == second.tobytes()
