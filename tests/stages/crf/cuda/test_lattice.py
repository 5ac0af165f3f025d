"""The batch's lattice against dense float64 matrices.

Simplices and barycentric weights against the float64 reference, and by hand.

Packed keys: no two vertices alike, neighbours a constant apart, any number of words.

The torch sweeps against loops in numpy.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages.crf.cuda.backend import choose_passes
from stages.crf.cuda.lattice import (
    KEY_BITS,
    TORCH_PASSES,
    Lattice,
    Message,
    Simplices,
    build_lattice,
    embed_features,
    filter_values,
    fold_words,
    look_up,
    plan_keys,
)
from stages.crf.definition import CrfError
from tests.stages.crf.reference import find_simplex, kernel_matrix

Features = NDArray[np.float32]


def build(features: Features, images: int = 1) -> Lattice:
    """Build the lattice of features [pixel, dimension], 0 or more."""
    columns = torch.from_numpy(np.ascontiguousarray(features.T, np.float32))
    return build_lattice(columns, features.max(axis=0).tolist(), images, TORCH_PASSES)


def lattice_matrix(lattice: Lattice) -> NDArray[np.float32]:
    """Give the kernel matrix by filtering unit impulses."""
    pixels = len(lattice.vertices)
    buffers = (lattice.allocate_values(1, pixels), lattice.allocate_values(1, pixels))
    values = filter_values(TORCH_PASSES, lattice, torch.eye(pixels)[None], buffers)[0]
    sliced = torch.einsum("pc,pcl->pl", lattice.weights, values[lattice.vertices.long()])
    return sliced.numpy()


def draw_features(dimension: int, spread: float, pixels: int = 60) -> Features:
    features = np.random.default_rng(dimension).normal(0.0, spread, (pixels, dimension))
    return (features - features.min(axis=0)).astype(np.float32)


@pytest.mark.parametrize("dimension", [1, 2, 3, 5])
@pytest.mark.parametrize("spread", [0.3, 1.5, 10.0])
def test_filter_equals_dense_matrices(dimension: int, spread: float) -> None:
    features = draw_features(dimension, spread)
    np.testing.assert_allclose(
        lattice_matrix(build(features)), kernel_matrix(features.astype(np.float64)), atol=1e-5
    )


def test_images_share_no_vertex() -> None:
    features = draw_features(5, 1.5, 30)
    alone = lattice_matrix(build(features))
    both = lattice_matrix(build(np.concatenate([features, features]), images=2))
    assert both.tobytes() == np.kron(np.eye(2), alone).astype(np.float32).tobytes()


def test_keys_of_several_words_filter_alike() -> None:
    # A far pixel makes every coordinate so wide that five of them need two words.
    features = draw_features(5, 1.5, 40)
    far = np.concatenate([features, [[2.0**16, 0, 2.0**16, 0, 2.0**16]]]).astype(np.float32)
    matrix = lattice_matrix(build(far))
    np.testing.assert_allclose(matrix[:40, :40], lattice_matrix(build(features)), atol=1e-6)
    assert (matrix[40, :40] == 0.0).all() and matrix[40, 40] == pytest.approx(1.0)


def test_six_axes_as_wide_as_float32_allows() -> None:
    signs = np.stack(np.meshgrid(*[[0.0, 1.0]] * 6), axis=-1).reshape(-1, 6)
    lattice = build((1.03e5 * signs).astype(np.float32))
    np.testing.assert_allclose(lattice_matrix(lattice), np.eye(64), atol=1e-5)


def test_coordinates_beyond_float32_are_refused() -> None:
    with pytest.raises(CrfError, match="too narrow"):
        build(np.array([[0.0, 0.0], [1e9, 0.0]], np.float32))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(1, 30), st.floats(0.01, 50.0), st.integers(0, 2**32 - 1))
@example(6, 6, 39.0, 5)  # its coordinates fill an integer to the last bit
def test_pixels_and_vertices_are_tied_both_ways(
    dimension: int, pixels: int, spread: float, seed: int
) -> None:
    features = np.random.default_rng(seed).normal(0.0, spread, (pixels, dimension))
    lattice = build((features - features.min(axis=0)).astype(np.float32))
    size, vertices = lattice.size, lattice.vertices.numpy()
    counts = lattice.starts.diff()
    owners = np.repeat(np.arange(size), counts)
    pairs = zip(owners, lattice.entries.numpy(), lattice.shares.numpy(), strict=True)
    expected = [
        (vertex, pixel, weight)
        for pixel, (row, weights) in enumerate(zip(vertices, lattice.weights.numpy(), strict=True))
        for vertex, weight in zip(row, weights, strict=True)
    ]
    assert list(pairs) == sorted(expected, key=lambda pair: pair[:2])
    assert counts.min() >= 1
    following, preceding = lattice.neighbours.unbind(dim=1)
    for ahead, back in zip(following.tolist(), preceding.tolist(), strict=True):
        assert all(back[other] == v for v, other in enumerate(ahead) if other < size)
        assert all(ahead[other] == v for v, other in enumerate(back) if other < size)


def test_a_crowd_is_listed() -> None:
    lattice = build(np.zeros((33, 2), np.float32))
    assert lattice.starts.diff().tolist() == [33, 33, 33]
    assert lattice.crowded.tolist() == [0, 1, 2]
    assert len(build(np.zeros((32, 2), np.float32)).crowded) == 0


def list_vertices(simplices: Simplices, pixel: int) -> list[tuple[int, ...]]:
    """List the coordinates of one pixel's vertices, colour by colour."""
    vertex = simplices.origins[:, pixel].long().clone()
    found = []
    for axis in reversed(simplices.axes[:, pixel].tolist()):
        found.append(tuple(vertex.tolist()))
        vertex += 1
        vertex[axis] -= len(vertex)
    return found


