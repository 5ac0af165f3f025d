"""Both views of a batch: every window its own features, whatever goes together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.extract import handcrafted, passes
from stages.extract.backbones import build_backbone
from stages.extract.passes import extract_views


@pytest.mark.parametrize("together", [1, 2, 3, 8])
def test_windows_keep_their_order_whatever_goes_together(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "_TOGETHER", together)
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
