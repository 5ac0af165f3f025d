"""Checkpoints in the forms that training tools leave: what is taken, and what is refused.

The right values are those of timm's network that each was made from, bit by bit.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import WeightsError
from stages.extract import transformers
from stages.extract.checkpoints import digest_weights, read_network
from stages.extract.weights import WeightsFile

State = dict[str, Tensor]
NAME = "deit_tiny_patch16_224"
SMALL: dict[str, Any] = {"num_classes": 0, "embed_dim": 24, "depth": 4, "num_heads": 3}


def make(seed: int, name: str = NAME, **arguments: Any) -> Any:
    torch.manual_seed(seed)
    model: Any = timm.create_model(name, **{**SMALL, **arguments})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


STATE: State = make(0).state_dict()
# of the student, or whatever is not to be taken
OTHER: State = make(1).state_dict()


def put_before(prefix: str, state: State = STATE) -> State:
    return {prefix + key: value for key, value in state.items()}


def split_blocks(state: State, size: int) -> State:
    """Put the blocks into chunks, as DINOv2 trains them: the numbers in a chunk go on."""
    return {
        re.sub(r"^blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) // size}.{m[1]}", key): value
        for key, value in state.items()
    }


OLD_NAMES = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "blocks": "encoder.layer",
    "attn.qkv": "attention.attention.{query,key,value}",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
}
NEW_NAMES = OLD_NAMES | {
    "blocks": "layers",
    "attn.qkv": "attention.{q_proj,k_proj,v_proj}",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def call_as_transformers(state: State, names: dict[str, str]) -> State:
    """Give the names of the library transformers, queries, keys and values apart."""
    renamed: State = {}
    for key, value in state.items():
        for ours, theirs in names.items():
            key = re.sub(rf"(^|\.){re.escape(ours)}(\.|$)", rf"\1{theirs}\2", key)
        key = re.sub(r"^norm\.", "layernorm.", key)
        parts = re.search(r"\{(.*)\}", key)
        if parts is None:
            renamed[key] = value
        else:
            for part, third in zip(parts[1].split(","), value.chunk(3), strict=True):
                renamed[key.replace(parts[0], part)] = third.clone()
    return renamed


FORMS: dict[str, Callable[[], Any]] = {
    "plain": lambda: STATE,
    "lightning": lambda: {"state_dict": put_before("model."), "epoch": 3},
    "lightning, one network twice": lambda: {
        "state_dict": put_before("model.backbone.") | put_before("backbone.")
    },
    "any prefix": lambda: {"state_dict": put_before("net.encoder.")},
    "parallel, compiled": lambda: put_before("_orig_mod.module."),
    "moco v2": lambda: {
        "state_dict": put_before("module.encoder_q.") | put_before("module.encoder_k.", OTHER)
    },
    "moco v3": lambda: {
        "state_dict": put_before("module.base_encoder.")
        | put_before("module.momentum_encoder.", OTHER)
    },
    "dino": lambda: {
        "student": put_before("module.backbone.", OTHER) | {"module.head.bias": torch.ones(2)},
        "teacher": OrderedDict(put_before("backbone.")) | {"head.mlp.0.weight": torch.ones(2)},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
        "args": argparse.Namespace(arch="vit_tiny"),
        "dino_loss": {"center": torch.zeros(1, 4)},
    },
    "dinov2": lambda: {
        "model": put_before("teacher.backbone.") | put_before("student.backbone.", OTHER),
        "iteration": 10,
    },
    "dinov2, chunks": lambda: {"teacher": put_before("backbone.", split_blocks(STATE, 2))},
    "student alone": lambda: put_before("student.backbone."),
    "averaged": lambda: {"state_dict": OTHER, "state_dict_ema": STATE, "loss": np.float64(0.5)},
    "i-jepa": lambda: {
        "encoder": put_before("module.", OTHER),
        "target_encoder": put_before("module."),
        "opt": None,
    },
    "beside the outermost": lambda: STATE | put_before("momentum.", OTHER),
    "transformers 4": lambda: put_before("vit.", call_as_transformers(STATE, OLD_NAMES)),
    "transformers 5": lambda: (
        call_as_transformers(STATE, NEW_NAMES) | {"pooler.dense.weight": torch.ones(2, 2)}
    ),
    "transformers, names in part": lambda: call_as_transformers(
        STATE,
        {"blocks": "layer", "attn.qkv": "attention.attention.{q,k,v}"}
        | dict(list(OLD_NAMES.items())[:3]),
    ),
}


def load(path: Path, name: str = NAME, **arguments: Any) -> State:
    """Load a file into the network, and give that network's parameters."""
    model = make(2, name, **arguments)
    transformers._load(model, WeightsFile(path, "a test", "0"), name)
    loaded: State = model.state_dict()
    return loaded


