"""Labelling one image: what the CRF is given, and what becomes of its answer.

Stitching: overlaps by hand, strips against the whole, boxes that cover what they should.

Classifiers: by hand in double precision, and what must not change them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as PillowImage
from torch import Tensor

from pipeline.datasets.definition import IGNORE
from pipeline.errors import ImageError
from pipeline.images.windows import (
    MAX_WINDOWS_PER_IMAGE,
    Cover,
    Window,
    fit_size,
    place_windows,
)
from pipeline.run.manifest import Image, Manifest
from stages.crf.settings import CrfSettings
from stages.labelling import (
    Classifier,
    Labelling,
    argmax_resampled,
    average_views,
    classify,
    draw_confidence,
    draw_labels,
    label_images,
    scale_box,
    stitch_windows,
)

BOXES = [(0, 0, 8, 8), (4, 0, 12, 8)]
SETTINGS = CrfSettings()


class Turner:
    """A CRF that gives every pixel the probabilities of the next class."""

    name = "turner"

    def refine(
        self, unary: NDArray[np.float32], image: NDArray[np.uint8], settings: CrfSettings
    ) -> NDArray[np.float32]:
        self.unary, self.image, self.settings = unary, image, settings
        return np.roll(np.exp(-unary), 1, axis=0)


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0))


Label = Callable[..., Labelling]


@pytest.fixture
def label(tmp_path: Path) -> Label:
    """Label an image of 12 x 8 pixels whose two windows are BOXES."""
    pixels = np.random.default_rng(0).integers(0, 256, size=(8, 12, 3)).astype(np.uint8)
    PillowImage.fromarray(pixels).save(tmp_path / "a.png")
    status = (tmp_path / "a.png").stat()
    image = Image(
        5, "a", "all", "a.png", None, 12, 8, status.st_size, status.st_mtime_ns, digest=""
    )
    windows = tuple(Window(n, 5, left, 0, 8, 12, 8) for n, (left, *_) in enumerate(BOXES))
    manifest = Manifest("folder", tmp_path, None, (image,), windows)

    def call(logits: Tensor, backend: Turner | None) -> Labelling:
        every = label_images(
            manifest, [image], {5: logits}, 8, lambda _, found: found, backend, SETTINGS
        )
        (found,) = every
        return found

    return call


def test_without_a_crf(logits: Tensor, label: Label) -> None:
    found = label(logits, None)
    probabilities = stitch_windows(logits, BOXES, 8).softmax(dim=0)
    torch.testing.assert_close(found.probabilities, probabilities)
    assert found.refined is None
    assert found.plain.dtype == np.uint8
    np.testing.assert_array_equal(found.plain, probabilities.argmax(dim=0))
    assert found.confidence == pytest.approx(float(probabilities.amax(dim=0).sum()), rel=1e-5)


def test_with_a_crf(logits: Tensor, label: Label, tmp_path: Path) -> None:
    crf = Turner()
    bare = label(logits, None)
    found = label(logits, crf)
    np.testing.assert_allclose(np.exp(-crf.unary), bare.probabilities, atol=1e-6)
    assert crf.unary.dtype == np.float32
    np.testing.assert_array_equal(crf.image, np.asarray(PillowImage.open(tmp_path / "a.png")))
    assert crf.image.flags.c_contiguous
    assert crf.settings is SETTINGS
    assert found.refined is not None
    np.testing.assert_array_equal(found.plain, bare.plain)
    np.testing.assert_array_equal(found.refined, (bare.plain + 1) % 4)
    torch.testing.assert_close(found.probabilities, bare.probabilities.roll(1, 0))
    assert found.confidence == bare.confidence, "of the model, not of the CRF"


def test_energies_are_finite_however_sure_the_model_is(label: Label) -> None:
    crf = Turner()
    sure = torch.zeros(2, 3, 2, 2)
    sure[:, 1] = 1e6
    found = label(sure, crf)
    assert np.isfinite(crf.unary).all()
    assert (found.plain == 1).all()
    assert found.confidence == pytest.approx(8 * 12)


def test_the_mirrored_view_is_turned_back() -> None:
    clean = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(average_views(clean, clean.flip(2)), clean)
    zero = torch.zeros(1, 1, 2, 1)
    mirror = torch.tensor([2.0, 6.0]).reshape(1, 1, 2, 1)
    assert average_views(zero, mirror).flatten().tolist() == [3, 1]


def test_overlaps_are_averaged() -> None:
    logits = torch.tensor([1.0, 3.0, 8.0]).reshape(3, 1, 1, 1)
    boxes = [(0, 0, 4, 4), (2, 0, 6, 4), (2, 2, 6, 6)]
    boxes = [(x0 + 10, y0 + 20, x1 + 10, y1 + 20) for x0, y0, x1, y1 in boxes]
    whole = stitch_windows(logits, boxes, 4)
    assert whole.shape == (1, 6, 6)
    expected = np.full((6, 6), np.nan)  # the lower left corner is in no window
    expected[:4, :2] = 1
    expected[:2, 2:4] = 2
    expected[:2, 4:] = 3
    expected[2:4, 2:4] = 4
    expected[2:4, 4:] = 5.5
    expected[4:, 2:] = 8
    np.testing.assert_allclose(whole[0].numpy(), expected)


def test_windows_are_upsampled_before_they_are_put_together() -> None:
    logits = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    large = F.interpolate(logits, (6, 6), mode="bilinear", align_corners=False)
    assert torch.equal(stitch_windows(logits[:1], [(5, 5, 11, 11)], 6), large[0])
    whole = stitch_windows(logits, [(0, 0, 6, 6), (0, 4, 6, 10)], 6)
    torch.testing.assert_close(whole[:, :4], large[0, :, :4])
    torch.testing.assert_close(whole[:, 4:6], (large[0, :, 4:] + large[1, :, :2]) / 2)
    torch.testing.assert_close(whole[:, 6:], large[1, :, 2:])


@given(
    classes=st.integers(1, 5),
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    height=st.integers(1, 200),
    width=st.integers(1, 40),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_strips_agree_with_the_whole(
    classes: int, rows: int, columns: int, height: int, width: int, seed: int
) -> None:
    values = torch.rand(classes, rows, columns, generator=torch.Generator().manual_seed(seed))
    large = F.interpolate(values[None], (height, width), mode="bilinear", align_corners=False)[0]
    found = torch.from_numpy(argmax_resampled(values, height, width).astype(np.int64))
    # where two classes are equally large, rounding may decide
    chosen = large.gather(0, found[None])[0]
    assert (chosen >= large.amax(dim=0) - 1e-5).all()
    best = large.topk(min(2, classes), dim=0).values
    clear = best[0] - best[-1] > 1e-5
    assert torch.equal(found[clear], large.argmax(dim=0)[clear])


def test_at_its_own_size_nothing_is_resampled() -> None:
    values = torch.rand(7, 131, 9, generator=torch.Generator().manual_seed(3))
    np.testing.assert_array_equal(argmax_resampled(values, 131, 9), values.argmax(dim=0))


def test_outside_the_box_nothing_is_known() -> None:
    probabilities = torch.tensor([[[0.1, 0.9]], [[0.9, 0.1]]])
    cover = Cover((Window(0, 0, 1, 2, 2, 7, 5), Window(1, 0, 3, 2, 2, 7, 5)))
    labels = draw_labels(probabilities, cover, 7, 5, None)
    expected = np.full((5, 7), IGNORE)
    expected[2:4, 1:3], expected[2:4, 3:5] = 1, 0
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, expected)
    # 0.9 x 255 is 229.5, and is cut off; between the two, the larger is 0.7
    sure = draw_confidence(probabilities, labels, cover)
    np.testing.assert_array_equal(sure[2:4, 1:5], [[229, 178, 178, 229]] * 2)
    assert not sure[expected == IGNORE].any()


@given(
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    size=st.sampled_from([16, 320, 322]),
    overlap=st.floats(0, 0.9),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_windows_over_the_whole_image_cover_all_of_it(
    width: int, height: int, size: int, overlap: float
) -> None:
    resized = fit_size(width, height, size)
    try:
        corners = place_windows(*resized, size, "whole", overlap)
    except ImageError:
        return
    lefts, tops = zip(*corners, strict=True)
    box = (min(lefts), min(tops), max(lefts) + size, max(tops) + size)
    assert scale_box(box, resized, (width, height)) == (0, 0, width, height)


@given(width=st.integers(1, 500), height=st.integers(1, 500), size=st.sampled_from([16, 320]))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_box_is_inside_the_image_and_never_empty(width: int, height: int, size: int) -> None:
    resized = fit_size(width, height, size)
    assume(max(resized) <= MAX_WINDOWS_PER_IMAGE * size)
    (corner,) = place_windows(*resized, size, "centre", 0)
    box = (*corner, corner[0] + size, corner[1] + size)
    left, top, right, bottom = scale_box(box, resized, (width, height))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_an_image_one_pixel_high_has_a_box_too() -> None:
    # both sides of the box lie at halves, 1.5 and 2.5, which round to the same number
    assert scale_box((480, 0, 800, 320), (1280, 320), (4, 1)) == (2, 0, 3, 1)
    assert scale_box((0, 480, 320, 800), (320, 1280), (1, 4)) == (0, 2, 1, 3)


def make_features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_logits_are_inner_products_or_cosines() -> None:
    features = torch.tensor([[3.0, 4.0]]).reshape(1, 1, 1, 2)
    prototypes = torch.tensor([[2.0, 0.0], [0.0, -5.0]])
    inner = classify(features, Classifier(prototypes, logits="inner product", gain=7))
    assert inner.flatten().tolist() == [6, -20]
    cosine = classify(features, Classifier(prototypes, logits="cosine", gain=2))
    torch.testing.assert_close(cosine.flatten(), torch.tensor([1.2, -1.6]))


def test_without_bias_it_is_the_product_to_the_bit() -> None:
    features, prototypes = make_features(3, 5, 4, 32).float(), make_features(7, 32).float()
    expected = torch.einsum("nhwd,kd->nkhw", features, prototypes)
    assert torch.equal(classify(features, Classifier(prototypes)), expected)


def test_bias_by_hand() -> None:
    features = torch.tensor([3.0, 4.0], dtype=torch.float64).reshape(1, 1, 1, 2)
    classifier = Classifier(
        torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64),
        bias=torch.tensor([0.5, -1.0, 0.25], dtype=torch.float64),
    )
    found = classify(features, classifier)
    assert classifier.classes == 3
    assert found.shape == (1, 3, 1, 1)
    assert found.flatten().tolist() == [3.5, 3.0, 7.25]


def test_cosines_are_scaled_before_the_bias() -> None:
    features = torch.tensor([0.0, 9.0], dtype=torch.float64).reshape(1, 1, 1, 2)
    classifier = Classifier(
        torch.tensor([[0.0, 3.0], [3.0, 4.0], [1.0, 0.0]], dtype=torch.float64),
        bias=torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64),
        logits="cosine",
        gain=10,
    )
    found = classify(features, classifier).flatten().tolist()
    assert found == pytest.approx([9.0, 8.0, 2.0], rel=1e-14)


@pytest.mark.parametrize("logits", ["inner product", "cosine"])
def test_a_mirrored_image_has_mirrored_logits(logits: str) -> None:
    clean, mirror = make_features(2, 3, 4, 8), make_features(2, 3, 4, 8, seed=1)
    classifier = Classifier(
        make_features(4, 8, seed=2),
        bias=make_features(4, seed=3),
        logits=logits,
    )
    # the clean view of the mirrored image is the mirrored view of the image, and the other way
    one = classify(average_views(clean, mirror), classifier)
    other = classify(average_views(mirror, clean), classifier)
    torch.testing.assert_close(other, one.flip(3), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logits": "euclidean"}, "euclidean"),
        ({"bias": torch.zeros(2)}, "bias"),
    ],
)
def test_parts_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classifier(torch.zeros(3, 4), **options)