@pytest.mark.parametrize("dimension", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("spread", [0.3, 10.0])
def test_equals_the_reference(dimension: int, spread: float) -> None:
    features = np.random.default_rng(dimension).normal(0.0, spread, (dimension, 80))
    simplices = embed_features(torch.from_numpy(features.astype(np.float32)))
    for pixel in range(80):
        vertices, weights = find_simplex(features[:, pixel])
        assert list_vertices(simplices, pixel) == vertices
        np.testing.assert_allclose(simplices.weights[pixel], weights, atol=1e-5)


def test_one_dimension_by_hand() -> None:
    # d = 1: the scale is sqrt(2/3) * 2 / sqrt(2) = 1.1547, cells are 2 wide. 0.5 lies at 0.577,
    # between the vertices (0, 0) and (1, -1): a share of 0.577 goes to the second.
    simplices = embed_features(torch.tensor([[0.0, 0.5]]))
    assert list_vertices(simplices, 0) == list_vertices(simplices, 1) == [(0, 0), (1, -1)]
    torch.testing.assert_close(
        simplices.weights, torch.tensor([[1.0, 0.0], [0.42265, 0.57735]]), atol=1e-5, rtol=0
    )


def test_axes_are_a_permutation_also_where_differentials_are_equal() -> None:
    features = torch.zeros(5, 7)
    features[0] = torch.arange(7) * 3.0
    simplices = embed_features(features)
    assert (simplices.axes.sort(dim=0).values == torch.arange(6)[:, None]).all()
    assert (simplices.origins.sum(dim=0) == 0).all()


def test_a_plan_by_hand() -> None:
    # Two axes, -8..18 and -18..8: 26 steps take 5 bits; the second axis has no place; three images
    # take two bits more.
    plan = plan_keys(np.array([-8, -18]), np.array([18, 8]), 3)
    assert plan.strides.tolist() == [[1, 0, 32]]
    assert plan.offset.tolist() == [-8, -18]
    assert plan.steps.tolist() == [[-1, 1]]


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 22), st.integers(1, 5000))
def test_every_coordinate_has_its_own_bits(dimension: int, bits: int, images: int) -> None:
    highest = np.full(dimension + 1, 2**bits + 4 * (dimension + 1))
    plan = plan_keys(-highest, highest, images)
    spans = [2 ** (bits + 1) + 8 * (dimension + 1)] * dimension + [0, images - 1]
    for word in plan.strides.tolist():
        used = 0
        for stride, span in sorted((s, n) for s, n in zip(word, spans, strict=True) if s):
            assert stride > used, "carries into the next coordinate"
            used += stride * span
        assert used < 2**KEY_BITS
    # One image needs no bits; the last coordinate never does.
    placed = (plan.strides != 0).sum(axis=0)
    assert placed[:dimension].tolist() == [1] * dimension and placed[dimension] == 0
    assert placed[-1] == 1 or images == 1


