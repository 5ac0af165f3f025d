"""Hand-crafted features: known colours, known edges, and no dependence on anything else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import rgb2lab

from stages.extract import handcrafted
from stages.extract.handcrafted import CELL, CHANNELS, LOCAL_CHANNELS

COLOUR = slice(0, handcrafted.COLOUR_CHANNELS)
FINE = slice(COLOUR.stop, COLOUR.stop + handcrafted.DIRECTIONS)
TEXTURE = slice(LOCAL_CHANNELS - handcrafted.TEXTURE_CHANNELS, LOCAL_CHANNELS)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_lab_agrees_with_scikit_image() -> None:
    images = noise(2, 3, 16, 16).double()
    expected = rgb2lab(images.numpy(), channel_axis=1)
    np.testing.assert_allclose(handcrafted.srgb_to_lab(images).numpy(), expected, atol=2e-2)


def test_shape_is_one_cell_per_8_pixels() -> None:
    features = handcrafted.compute_features(noise(2, 3, 64, 96))
    assert features.shape == (2, 64 // CELL, 96 // CELL, CHANNELS)
    assert features.dtype == torch.float32
    assert 40 <= CHANNELS <= 64


def test_grey_plane_has_no_direction_and_no_texture() -> None:
    local = handcrafted.compute_local(torch.full((1, 3, 32, 32), 0.5))
    assert local[:, FINE].abs().max() < 1e-3
    assert local[:, TEXTURE].abs().max() < 1e-3
    # sRGB 0.5 has L* = 53.39.
    assert local[0, 0, 0, 0].item() == pytest.approx(53.39, abs=0.01)


@pytest.mark.parametrize(("axis", "expected"), [(-1, 0), (-2, handcrafted.DIRECTIONS // 2)])
def test_stripes_vote_for_their_own_direction(axis: int, expected: int) -> None:
    wave = 0.5 + 0.4 * torch.sin(torch.arange(64) * (2 * torch.pi / 8))
    stripes = wave if axis == -1 else wave[:, None]
    local = handcrafted.compute_local(stripes.expand(1, 3, 64, 64))
    votes = local[0, FINE, 2:-2, 2:-2].mean((1, 2))
    assert int(votes.argmax()) == expected
    assert votes[expected] > 0.6 * votes.sum()


def test_finer_texture_has_more_energy_at_the_fine_scale() -> None:
    fine = noise(1, 1, 64, 64).expand(1, 3, 64, 64)
    coarse = torch.nn.functional.interpolate(noise(1, 3, 8, 8, seed=1), size=64, mode="bilinear")
    energy = [handcrafted.compute_local(x)[0, TEXTURE].mean((1, 2)) for x in (fine, coarse)]
    assert energy[0][0] > energy[1][0]


def test_context_channels_are_averages_of_the_neighbours() -> None:
    features = handcrafted.compute_features(noise(1, 3, 80, 80))
    local = features[..., :LOCAL_CHANNELS]
    inner = features[0, 5, 5, LOCAL_CHANNELS:]
    three = local[0, 4:7, 4:7].mean((0, 1))
    seven = local[0, 2:9, 2:9].mean((0, 1))
    torch.testing.assert_close(inner, torch.cat([three, seven]), atol=1e-5, rtol=1e-4)
    corner = local[0, :2, :2].mean((0, 1))
    found = features[0, 0, 0, LOCAL_CHANNELS : 2 * LOCAL_CHANNELS]
    torch.testing.assert_close(found, corner, atol=1e-5, rtol=1e-4)


def test_a_window_is_the_same_in_any_batch() -> None:
    images = noise(5, 3, 48, 48)
    together = handcrafted.compute_features(images)
    alone = torch.cat([handcrafted.compute_features(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), side=st.sampled_from([8, 24, 40]))
def test_features_are_finite_and_follow_a_transposition(seed: int, side: int) -> None:
    image = noise(1, 3, side, side, seed=seed)
    features = handcrafted.compute_features(image)
    turned = handcrafted.compute_features(image.transpose(2, 3)).transpose(1, 2)
    assert torch.isfinite(features).all()
    others = [*range(*COLOUR.indices(CHANNELS)), *range(*TEXTURE.indices(CHANNELS))]
    torch.testing.assert_close(features[..., others], turned[..., others], atol=1e-3, rtol=1e-3)


def test_black_and_white_are_finite() -> None:
    images = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    assert torch.isfinite(handcrafted.compute_features(images)).all()
