"""Mean-field inference against a dense float64 reference, and what must hold for any input.

Rows of labels: their length and layout, and vertices that are set before they are added to.

The exponential and the softmax of the mean-field update.

The spatial stencil against the lattice that it multiplies out.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import softmax

from stages.crf.lattice import build_lattice
from stages.crf.mean_field import (
    BAND,
    REACH,
    arrange_logits,
    build_spatial_operator,
    choose_row,
    collect_labels,
    compile_rows,
    exponentiate,
    gather_band,
    infer_posterior,
    multiply_out,
    normalise,
    pad_labels,
    spatial_features,
)
from stages.crf.settings import CrfSettings
from stages.crf.vectors import compile_kernel, load, store, zeros
from tests.stages.crf.reference import infer_reference, kernel_matrix

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


@given(st.integers(1, 2000))
def test_rows_hold_all_labels_in_whole_registers(labels: int) -> None:
    lanes = pad_labels(labels)
    assert labels <= lanes < max(9, 2 * labels)
    assert lanes % 8 == 0 and lanes.bit_count() == 1


def test_one_length_is_compiled_once() -> None:
    assert compile_rows(16) is compile_rows(16)


@pytest.mark.parametrize("pixels", [1, 255, 257, 600])
def test_logits_are_the_lowest_energy_less_each(pixels: int) -> None:
    unary = np.random.default_rng(0).normal(0, 5, (3, pixels)).astype(np.float32)
    unary[1, 0] = 3e38
    logits = np.full((pixels, 8), np.nan, np.float32)
    arrange_logits(unary, logits)
    assert logits[0, 1] == np.float32(-1e30)
    assert (logits[:, 3:] == np.float32(-1e30)).all()
    assert (logits.max(axis=1) == 0).all()
    np.testing.assert_array_equal(logits[1:, :3], (unary.min(axis=0) - unary).T[1:])


def test_planes_are_collected_without_the_border() -> None:
    posterior = np.random.default_rng(0).random((5 + 2 * REACH, 4 + 2 * REACH, 8))
    planes = np.empty((3, 5, 4), np.float32)
    collect_labels(posterior.astype(np.float32), planes)
    inner = posterior.astype(np.float32)[REACH:-REACH, REACH:-REACH, :3]
    np.testing.assert_array_equal(planes, inner.transpose(2, 0, 1))


def test_splat_sets_new_rows_and_adds_to_known_ones() -> None:
    # Two pixels that share vertex 1; the rows hold rubbish before.
    corners = (
        np.array([[0, 1], [1, 2]], np.int32),
        np.array([[0.25, 0.75], [0.5, 0.5]], np.float32),
    )
    posterior = np.zeros((1 + 2 * REACH, 2 + 2 * REACH, 8), np.float32)
    posterior[REACH, REACH] = 1.0
    posterior[REACH, REACH + 1] = 10.0
    values = np.full((4, 8), np.nan, np.float32)
    values[-1] = 0.0
    compile_rows(8).splat(corners, posterior, values)
    assert values[:, 0].tolist() == [0.25, 5.75, 5.0, 0.0]


def test_blur_by_hand() -> None:
    # One axis with the runs 2-0-1 and 4-3; vertex 5 is alone.
    chains = np.array([2, 0, -2, 4, -4], np.int32)
    axes = np.array([0, 5], np.int64)
    values = np.zeros((7, 8), np.float32)
    values[:6] = np.arange(1, 7, dtype=np.float32)[:, None]
    compile_rows(8).blur(chains, axes, values)
    # v + (before + after) / 2, with the values before the blur on both sides.
    assert values[:, 7].tolist() == [
        1 + (3 + 2) / 2,
        2 + 1 / 2,
        3 + 1 / 2,
        4 + 5 / 2,
        5 + 4 / 2,
        6,
        0,
    ]


@compile_kernel
def exponentiate_all(numbers: NDArray[np.float32]) -> None:
    for first in range(0, len(numbers), 8):
        store(numbers, first, exponentiate(load(numbers, first, zeros(8))))


def normalise_rows(logits: NDArray[np.float32]) -> None:
    labels = logits.shape[1]

    def kernel(rows: NDArray[np.float32]) -> None:
        for row in range(len(rows)):
            store(rows, row * labels, normalise(load(rows, row * labels, zeros(labels))))

    compile_kernel(kernel)(logits)


def test_exponential_is_within_an_ulp_and_a_half() -> None:
    exponents = -np.linspace(0.0, 39.9, 200_000, dtype=np.float32)
    expected = np.exp(exponents.astype(np.float64))
    found = exponents.copy()
    exponentiate_all(found)
    assert np.abs(found / expected - 1.0).max() < 1.5 * 2.0**-23
    assert found[0] == 1.0


def test_exponential_of_the_negligible_is_zero() -> None:
    found = np.array([-40.0, -87.0, -104.0, -1e30, -np.inf, -41.0, -40.5, -3e38], np.float32)
    exponentiate_all(found)
    assert (found == 0.0).all()


@pytest.mark.parametrize("labels", [8, 16, 24, 32, 48])
def test_rows_become_their_softmax(labels: int) -> None:
    logits = np.random.default_rng(0).normal(0.0, 8.0, (67, labels)).astype(np.float32)
    expected = softmax(logits.astype(np.float64), axis=1)
    normalise_rows(logits)
    np.testing.assert_allclose(logits, expected, atol=3e-7)


def test_the_largest_logit_may_be_anywhere_and_of_any_size() -> None:
    logits = np.full((16, 16), -1e30, np.float32)
    np.fill_diagonal(logits, 1e4)
    normalise_rows(logits)
    assert (logits == np.eye(16)).all()


@compile_kernel
def gather(posterior: NDArray[np.float32], stencil: NDArray[np.float32], y: int, band) -> None:
    gather_band(posterior, stencil, y, band, zeros(8))


def send_messages(
    posterior: NDArray[np.float32], stencil: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Gather the messages [y, x, label] of a posterior [y, x, label], band by band."""
    height, width, labels = posterior.shape
    padded = np.zeros((height + 2 * REACH, width + 2 * REACH, pad_labels(labels)), np.float32)
    padded[REACH:-REACH, REACH:-REACH, :labels] = posterior
    messages = np.zeros((-(-height // BAND), BAND, width, pad_labels(labels)), np.float32)
    for band, rows in enumerate(messages):
        gather(padded, stencil, band * BAND, rows)
    return messages.reshape(-1, *messages.shape[2:])[:height, :, :labels]


@pytest.mark.parametrize("height", [1, 2, 5, 12, 13, 14, 17, 24, 27])
@pytest.mark.parametrize("labels", [1, 24])
def test_equals_the_dense_matrix_at_any_height(height: int, labels: int) -> None:
    width = 9
    rows, columns = np.indices((height, width)).reshape(2, -1)
    matrix = kernel_matrix(np.stack([columns, rows], axis=1).astype(np.float64))
    posterior = np.random.default_rng(height).random((height, width, labels)).astype(np.float32)
    found = send_messages(posterior, build_spatial_operator(height, width, 1.0))
    expected = (matrix @ posterior.reshape(-1, labels)).reshape(posterior.shape)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_row_far_from_the_borders_repeats() -> None:
    lattice = build_lattice(spatial_features(30, 40, 1.0))
    stencil = multiply_out(lattice, 30, 40)
    np.testing.assert_allclose(
        stencil[6:-6], np.broadcast_to(stencil[14], (18, 40, 7, 7)), atol=1e-6
    )
    assert np.abs(stencil[5] - stencil[14]).max() > 1e-6


def test_no_weight_stands_outside_the_stencil() -> None:
    # A stencil's messages add up to those of the lattice, whose kernel may not reach further.
    lattice = build_lattice(spatial_features(20, 21, 1.0))
    stencil = multiply_out(lattice, 20, 21)
    assert (stencil[:, :, [0, 0, 1, 1, 5, 5, 6, 6], [0, 6, 0, 6, 0, 6, 0, 6]] == 0.0).all()
    assert (np.abs(stencil) > 0).any(axis=(0, 1)).sum() == 41


def test_rows_are_counted_from_the_nearer_border() -> None:
    assert [choose_row(y, 20, 13) for y in range(20)] == [
        *range(6),
        *[6] * 8,
        *range(7, 13),
    ]
    assert [choose_row(y, 9, 9) for y in range(9)] == list(range(9))