def assert_same(loaded: State, expected: State = STATE) -> None:
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_networks_parameters(form: str, tmp_path: Path) -> None:
    torch.save(FORMS[form](), tmp_path / "x.pth")
    assert_same(load(tmp_path / "x.pth"))


@pytest.mark.parametrize("old_format", [False, True])
def test_content_counts_and_not_the_suffix(old_format: bool, tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "x.ckpt")
    assert_same(load(tmp_path / "x.ckpt"))
    for name in ("y.bin", "y.safetensors"):
        torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=not old_format)
        assert_same(load(tmp_path / name))


def test_the_network_that_is_taken_is_named(tmp_path: Path) -> None:
    torch.save(FORMS["dinov2"](), tmp_path / "x.pth")
    network = read_network(tmp_path / "x.pth")
    assert network.prefix == "model.teacher.backbone"
    assert network.others == ("model.student.backbone",)


def test_of_two_networks_alike_none_is_guessed(tmp_path: Path) -> None:
    torch.save(put_before("left.") | put_before("right.", OTHER), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"2 networks \(left, right\), and nothing says which"):
        read_network(tmp_path / "x.pth")


def test_two_parameters_of_one_name_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1), "module.a": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="two parameters named a"):
        read_network(tmp_path / "x.safetensors")
    chunks = {key.replace("blocks.3", "blocks.1.0"): value for key, value in STATE.items()}
    torch.save(chunks | split_blocks(STATE, 2), tmp_path / "y.pth")
    with pytest.raises(WeightsError, match=r"two parameters named blocks\.0"):
        load(tmp_path / "y.pth")


def test_metas_registers_under_transformers_names(tmp_path: Path) -> None:
    name = "vit_small_patch14_reg4_dinov2.lvd142m"
    state = make(0, name, img_size=56).state_dict()
    row = torch.ones_like(state["cls_token"])
    # a whole number, so that timm's sum of the two is exact
    state["cls_token"] = torch.randint(-9, 9, row.shape).float()
    theirs = {
        key.replace(".ls", ".layer_scale").replace(".gamma", ".lambda1"): value
        for key, value in state.items()
    }
    theirs["register_tokens"] = theirs.pop("reg_token")
    theirs |= {"cls_token": state["cls_token"] - row, "mask_token": torch.zeros(1, 24)}
    theirs["pos_embed"] = torch.cat([row, state["pos_embed"]], dim=1)
    names = NEW_NAMES | {
        "blocks": "encoder.layer",
        "norm1": "norm1",
        "norm2": "norm2",
        "register_tokens": "embeddings.register_tokens",
        "mask_token": "embeddings.mask_token",
    }
    save_file(call_as_transformers(theirs, names), tmp_path / "x.safetensors")
    assert_same(load(tmp_path / "x.safetensors", name, img_size=56), state)


@pytest.mark.parametrize("biased", [False, True])
def test_biases_that_timm_would_drop_are_not_dropped(biased: bool, tmp_path: Path) -> None:
    name = "vit_small_patch16_dinov3.lvd1689m"
    state: State = make(0, name).state_dict()
    theirs = {
        key.replace("gamma_", "ls").replace("reg_token", "storage_tokens"): value
        for key, value in state.items()
    }
    theirs = {re.sub(r"(ls\d)$", r"\1.gamma", key): value for key, value in theirs.items()}
    bias = torch.zeros(3 * 24)
    bias[24:48] = 7  # of the keys, where it has no effect
    bias[0] = float(biased)
    save_file(theirs | {"blocks.0.attn.qkv.bias": bias}, tmp_path / "x.safetensors")
    if biased:
        with pytest.raises(WeightsError, match="biases of queries and values, which timm's"):
            load(tmp_path / "x.safetensors", name)
    else:
        assert_same(load(tmp_path / "x.safetensors", name), state)


