"""Augmentations: what is drawn depends on what it is of, and what is done on nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.color import hsv2rgb, rgb2hsv
from torch import Tensor

from stages.extract.photometric import BLUR_SIGMA, Augmentation, augment, draw_augmentation

BOX = (0, 0, 32, 32)
EXPECTED = Augmentation(
    sigma=1.9621521307018461,
    grey=False,
    brightness=1.064197470228733,
    contrast=0.8839179791039109,
    saturation=0.9418794243261079,
    hue=0.016420723740818793,
    order=(0, 3, 1, 2),
)
# A blur of a tenth of a pixel is none at all.
NOTHING = Augmentation(0.1, False, 1.0, 1.0, 1.0, 0.0, (0, 1, 2, 3))


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def draw(count: int) -> list[Augmentation]:
    return [draw_augmentation(f"{number:032x}", BOX, 1, 0) for number in range(count)]


def test_an_augmentation_follows_from_content_box_view_and_seed() -> None:
    first = draw_augmentation("ab", BOX, 1, 0)
    assert draw_augmentation("ab", BOX, 1, 0) == first
    others = [
        draw_augmentation("ac", BOX, 1, 0),
        draw_augmentation("ab", (1, 0, 33, 32), 1, 0),
        draw_augmentation("ab", BOX, 2, 0),
        draw_augmentation("ab", BOX, 1, 1),
    ]
    assert len({first, *others}) == 5


def test_the_numbers_are_the_same_on_every_machine() -> None:
    found = draw_augmentation("0123456789abcdef0123456789abcdef", (4, 8, 36, 40), 2, 7)
    assert found.grey is EXPECTED.grey
    assert found.order == EXPECTED.order
    for name in ("sigma", "brightness", "contrast", "saturation", "hue"):
        assert getattr(found, name) == pytest.approx(getattr(EXPECTED, name), abs=1e-12)


def test_the_odds_are_even_and_the_ranges_used_to_their_ends() -> None:
    drawn = draw(2000)
    assert abs(sum(a.grey for a in drawn) - 1000) < 4 * np.sqrt(500)
    ranges = {
        "sigma": BLUR_SIGMA,
        "brightness": (0.7, 1.3),
        "contrast": (0.7, 1.3),
        "saturation": (0.7, 1.3),
        "hue": (-0.1, 0.1),
    }
    for name, (low, high) in ranges.items():
        values = np.array([getattr(a, name) for a in drawn])
        slack = 0.01 * (high - low)
        assert low <= values.min() < low + slack
        assert high - slack < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.05 * (high - low)
    orders = {a.order for a in drawn}
    assert len(orders) == 24
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)


def test_shape_type_and_the_original_are_kept() -> None:
    pixels = noise(3, 3, 16, 24)
    before = pixels.clone()
    found = augment(pixels, draw(3))
    assert found.shape == pixels.shape
    assert found.dtype == torch.uint8
    assert torch.equal(pixels, before)


def test_a_window_does_not_depend_on_its_companions() -> None:
    pixels, augmentations = noise(5, 3, 20, 20), draw(5)
    together = augment(pixels, augmentations)
    for number in range(5):
        alone = augment(pixels[number : number + 1], augmentations[number : number + 1])
        assert torch.equal(together[number], alone[0])


@pytest.mark.parametrize("number", range(6))
def test_a_mirrored_picture_is_augmented_to_the_mirrored_view(number: int) -> None:
    pixels, augmentations = noise(1, 3, 24, 32, seed=number), [draw(6)[number]]
    mirrored = augment(pixels.flip(-1), augmentations)
    there = augment(pixels, augmentations).flip(-1)
    assert (mirrored.int() - there.int()).abs().max() <= 1


def test_doing_nothing_gives_the_picture_back() -> None:
    pixels = noise(1, 3, 16, 16)
    assert (augment(pixels, [NOTHING]).int() - pixels.int()).abs().max() <= 1


def test_the_blur_is_a_gaussian_with_reflected_borders() -> None:
    pixels = noise(1, 3, 40, 30)
    found = augment(pixels, [replace(NOTHING, sigma=1.7)])[0].numpy()
    image = pixels[0].double().numpy()
    expected = gaussian_filter(image, (0, 1.7, 1.7), mode="mirror", radius=(0, 11, 11))
    np.testing.assert_allclose(found, expected, atol=0.51)


def test_grey_is_the_luma_in_all_three_channels() -> None:
    pixels = torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 12, 12)
    # ITU-R BT.601: 0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2; the jitter is left out.
    found = augment(pixels, [replace(NOTHING, grey=True, brightness=1.3, hue=0.1)])
    assert (found == 124).all()


def test_colours_are_changed_in_the_drawn_order_by_the_drawn_amounts() -> None:
    plane = torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 12, 12)
    bright = augment(plane, [replace(NOTHING, brightness=1.2)])[0, :, 0, 0]
    assert bright.tolist() == [240, 120, 60]
    # towards the luma, 124.2: 0.8 * c + 0.2 * 124.2
    pale = augment(plane, [replace(NOTHING, saturation=0.8)])[0, :, 0, 0]
    assert pale.tolist() == [185, 105, 65]
    # the mean luma of a plane is its own: contrast does the same there
    flat = augment(plane, [replace(NOTHING, contrast=0.8)])[0, :, 0, 0]
    assert flat.tolist() == [185, 105, 65]
    hsv = rgb2hsv(np.array([[[200, 100, 50]]]) / 255.0)
    hsv[..., 0] += 0.05
    turned = augment(plane, [replace(NOTHING, hue=0.05)])[0, :, 0, 0]
    np.testing.assert_allclose(turned.numpy(), 255 * hsv2rgb(hsv)[0, 0], atol=0.6)
    # 1.3 * 200 is cut off at 255 before the hue turns, or after
    both = replace(NOTHING, brightness=1.3, hue=0.1)
    first, last = (
        augment(plane, [replace(both, order=order)])[0, :, 0, 0].tolist()
        for order in ((0, 1, 2, 3), (3, 1, 2, 0))
    )
    assert first != last


def test_one_augmentation_per_window() -> None:
    with pytest.raises(ValueError):
        augment(noise(2, 3, 16, 16), draw(1))