@pytest.mark.parametrize("count", [1, 2, 3])
def test_words_are_folded_in_order_and_found_again(count: int) -> None:
    words = torch.randint(0, 4, (count, 60), generator=torch.Generator().manual_seed(count))
    words *= 2**61 // 4
    keys, tables = fold_words(words)
    by_words = np.lexsort(words.numpy())
    by_keys = np.argsort(keys.numpy(), kind="stable")
    assert by_words.tolist() == by_keys.tolist()
    distinct = keys.unique()
    assert (distinct[look_up(words, tables, distinct).long()] == keys).all()
    absent = look_up(words + 1, tables, distinct)
    assert absent.dtype == torch.int32 and (absent == len(distinct)).all()


def test_a_pair_whose_words_are_known_apart_is_absent() -> None:
    words = torch.tensor([[1, 2], [5, 6]])
    keys, tables = fold_words(words)
    assert look_up(torch.tensor([[1, 2], [6, 6]]), tables, keys.unique()).tolist() == [2, 1]


def test_a_word_that_is_not_there_is_absent_whatever_it_lies_beside() -> None:
    words = torch.tensor([[1, 3], [5, 6]])
    keys, tables = fold_words(words)
    assert look_up(torch.tensor([[2, 3], [6, 7]]), tables, keys.unique()).tolist() == [2, 2]


LABELS = 8


def make_lattice(pixels: int, images: int = 1) -> Lattice:
    features = 3.0 * torch.rand(2, pixels, generator=torch.Generator().manual_seed(pixels))
    return build_lattice(features, [3.0, 3.0], images, TORCH_PASSES)


def draw(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("images", [1, 3])
def test_splat_sums_the_rows_around_each_vertex(images: int) -> None:
    lattice, source = make_lattice(20), draw(images, 20, LABELS)
    values = lattice.allocate_values(images, LABELS)
    TORCH_PASSES.splat(lattice, source, values)
    expected = np.zeros(values.shape)
    for pixel, (row, weights) in enumerate(zip(lattice.vertices, lattice.weights, strict=True)):
        for vertex, weight in zip(row.tolist(), weights.tolist(), strict=True):
            expected[:, vertex] += weight * source[:, pixel].numpy()
    np.testing.assert_allclose(values, expected, atol=1e-6)


def test_blur_adds_half_of_both_neighbours_and_keeps_the_row_of_none() -> None:
    lattice = make_lattice(20)
    values = lattice.allocate_values(2, LABELS)
    values[:, :-1] = draw(2, lattice.size, LABELS)
    blurred = torch.zeros_like(values)
    TORCH_PASSES.blur(lattice, 1, values, blurred)
    following, preceding = lattice.neighbours[1].long()
    expected = values + 0.5 * torch.nn.functional.pad(
        values[:, following] + values[:, preceding], (0, 0, 0, 1)
    )
    torch.testing.assert_close(blurred, expected)
    assert (blurred[:, -1] == 0).all()
    assert (following < lattice.size).any() and (following == lattice.size).any()


def test_update_is_the_softmax_of_energies_and_messages() -> None:
    near, alike = make_lattice(12), make_lattice(24, images=2)
    energies, posterior = 4 * draw(2, 12, LABELS), torch.empty(2, 12, LABELS)
    energies[0, 3, 1:] += 100.0
    messages = (
        Message(near, draw(2, near.size + 1, LABELS), 3.0),
        Message(alike, draw(1, alike.size + 1, LABELS), 4.0),
    )
    TORCH_PASSES.update(energies, *messages, posterior)
    logits = -energies.double()
    for image in range(2):
        for pixel in range(12):
            for lattice, values, place in (
                (near, messages[0].values[image], pixel),
                (alike, messages[1].values[0], 12 * image + pixel),
            ):
                factor = 3.0 if lattice is near else 4.0
                rows = values[lattice.vertices[place].long()]
                logits[image, pixel] += factor * lattice.weights[place] @ rows
    torch.testing.assert_close(posterior, logits.softmax(dim=2).float(), atol=1e-6, rtol=1e-5)
    assert posterior[0, 3].tolist() == [1.0] + [0.0] * (LABELS - 1)


def test_the_processor_has_no_kernels() -> None:
    assert choose_passes(torch.device("cpu")) is TORCH_PASSES
