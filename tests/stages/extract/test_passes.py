"""Both views of a batch: every window its own features, whatever goes together.

Features that are not finite are found, described, and laid to the image or to the weights.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import RunError, WeightsError
from stages.extract import backbones, handcrafted
from stages.extract.backbones import (
    build_backbone,
    check_backbone,
    check_finite,
    describe_faults,
    extract_views,
    find_faulty,
)


@pytest.mark.parametrize("together", [1, 2, 3, 8])
def test_windows_keep_their_order_whatever_goes_together(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbones, "_TOGETHER", together)
    device = torch.device("cpu")
    backbone = build_backbone("handcrafted", None, size=32, device=device, precision="float32")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    clean, mirror = extract_views(backbone, pixels)
    assert clean.dtype == mirror.dtype == np.float16
    for found, view in ((clean, images), (mirror, images.flip(-1))):
        assert found.shape == (5, 4, 4, handcrafted.CHANNELS)
        expected = handcrafted.compute_features(view).numpy()
        np.testing.assert_allclose(found, expected, atol=2e-3, rtol=1e-3)


SHAPE = (5, 2, 3, 4)


def make_blocks() -> dict[str, np.ndarray]:
    values = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float16)
    return {"clean": values[0], "mirror": values[1]}


@given(st.lists(st.tuples(*(st.integers(0, n - 1) for n in (2, *SHAPE)), st.booleans())))
def test_faulty_windows_are_those_with_any_value_that_is_not_finite(
    faults: list[tuple[int, ...]],
) -> None:
    blocks = make_blocks()
    for view, window, row, column, channel, nan in faults:
        value = np.nan if nan else np.inf
        blocks[("clean", "mirror")[view]][window, row, column, channel] = value
    assert find_faulty(blocks).tolist() == sorted({fault[1] for fault in faults})


def test_positions_are_counted_by_hand() -> None:
    blocks = make_blocks()
    blocks["clean"][1, 0, 0, :2] = np.nan
    blocks["clean"][1, 1, 2, 0] = np.nan
    blocks["clean"][2, 0, 1] = -np.inf
    blocks["mirror"][4, 0, 0, 0] = np.inf
    assert describe_faults(blocks, [1]) == "NaN in 2 of 6 positions"
    assert describe_faults(blocks, [1, 2]) == "NaN in 2 and infinity in 1 of 12 positions"
    assert describe_faults(blocks, [4]) == "infinity in 1 of 6 positions of mirror"
    with pytest.raises(ValueError, match="none of these windows"):
        describe_faults(blocks, [0])


def test_where_no_image_can_be_rejected_one_sentence_names_them() -> None:
    blocks = make_blocks()
    paths = ["a.png", "b.png", "b.png", "c.png", "d.png"]
    check_finite(blocks, paths, "views")
    for window in range(5):
        blocks["mirror"][window, 0, 0, 0] = np.nan
    with pytest.raises(RunError) as caught:
        check_finite(blocks, paths, "views")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("views: the features of 4 images are not finite")
    assert "(a.png, b.png, c.png, ...; NaN in 1 of 6 positions of mirror of the first)" in message
    assert "--precision float32" in message


class Shifted(handcrafted.HandcraftedBackbone):
    """Hand-crafted features, to which a number is added."""

    def __init__(self, shift: float) -> None:
        super().__init__("handcrafted")
        self.shift = shift

    def compute_features(self, images: torch.Tensor) -> torch.Tensor:
        return super().compute_features(images) + self.shift


def test_a_backbone_is_tried_on_a_plain_picture() -> None:
    check_backbone(Shifted(0), 32)
    for broken in (float("nan"), 1e6):  # beyond what float16 holds
        with pytest.raises(WeightsError, match="handcrafted are damaged, or overflow in float32"):
            check_backbone(Shifted(broken), 32)
