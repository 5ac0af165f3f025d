"""Mean-field inference against a dense float64 reference, and what must hold for any input."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages.crf.mean_field import build_spatial_operator, infer_posterior
from stages.crf.settings import CrfSettings
from tests.stages.crf.reference import infer_reference

Sample = tuple[NDArray[np.float32], NDArray[np.uint8]]


def draw_sample(labels: int, height: int, width: int, seed: int = 0) -> Sample:
    """Draw energies and a blotchy image."""
    generator = np.random.default_rng(seed)
    unary = generator.gamma(2.0, 1.0, (labels, height, width)).astype(np.float32)
    image = 40 * generator.integers(0, 3, (height, width, 1)) + generator.integers(
        0, 8, (height, width, 3)
    )
    return unary, image.astype(np.uint8)


@pytest.mark.parametrize("labels", [1, 2, 3, 5, 8])
def test_equals_the_dense_reference(labels: int) -> None:
    unary, image = draw_sample(labels, 6, 7, seed=labels)
    # Widths that put no pixel on the border of a simplex, where float32 and float64 may differ.
    crf = CrfSettings(spatial_sxy=1.03, bilateral_sxy=4.1, bilateral_srgb=3.3)
    np.testing.assert_allclose(
        infer_posterior(unary, image, crf), infer_reference(unary, image, crf), atol=2e-5
    )


def test_default_kernels_equal_the_dense_reference() -> None:
    unary, image = draw_sample(4, 6, 7)
    np.testing.assert_allclose(
        infer_posterior(unary, image, CrfSettings()),
        infer_reference(unary, image, CrfSettings()),
        atol=2e-5,
    )


def test_constant_image_equals_the_dense_reference() -> None:
    unary, _ = draw_sample(3, 5, 8)
    image = np.full((5, 8, 3), 128, np.uint8)
    np.testing.assert_allclose(
        infer_posterior(unary, image, CrfSettings()),
        infer_reference(unary, image, CrfSettings()),
        atol=2e-5,
    )


def test_no_iterations_give_the_softmax_of_the_unary() -> None:
    unary, image = draw_sample(5, 4, 9)
    expected = np.exp(-unary.astype(np.float64))
    expected /= expected.sum(axis=0)
    found = infer_posterior(unary, image, CrfSettings(iterations=0))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_one_pixel_by_hand() -> None:
    # Alone, a pixel's normalised kernels are 1: Q = softmax(-U + (3 + 4) Q), step by step.
    unary = np.array([0.2, 0.5], np.float32).reshape(2, 1, 1)
    energies = np.array([0.2, 0.5])
    posterior = np.exp(-energies) / np.exp(-energies).sum()
    for _ in range(10):
        logits = -energies + 7.0 * posterior
        posterior = np.exp(logits) / np.exp(logits).sum()
    found = infer_posterior(unary, np.zeros((1, 1, 3), np.uint8), CrfSettings())
    np.testing.assert_allclose(found.ravel(), posterior, atol=1e-6)


def test_labels_do_not_cross_a_colour_edge() -> None:
    image = np.zeros((20, 20, 3), np.uint8)
    image[:, 10:] = 200
    truth = (np.arange(20) >= 10).astype(int)
    unary = np.full((2, 20, 20), 0.6, np.float32)
    unary[truth, :, np.arange(20)] = 0.4
    wrong = np.random.default_rng(0).random((20, 20)) < 0.2
    unary[:, wrong] = unary[::-1, wrong]
    labels = infer_posterior(unary, image, CrfSettings()).argmax(axis=0)
    assert (labels == truth).all()


@settings(deadline=None, max_examples=40)
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
    posterior = infer_posterior(scale * unary, image, crf)
    assert posterior.dtype == np.float32 and posterior.shape == unary.shape
    assert posterior.min() >= 0.0
    np.testing.assert_allclose(posterior.sum(axis=0), 1.0, atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(6)), st.integers(0, 2**32 - 1))
def test_permuted_labels_give_permuted_posteriors(order: list[int], seed: int) -> None:
    unary, image = draw_sample(6, 9, 11, seed)
    plain = infer_posterior(unary, image, CrfSettings())
    permuted = infer_posterior(unary[order], image, CrfSettings())
    np.testing.assert_allclose(permuted, plain[order], atol=1e-4)


def test_a_constant_added_to_a_pixel_changes_nothing() -> None:
    unary, image = draw_sample(3, 8, 8)
    shift = np.random.default_rng(1).integers(-64, 64, (8, 8)).astype(np.float32)
    np.testing.assert_allclose(
        infer_posterior(unary + shift, image, CrfSettings()),
        infer_posterior(unary, image, CrfSettings()),
        atol=1e-4,
    )


def test_kernels_narrower_than_a_pixel_leave_every_pixel_to_itself() -> None:
    unary, _ = draw_sample(3, 6, 6)
    image = np.arange(6 * 6 * 3, dtype=np.uint8).reshape(6, 6, 3)
    narrow = CrfSettings(spatial_sxy=1e-9, bilateral_sxy=1e-9, bilateral_srgb=1e-9)
    alone = np.stack(
        [
            infer_posterior(unary[:, y : y + 1, x : x + 1], image[y : y + 1, x : x + 1], narrow)
            for y in range(6)
            for x in range(6)
        ]
    )
    found = infer_posterior(unary, image, narrow)
    np.testing.assert_allclose(found.reshape(3, -1), alone.reshape(36, 3).T, atol=1e-4)


@pytest.mark.filterwarnings("error")
def test_huge_energies_forbid_a_label() -> None:
    unary, image = draw_sample(3, 5, 5)
    unary[0] = 3e38
    unary[1, 2, 2] = -3e38
    posterior = infer_posterior(unary, image, CrfSettings())
    assert (posterior[0] == 0.0).all()
    assert posterior[1, 2, 2] == 1.0


def test_inputs_of_any_layout_are_read_and_not_changed() -> None:
    unary, image = draw_sample(4, 10, 12)
    expected = infer_posterior(unary, image, CrfSettings())
    strided = np.ascontiguousarray(unary.transpose(2, 0, 1)).transpose(1, 2, 0)
    flipped = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
    strided.setflags(write=False)
    flipped.setflags(write=False)
    assert (infer_posterior(strided, flipped, CrfSettings()) == expected).all()


def test_threads_give_the_bytes_of_a_serial_run() -> None:
    def refine(sample: Sample) -> bytes:
        unary, image = sample
        return infer_posterior(unary, image, CrfSettings()).tobytes()

    samples = [draw_sample(3 + seed % 4, 40, 30 + seed % 3, seed) for seed in range(16)]
    serial = [refine(sample) for sample in samples]
    build_spatial_operator.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(refine, samples)) == serial


def test_the_spatial_operator_is_kept_and_unchanged() -> None:
    build_spatial_operator.cache_clear()
    unary, image = draw_sample(3, 17, 19)
    first = infer_posterior(unary, image, CrfSettings())
    second = infer_posterior(unary, image, CrfSettings())
    assert build_spatial_operator.cache_info().misses == 1
    assert first.tobytes() == second.tobytes()
