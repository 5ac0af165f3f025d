"""Backbones on small models of timm with random weights, and on the real DINOv2 where it lies.

Both views of a batch: every window its own features, whatever goes together. Features that are not
finite are found, described, and laid to the image or to the weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import RunError, UsageError, WeightsError
from stages.extract import backbones, handcrafted, transformers, views, weights
from stages.extract.backbones import Backbone, build_backbone, describe_backbone
from stages.extract.names import OTHER_NAMES, find_timm_name
from stages.extract.views import (
    check_backbone,
    check_finite,
    describe_faults,
    extract_views,
    find_faulty,
)
from stages.extract.weights import WeightsFile
from tests.fakes import keep_blob

CPU = torch.device("cpu")
DINOV2 = "vit_small_patch14_dinov2.lvd142m"


def make(name: str, **arguments: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, num_classes=0, **arguments).eval()


def keep(state: dict[str, Tensor], folder: Path) -> WeightsFile:
    """Write a state dict and give it as found weights."""
    path = folder / "some.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return WeightsFile(path, "a test", "0")


class OfPatch(Backbone):
    """A backbone that says nothing but its patch."""

    channels = 1

    def __init__(self, name: str, patch: int) -> None:
        super().__init__(name)
        self.patch = patch

    def compute_features(self, images: Tensor) -> Tensor:
        return images


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def test_round_trip_gives_the_models_own_tokens(tmp_path: Path) -> None:
    model = make("test_vit", dynamic_img_size=True)
    found = keep(model.state_dict(), tmp_path)
    backbone = build_backbone("test_vit", found, size=96, device=CPU, precision="float32")
    batch = images(2, 3, 96, 64)
    features = backbone(batch)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (backbone.mean, backbone.std))
    with torch.inference_mode():
        tokens = model.forward_features((batch - mean) / std)
    assert features.shape == (2, 6, 4, backbone.channels)
    assert features.dtype == torch.float32
    # Row and column in their places: one token of a grid of unlike sides, counted by hand.
    torch.testing.assert_close(features[1, 2, 3], tokens[1, model.num_prefix_tokens + 2 * 4 + 3])


def test_building_leaves_the_callers_random_numbers_alone(tmp_path: Path) -> None:
    found = keep(make("test_vit").state_dict(), tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_backbone("test_vit", found, size=64, device=CPU, precision="float32")
    assert torch.equal(torch.rand(3), expected)


def test_class_and_register_tokens_are_dropped() -> None:
    backbone = describe_backbone("test_vit")
    assert isinstance(backbone, transformers.TimmBackbone)
    backbone.model = model = make("test_vit", reg_tokens=3, dynamic_img_size=True)
    batch = images(1, 3, 64, 64)
    with torch.inference_mode():
        tokens = model.forward_features(batch)
        grid = backbone.compute_features(batch)
    assert tokens.shape[1] == 1 + 3 + 16
    torch.testing.assert_close(grid.flatten(1, 2), tokens[:, 4:])


def test_position_embedding_of_another_size_is_resampled(tmp_path: Path) -> None:
    found = keep(make("test_vit", img_size=224).state_dict(), tmp_path)
    backbone = build_backbone("test_vit", found, size=64, device=CPU, precision="float32")
    assert torch.isfinite(backbone(images(1, 3, 64, 64))).all()


def test_bfloat16_is_near_float32_and_comes_back_as_float32(tmp_path: Path) -> None:
    found = keep(make("test_vit").state_dict(), tmp_path)
    results = [
        build_backbone("test_vit", found, size=64, device=CPU, precision=p)(images(2, 3, 64, 64))
        for p in ("float32", "bfloat16")
    ]
    assert results[1].dtype == torch.float32
    assert not torch.equal(*results)
    assert torch.nn.functional.cosine_similarity(*results, dim=-1).min() > 0.99


def test_patches_are_embedded_in_float32(tmp_path: Path) -> None:
    """With no blocks' worth of rounding, tokens differ from float32 by the embedding's alone."""
    model = make("test_vit")
    layer = model.get_submodule("patch_embed")
    pixels = images(2, 3, 160, 160)
    exact = layer(pixels)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert layer(pixels).dtype == torch.bfloat16
        inside = transformers._in_float32(layer.forward, CPU)(pixels)
        assert layer(pixels).dtype == torch.bfloat16, "what follows is in bfloat16 again"
    assert inside.dtype == torch.float32
    assert torch.equal(inside, exact)


def test_bfloat16_is_near_float32_on_a_photograph(shared: Path) -> None:
    found = WeightsFile(shared / "weights" / f"{DINOV2}.safetensors", "a test", "0")
    frame = sorted((shared / "datasets" / "camvid" / "train").glob("*.png"))[0]
    pixels = np.asarray(Image.open(frame).convert("RGB").resize((224, 224)), np.float32) / 255
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    exact, rounded = (
        build_backbone(DINOV2, found, size=224, device=CPU, precision=precision)(batch)
        for precision in ("float32", "bfloat16")
    )
    cosine = torch.cosine_similarity(exact, rounded, dim=-1)
    # with the patches embedded in bfloat16: 0.9995 and 0.9954
    assert cosine.mean() >= 0.9997
    assert cosine.min() >= 0.997


def test_heads_and_mask_token_are_dropped_and_half_is_taken(tmp_path: Path) -> None:
    state = {key: value.half() for key, value in make("test_vit").state_dict().items()}
    state |= {"head.weight": torch.ones(3, 4), "head.bias": torch.ones(3)}
    state |= {"mask_token": torch.zeros(1, 4), "dino_head.mlp.0.weight": torch.ones(2, 2)}
    found = keep(state, tmp_path)
    backbone = build_backbone("test_vit", found, size=64, device=CPU, precision="float32")
    assert backbone(images(1, 3, 64, 64)).shape[-1] == backbone.channels


@pytest.mark.parametrize("fault", ["missing", "unknown", "of another shape"])
def test_weights_of_another_model_are_refused(fault: str, tmp_path: Path) -> None:
    state = make("test_vit").state_dict()
    if fault == "missing":
        del state["norm.weight"]
    elif fault == "unknown":
        state["blocks.99.norm.weight"] = torch.ones(1)
    else:
        state["norm.weight"] = torch.ones(7)
    with pytest.raises(WeightsError, match=rf"1 parameter is {fault} \([\w.]*norm\.weight\)"):
        build_backbone("test_vit", keep(state, tmp_path), size=64, device=CPU, precision="float32")


def test_metas_names_of_registers_are_taken(tmp_path: Path) -> None:
    name = "vit_small_patch14_reg4_dinov2.lvd142m"
    model = make(name, depth=1)
    state = dict(model.state_dict())
    registers, position = state.pop("reg_token"), state.pop("pos_embed")
    token = state.pop("cls_token")
    first = torch.full_like(token, 0.5)
    # Meta's embedding has a row for the class token; timm adds that row to the token itself.
    state |= {
        "register_tokens": registers,
        "cls_token": token - first,
        "pos_embed": torch.cat([first, position], dim=1),
        "mask_token": torch.zeros(1, model.num_features),
    }
    found = keep(state, tmp_path)
    renamed = make(name, depth=1)
    transformers._load(renamed, found, name)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(renamed.state_dict()[key], value, msg=key)


def test_metas_names_of_dinov3_are_taken(tmp_path: Path) -> None:
    name = "vit_small_patch16_dinov3.lvd1689m"
    model = make(name, depth=1)
    state = {
        key.replace("gamma_1", "ls1.gamma")
        .replace("gamma_2", "ls2.gamma")
        .replace("reg_token", "storage_tokens"): value
        for key, value in model.state_dict().items()
    }
    state |= {"rope_embed.periods": torch.ones(16), "mask_token": torch.zeros(1, 384)}
    state["blocks.0.attn.qkv.bias"] = torch.zeros(3 * 384)
    renamed = make(name, depth=1)
    transformers._load(renamed, keep(state, tmp_path), name)
    assert all(torch.equal(renamed.state_dict()[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "patch", "channels"),
    [
        ("vit_small_patch8_224.dino", 8, 384),
        ("vit_base_patch8_224.dino", 8, 768),
        (DINOV2, 14, 384),
        ("vit_base_patch14_reg4_dinov2.lvd142m", 14, 768),
        ("vit_small_patch16_dinov3.lvd1689m", 16, 384),
        ("beit_base_patch16_224", 16, 768),
        ("handcrafted", 8, handcrafted.CHANNELS),
    ],
)
def test_backbones_are_described_without_weights(name: str, patch: int, channels: int) -> None:
    backbone = describe_backbone(name)
    assert (backbone.patch, backbone.channels) == (patch, channels)


def test_model_of_fixed_size_is_built_for_the_size(tmp_path: Path) -> None:
    name = "beit_base_patch16_224"
    model = transformers._create(name, torch.device("meta"), 96)
    assert model.patch_embed.grid_size == (6, 6)


@pytest.mark.parametrize("name", ["resnet50", "swin_tiny_patch4_window7_224"])
def test_models_without_a_grid_of_tokens_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="not a Vision Transformer"):
        describe_backbone(name)


def test_windowed_attention_is_said_to_be_what_it_is() -> None:
    words = "samvit_base_patch16 is a Vision Transformer with windowed attention and no final norm"
    with pytest.raises(UsageError, match=words):
        describe_backbone("samvit_base_patch16")


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ("dino_vits8", "vit_small_patch8_224.dino"),
        ("dinov2_vits14_reg", "vit_small_patch14_reg4_dinov2.lvd142m"),
        ("DINOv2-ViTB14", "vit_base_patch14_dinov2.lvd142m"),
        ("hf-hub:facebook/dinov2-small", DINOV2),
        ("vit_small_patch8_224_dino", "vit_small_patch8_224.dino"),
        ("vit_base_patch16_224", "vit_base_patch16_224"),
        ("hf-hub:someone/model", "hf-hub:someone/model"),
    ],
)
def test_other_names_mean_timms(other: str, name: str) -> None:
    assert find_timm_name(other) == name


def test_all_other_names_mean_models_that_timm_has_weights_of() -> None:
    assert OTHER_NAMES.keys() <= set(timm.list_models(pretrained=True))
    others = [other for each in OTHER_NAMES.values() for other in each]
    assert len(set(others)) == len(others)
    assert all(find_timm_name(o) == name for name, each in OTHER_NAMES.items() for o in each)
    assert describe_backbone("dino_vits16").name == "vit_small_patch16_224.dino"


def test_a_model_of_one_size_has_that_one(tmp_path: Path) -> None:
    backbone = describe_backbone("cait_xxs24_224")
    assert backbone.default_size == 224
    backbone.check_size(224)
    with pytest.raises(UsageError, match=r"is for 224 pixels alone: take --size 224"):
        backbone.check_size(320)
    # timm resamples the tables of this one
    assert describe_backbone("beit_base_patch16_384").default_size == 320


def test_weights_are_looked_at_before_anything_is_computed(tmp_path: Path) -> None:
    backbone, lines = describe_backbone("test_vit"), list[str]()
    state = make("test_vit").state_dict()
    path = keep({f"student.{k}": v for k, v in state.items()}, tmp_path).path
    backbone.find_weights(path, lines.append)
    assert lines == []
    both = {f"{which}.{k}": v.clone() for which in ("student", "teacher") for k, v in state.items()}
    backbone.find_weights(keep(both, tmp_path).path, lines.append)
    assert lines == [f"weights: {path} holds several networks; teacher is taken, and not student"]
    with pytest.raises(WeightsError, match="are not those of test_vit: 1 parameter is missing"):
        backbone.find_weights(keep(dict(list(state.items())[:-1]), tmp_path).path, lines.append)


def test_unknown_name_is_answered_by_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"did you mean .*vit_small_patch14_dinov2\.lvd142m"):
        describe_backbone("vit_small_patch14_dinov2.lvd142")
    with pytest.raises(UsageError, match="knows no backbone"):
        describe_backbone("qqqq")


def test_hub_model_is_built_from_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {
        "architecture": "test_vit",
        "num_classes": 10,
        "pretrained_cfg": {"input_size": [3, 160, 160], "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]},
    }
    cached = [keep_blob(tmp_path / "hub", "config.json", json.dumps(config).encode())]
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(cached[-1]))
    found = keep(make("test_vit").state_dict(), tmp_path)
    backbone = build_backbone(
        "hf-hub:someone/model", found, size=64, device=CPU, precision="float32"
    )
    assert backbone.patch == 16
    assert backbone.mean == (0.1, 0.2, 0.3)
    cached.append(keep_blob(tmp_path / "hub", "config.json", b'{"architectures": ["Dinov2Model"]}'))
    with pytest.raises(WeightsError, match="timm's format"):
        describe_backbone("hf-hub:someone/other")


def test_hub_model_without_a_hub_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*arguments: object, **options: object) -> str:
        raise LocalEntryNotFoundError("no")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(weights, "_answers", lambda address: False)
    with pytest.raises(WeightsError, match=r"hf-hub:someone/model.*cannot be reached"):
        describe_backbone("hf-hub:someone/model")


@pytest.mark.parametrize(("patch", "size"), [(8, 320), (16, 320), (14, 322), (32, 320), (7, 322)])
def test_default_size_is_the_multiple_nearest_to_320(patch: int, size: int) -> None:
    assert OfPatch("x", patch).default_size == size


@pytest.mark.parametrize(
    ("size", "message"), [(320, "308 or 322"), (5, "take 14 "), (0, "take 14 "), (-14, "take 14 ")]
)
def test_size_that_does_not_fit_names_the_nearest(size: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        OfPatch("x", 14).check_size(size)


def test_build_and_call_check_the_size(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="312 or 320"):
        build_backbone("handcrafted", None, size=316, device=CPU, precision="float32")
    backbone = build_backbone("handcrafted", None, size=320, device=CPU, precision="bfloat16")
    assert backbone.precision == "float32"
    with pytest.raises(UsageError):
        backbone(images(1, 3, 16, 20))


def test_handcrafted_has_the_same_interface() -> None:
    backbone = build_backbone("handcrafted", None, size=64, device=CPU, precision="float32")
    batch = images(2, 3, 64, 64)
    features = backbone(batch)
    assert (backbone.patch, backbone.channels) == (8, features.shape[-1])
    assert torch.equal(features, handcrafted.compute_features(batch))


def test_a_network_without_weights_is_refused() -> None:
    with pytest.raises(WeightsError, match="needs weights"):
        build_backbone("test_vit", None, size=64, device=CPU, precision="float32")


def test_the_room_opens_without_torch() -> None:
    code = "import sys, stages.extract; sys.exit('torch' in sys.modules)"
    root = Path(backbones.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_real_weights_tell_regions_apart(shared: Path) -> None:
    path = shared / "weights" / f"{DINOV2}.safetensors"
    found = WeightsFile(path, "a test", "0")
    backbone = build_backbone(DINOV2, found, size=224, device=CPU, precision="float32")
    assert (backbone.patch, backbone.channels) == (14, 384)
    frame = sorted((shared / "datasets" / "camvid" / "train").glob("*.png"))[0]
    pixels = np.asarray(Image.open(frame).convert("RGB").resize((224, 224)), np.float32) / 255
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    features = torch.nn.functional.normalize(backbone(batch)[0], dim=-1)
    assert features.shape == (16, 16, 384)
    # Neighbours of one road look alike; road and upper edge do not.
    road, beside, top = features[13, 8], features[13, 9], features[1, 8]
    assert road @ beside > 0.5
    assert road @ beside > road @ top + 0.1
    model = make(DINOV2, dynamic_img_size=True)
    model.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (backbone.mean, backbone.std))
    with torch.inference_mode():
        tokens = model.forward_features((batch - mean) / std)[0, 1:]
    torch.testing.assert_close(backbone(batch)[0].flatten(0, 1), tokens, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("together", [1, 2, 3, 8])
def test_windows_keep_their_order_whatever_goes_together(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "_TOGETHER", together)
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