def write_shards(folder: Path) -> Path:
    keys = sorted(STATE)
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for number, file in enumerate(files):
        save_file({key: STATE[key] for key in keys[number::2]}, folder / file)
    places = {key: files[number % 2] for number, key in enumerate(keys)}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    assert_same(load(index))
    before = digest_weights(index)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    with pytest.raises(WeightsError, match=r"one of 2 files .* model\.safetensors\.index\.json"):
        read_network(shard)
    save_file(OTHER, shard)
    assert digest_weights(index) != before
    shard.unlink()
    with pytest.raises(
        WeightsError, match=r"2 files, not all of which lie beside it \(model-00002"
    ):
        read_network(index)


def test_an_index_leads_nowhere_else(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(WeightsError, match="in other folders than its own"):
        read_network(index)


def write_array(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), a=np.ones(2))
    path.with_suffix(".npz").rename(path)


def write_archive(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "x.py")


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("README.md", "x")


NOT_WEIGHTS: dict[str, bytes | Callable[[Path], None]] = {
    "is a git-LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "is a git-annex pointer": b"/annex/objects/SHA256E-s9--0.pth\n",
    "is a web page": b"\n<!DOCTYPE html><html>Not found</html>",
    "is an XML page": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "is empty": b"",
    "is no file of weights, but JSON": b'{"architectures": ["Dinov2Model"]}',
    "is an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(40),
    "is a GGUF file": b"GGUF" + bytes(40),
    "is an archive of NumPy arrays": write_array,
    "is an archive: unpack": write_archive,
    "is an archive that torch did not write": write_zip,
}


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize("words", NOT_WEIGHTS)
def test_what_is_not_weights_is_called_what_it_is(words: str, name: str, tmp_path: Path) -> None:
    content, path = NOT_WEIGHTS[words], tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    with pytest.raises(WeightsError, match=re.escape(f"{name} {words}")) as caught:
        read_network(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.pth", "x.pt", "x.safetensors"])
@pytest.mark.parametrize("content", [b"not weights at all", b"PK\x03\x04" + bytes(40)])
def test_broken_files_are_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
        read_network(tmp_path / name)


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_a_download_that_was_cut_off_is_called_so(name: str, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.pth")
    save_file(STATE, tmp_path / "x.safetensors")
    os.truncate(tmp_path / name, (tmp_path / name).stat().st_size - 4000)
    with pytest.raises(WeightsError, match="cut short or damaged"):
        read_network(tmp_path / name)


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"model": {}}])
def test_files_without_weights_are_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"x\.pth holds no weights"):
        read_network(tmp_path / "x.pth")


def test_weights_with_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    broken = STATE["norm.weight"].clone()
    broken[3] = float("nan")
    save_file(STATE | {"norm.weight": broken}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"damaged: 1 parameter with .* \(norm\.weight\)"):
        load(tmp_path / "x.safetensors")


class Malicious:
    """An object that creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("old_format", [False, True])
def test_code_in_a_pickle_is_refused_and_not_run(old_format: bool, tmp_path: Path) -> None:
    target = tmp_path / "was here"
    path = tmp_path / "x.pth"
    content = {"state_dict": STATE, "extra": Malicious(target)}
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(WeightsError, match="could run code"):
        read_network(path)
    assert not target.exists()
    # The file is what it is said to be: loaded carelessly, it does run.
    torch.load(path, weights_only=False)
    assert target.exists()


def test_the_objects_of_a_pickle_are_named(tmp_path: Path) -> None:
    torch.save(make(0), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"objects beside weights \(timm\.\S+, .*could run code"):
        read_network(tmp_path / "x.pth")


def test_a_torchscript_program_is_not_run(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="is a TorchScript program"):
        read_network(tmp_path / "x.pt")
