"""The torch sweeps against loops in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.crf.cuda.backend import choose_passes
from stages.crf.cuda.lattice import build_lattice
from stages.crf.cuda.passes import (
    TORCH_PASSES,
    Lattice,
    Message,
)

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
