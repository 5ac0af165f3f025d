"""A real network, tiny and with random weights, through extract."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import zarr
from safetensors.torch import save_file

from tests.end_to_end.conftest import Invoke, list_times

MODEL = "test_vit"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    state = timm.create_model(MODEL, pretrained=False, num_classes=0).state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


@pytest.fixture
def arguments(scenes: Path, weights: Path, tmp_path: Path) -> list[object]:
    return [
        *("extract", tmp_path / "run", "--dataset", "folder", "--root", scenes / "photographs"),
        *("--backbone", MODEL, "--weights", weights, "--size", 64, "--frame", "centre"),
        *("--precision", "float32", "--no-progress"),
    ]


def test_one_centred_window_an_image_and_its_mirror(
    invoke: Invoke, arguments: list[object], tmp_path: Path
) -> None:
    output = invoke(*arguments).output
    assert f"weights of {MODEL} from --weights" in output
    features = zarr.open_group(tmp_path / "run" / "features.zarr", mode="r")
    clean, mirror = (np.asarray(features[view][:], np.float32) for view in ("clean", "mirror"))
    assert clean.shape[:3] == (9, 4, 4)
    assert not np.allclose(clean, mirror)
    # the scenes are nearly symmetric in their sky, and a network sees the mirrored one mirrored
    unit = clean / np.linalg.norm(clean, axis=-1, keepdims=True)
    back = mirror[:, :, ::-1] / np.linalg.norm(mirror, axis=-1, keepdims=True)[:, :, ::-1]
    straight = mirror / np.linalg.norm(mirror, axis=-1, keepdims=True)
    assert (unit * back).sum(-1).mean() > (unit * straight).sum(-1).mean()


def test_other_weights_make_the_features_stale(
    invoke: Invoke, arguments: list[object], weights: Path
) -> None:
    invoke(*arguments)
    state = timm.create_model(MODEL, pretrained=False, num_classes=0).state_dict()
    save_file({k: v + 0.5 if "norm" in k else v for k, v in state.items()}, weights)
    assert "1 shard is stale: weights_digest" in invoke(*arguments).output


def test_finished_features_outlive_their_weights(
    invoke: Invoke, arguments: list[object], weights: Path, tmp_path: Path
) -> None:
    invoke(*arguments)
    before = list_times(tmp_path / "run" / "features.zarr")
    weights.unlink()
    output = invoke(*arguments).output
    assert "warning: extract: the weights are gone" in output
    assert "nothing to do" in output
    assert list_times(tmp_path / "run" / "features.zarr") == before
    assert "no file of weights" in invoke(*arguments, "--shard-size", 4, code=2).output
    rows = json.loads(invoke("status", tmp_path / "run", "--json").stdout)
    assert rows[0]["state"] == "fresh"


def test_weights_of_another_network_are_refused(
    invoke: Invoke, arguments: list[object], weights: Path, tmp_path: Path
) -> None:
    save_file({"patch_embed.proj.weight": torch.zeros(3)}, weights)
    output = invoke(*arguments, code=1).output
    assert MODEL in output
    assert "Traceback" not in output
