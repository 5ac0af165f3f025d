"""Attention of the last block, against the model's own unfused attention in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import UsageError
from stages.extract.backbones import build_backbone, describe_backbone
from stages.extract.transformers import (
    Attended,
    average_heads,
    capture_attention,
)
from stages.extract.weights import WeightsFile

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"pretrained": False, "num_classes": 0, "embed_dim": 48, "depth": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vit_small_patch16_224", {"num_heads": 3}),
    "registers": ("vit_small_patch16_224", {"num_heads": 3, "reg_tokens": 3}),
    "normalised": ("vit_small_patch16_224", {"num_heads": 3, "qk_norm": True}),
    "dinov3": ("vit_small_patch16_dinov3", {"num_heads": 3}),
    "beit": ("beit_base_patch16_224", {"num_heads": 3}),
}


def make(kind: str) -> Any:
    """Build a small model whose attention is far from even."""
    name, arguments = MODELS[kind]
    dynamic = {} if kind == "beit" else {"dynamic_img_size": True}
    torch.manual_seed(0)
    model: Any = timm.create_model(name, **SMALL, **arguments, **dynamic).eval()
    for key, parameter in model.named_parameters():
        if "qkv.weight" in key or "relative_position_bias" in key:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.requires_grad_(False)


def attend_plainly(model: Any, images: Tensor) -> Tensor:
    """Give softmax(q k^T) of the last block as the model computes it: [window, head, from, to]."""
    seen: list[Tensor] = []
    attention = model.blocks[-1].attn
    attention.fused_attn = False
    hook = attention.attn_drop.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.inference_mode():
        model.forward_features(images)
    hook.remove()
    attention.fused_attn = True
    return seen[-1]


@pytest.mark.parametrize("kind", MODELS)
def test_attention_is_the_models_own(kind: str) -> None:
    model = make(kind).double()
    rows, columns = (14, 14) if kind == "beit" else (5, 3)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 16 * rows, 16 * columns, generator=generator, dtype=torch.float64)
    first = model.num_prefix_tokens
    expected = attend_plainly(model, images).mean(1).numpy()[:, first:, first:]
    with torch.inference_mode():
        found = average_heads(capture_attention(model, images, kind), rows * columns)
    assert found.shape == (2, rows * columns, rows * columns)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-7)
    # the models attend unevenly enough for an exchange of positions to be seen
    assert expected.std() > 0.001


def test_the_fused_and_the_unfused_setting_give_the_same_and_are_left_alone() -> None:
    model = make("plain")
    images = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(2))
    results = []
    for fused in (True, False):
        for block in model.blocks:
            block.attn.fused_attn = fused
        with torch.inference_mode():
            results.append(average_heads(capture_attention(model, images, "plain"), 9))
        assert all(block.attn.fused_attn is fused for block in model.blocks)
        assert "forward" not in vars(model.blocks[-1])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_two_positions_with_prefix_by_hand() -> None:
    # One window, one head, one channel; a class token and a grid of 1 x 2. All keys are logs, and
    # the queries 1 and 0: probabilities 1/10, 2/10, 7/10, and a third each.
    keys = torch.log(torch.tensor([1.0, 2.0, 7.0])).view(1, 1, 3, 1)
    queries = torch.tensor([5.0, 1.0, 0.0]).view(1, 1, 3, 1)
    found = average_heads(Attended(queries, keys, keys, scale=1.0), 2)[0]
    torch.testing.assert_close(found, torch.tensor([[0.2, 0.7], [1 / 3, 1 / 3]]))


def test_a_mask_of_booleans_hides_a_token() -> None:
    keys = torch.log(torch.tensor([1.0, 2.0, 7.0])).view(1, 1, 3, 1)
    queries = torch.ones(1, 1, 3, 1)
    mask = torch.tensor([True, True, False])
    found = average_heads(Attended(queries, keys, keys, mask, scale=1.0), 2)[0]
    torch.testing.assert_close(found[0], torch.tensor([2 / 3, 0.0]))


def test_a_backbone_attends_and_its_features_stay_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model("test_vit", pretrained=False, num_classes=0)
    path = tmp_path / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    backbone = build_backbone(
        "test_vit", WeightsFile(path, "a test", "0"), size=96, device=CPU, precision="float32"
    )
    images = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    before = backbone(images)
    attention = backbone.attend(images)
    assert attention.shape == (2, 24, 24)
    assert torch.equal(backbone(images), before)
    assert (attention >= 0).all()
    assert (attention.sum(-1) <= 1 + 1e-6).all()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (backbone.mean, backbone.std))
    model = timm.create_model(
        "test_vit", pretrained=False, num_classes=0, dynamic_img_size=True
    ).eval()
    model.load_state_dict(load_file(path))
    plain = attend_plainly(model, (images - mean) / std).mean(1).numpy()
    expected = plain[:, model.num_prefix_tokens :, model.num_prefix_tokens :]
    np.testing.assert_allclose(attention, expected, rtol=1e-4, atol=1e-6)


def test_handcrafted_features_have_no_attention() -> None:
    backbone = build_backbone("handcrafted", None, size=32, device=CPU, precision="float32")
    with pytest.raises(UsageError, match="The backbone handcrafted has no last block whose"):
        backbone.attend(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("name", ["test_vit", "vit_small_patch14_reg4_dinov2.lvd142m"])
def test_a_backbone_with_attention_is_told_without_weights(name: str) -> None:
    describe_backbone(name).check_attention()


@pytest.mark.parametrize("name", ["handcrafted", "cait_xxs24_224"])
def test_a_backbone_without_such_attention_is_told_without_weights(name: str) -> None:
    with pytest.raises(UsageError, match=f"The backbone {name} has no last block whose attention"):
        describe_backbone(name).check_attention()


def test_a_model_whose_last_block_attends_otherwise_is_refused() -> None:
    name = "xcit_nano_12_p16_224"
    model: Any = timm.create_model(name, pretrained=False, num_classes=0).eval()
    with pytest.raises(UsageError, match=f"The backbone {name} has no last block whose attention"):
        capture_attention(model, torch.zeros(1, 3, 224, 224), name)
