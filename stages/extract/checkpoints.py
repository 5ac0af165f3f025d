"""Checkpoints: what a file of weights is, and one network out of it, under timm's names.

Training tools wrap a network into what they train it in, beside optimisers, heads and other
networks; no code that a file may carry is run. A network is found by the weight of its patch
embedding, whatever stands before that in its name.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from pipeline.errors import WeightsError, count_of
from pipeline.foreign import is_archive, name_stand_in

# Records without behaviour that training tools leave beside the weights: DINO its arguments,
# others a score or a learning rate.
_SCALAR = np._core.multiarray.scalar  # type: ignore[attr-defined]
_INERT: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
]

_HEAD_BYTES = 1024
_AGAIN = "it is cut short or damaged: download it again"
# how files begin that people take for weights
_FOREIGN = {
    r"$": "is empty: download it again",
    r"\x89HDF": "is an HDF5 file, as Keras writes: save the weights as .safetensors",
    r"\x93NUMPY": "is a NumPy array: save the weights as .safetensors",
    r"GGUF": "is a GGUF file, whose weights are packed for language models: take .safetensors",
}


def list_files(path: Path) -> list[Path]:
    """List the files that weights lie in: those that an index of shards names, or the one."""
    with path.open("rb") as file:
        if not file.read(_HEAD_BYTES).lstrip().startswith(b"{"):
            return [path]
    try:
        places = json.loads(path.read_bytes())["weight_map"].values()
        names = sorted({str(name) for name in places})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path} is no file of weights, but JSON without a `weight_map`, such as a model's "
            "configuration: name the file of weights beside it."
        ) from error
    if any(Path(name).name != name for name in names):
        raise WeightsError(f"{path} names shards in other folders than its own: it is not read.")
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing or not names:
        raise WeightsError(
            f"{path} is the index of weights in {count_of(len(names), 'files')}, not all of which "
            f"lie beside it ({shorten(missing)}): "
            "download them into its folder."
        )
    return [path.parent / name for name in names]


def digest_weights(path: Path) -> str:
    """Give the sha256 of weights in hex: of their file, or of the digests of their shards."""
    files = list_files(path)
    if files == [path]:
        return digest_file(path)
    return hashlib.sha256("\n".join(map(digest_file, [path, *files])).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Give the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Network:
    """The parameters of one network: what stood before their names, and before those of others."""

    tensors: dict[str, Tensor]
    prefix: str = ""
    others: tuple[str, ...] = ()


def read_network(path: Path) -> Network:
    """Read the network that a file, or the shards that an index names, hold; of two, the teacher.

    The values are read where they are used, not before.
    """
    tensors: dict[str, Tensor] = {}
    for file in list_files(path):
        read = _flatten(_read_file(file))
        _add(tensors, ((key, value) for key, value in read if isinstance(value, Tensor)), path)
    if not tensors:
        raise WeightsError(f"{path} holds no weights: name a file that holds a state dict.")
    shard = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})(\.\w+)", path.name)
    if shard and int(shard[2]) > 1:
        raise WeightsError(
            f"{path} is one of {int(shard[2])} files that hold a model's weights together: name "
            f"their index, {shard[1]}{shard[3]}.index.json."
        )
    return _choose(tensors, path)


def _read_file(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if is_archive(head):
        raise WeightsError(f"{path} is an archive: unpack it, and name the file of weights in it.")
    if stand_in := name_stand_in(head):
        raise WeightsError(f"{path} is {stand_in}.")
    for beginning, words in _FOREIGN.items():
        if re.match(beginning, head.decode("latin-1"), re.IGNORECASE | re.DOTALL):
            raise WeightsError(f"{path} {words}.")
    if head.startswith((b"PK", b"\x80")):
        return _read_pickle(path)
    # eight bytes with the header's length, and then JSON
    safe = path.suffix == ".safetensors" or head[8:9] == b"{"
    return _read_safetensors(path) if safe else _read_pickle(path)


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors ({error}); {_AGAIN}.") from error


def _read_pickle(path: Path) -> Any:
    zipped = zipfile.is_zipfile(path)
    if zipped:
        _require_torchs(path)
    # its warnings show a line of torch's source
    with (
        path.open("rb") as file,
        warnings.catch_warnings(),
        torch.serialization.safe_globals(_INERT),
    ):
        warnings.simplefilter("ignore")
        # under this suffix it would take the path for what the file is not
        source, mapped = (file, False) if path.suffix == ".safetensors" else (path, zipped)
        try:
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            raise WeightsError(f"{path} is refused: {_explain_refusal(path)}.") from error
        except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            raise WeightsError(
                f"{path} cannot be read as weights saved by torch ({first_line(error)}); {_AGAIN}."
            ) from error


def _require_torchs(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError) as error:
        raise WeightsError(f"{path} cannot be read ({error}); {_AGAIN}.") from error
    if "constants.pkl" in names:
        raise WeightsError(
            f"{path} is a TorchScript program, which is code and not run: save its state dict as "
            ".safetensors and name that file."
        )
    if "data.pkl" not in names:
        arrays = any(name.endswith(".npy") for name in names)
        kind = (
            "is an archive of NumPy arrays" if arrays else "is an archive that torch did not write"
        )
        raise WeightsError(f"{path} {kind}: save the weights as .safetensors and name that file.")


def _explain_refusal(path: Path) -> str:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError):
        names = []
    found = f" ({shorten(sorted(names))})" if names else ""
    either = "" if names else "it is damaged, or "
    return (
        f"{either}it holds objects beside weights{found}, which could run code when they are "
        "loaded; save its state dict as .safetensors and name that file"
    )


def shorten(names: Sequence[str]) -> str:
    """List the first three names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _flatten(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings, their keys joined by dots."""
    if isinstance(value, Mapping) and depth < 9:
        for key, inner in value.items():
            yield from _flatten(inner, f"{name}.{key}" if name else str(key), depth + 1)
    else:
        yield name, value


def _add(into: dict[str, Tensor], pairs: Iterable[tuple[str, Tensor]], path: Path | str) -> None:
    for key, value in pairs:
        if key in into:
            raise WeightsError(f"{path} holds two parameters named {key}: keep one of the two.")
        into[key] = value


# --- one network of several -----------------------------------------------------------------------

_PATCHES = re.compile(
    r"((?:.*?\.)?)(?:patch_embed|embeddings\.patch_embeddings)\.(?:[\w.]+\.)?weight"
)
_WRAPPERS = re.compile(r"^(?:(?:state_dict|model|teacher|student|module|backbone|_orig_mod)\.)+")
# The averaged network is what self-supervised training is for; MoCo's authors take the other one.
_WANTED = re.compile(r"(?:^|[._])(?:teacher|ema|target)(?:[._]|$)|base_encoder|encoder_q")
_UNWANTED = re.compile(r"(?:^|[._])(?:student|online|momentum)(?:[._]|$)|encoder_k")


def _choose(tensors: dict[str, Tensor], path: Path) -> Network:
    found = {match[1] for key in tensors if (match := _PATCHES.fullmatch(key))}
    if not found:
        state: dict[str, Tensor] = {}
        _add(state, ((_WRAPPERS.sub("", key), value) for key, value in tensors.items()), path)
        return Network(state)
    best = min(map(_rank, found))
    first, *rest = sorted(prefix for prefix in found if _rank(prefix) == best)
    taken = _cut(tensors, first, found)
    for prefix in rest:
        if not _equal(taken, _cut(tensors, prefix, found)):
            raise WeightsError(
                f"{path} holds {count_of(1 + len(rest), 'networks')} ({_join(first, *rest)}), and "
                "nothing says which one to take: save the state dict of one as .safetensors and "
                "name that file."
            )
    others = sorted(prefix.rstrip(".") for prefix in found - {first, *rest})
    return Network(taken, first.rstrip("."), tuple(others))


def _rank(prefix: str) -> int:
    return 0 if _WANTED.search(prefix) else 2 if _UNWANTED.search(prefix) else 1


def _cut(tensors: Mapping[str, Tensor], prefix: str, found: Iterable[str]) -> dict[str, Tensor]:
    """Take what begins with one prefix, and not with another that is longer."""
    longer = tuple(other for other in found if other != prefix and other.startswith(prefix))
    return {
        key.removeprefix(prefix): value
        for key, value in tensors.items()
        if key.startswith(prefix) and not (longer and key.startswith(longer))
    }


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def _join(*prefixes: str) -> str:
    return ", ".join(prefix.rstrip(".") or "the outermost" for prefix in prefixes)


# --- timm's names ---------------------------------------------------------------------------------

_CHUNK = re.compile(r"^blocks\.\d+\.(?=\d+\.)")
# transformers, before and since its version 5
_RENAMED = (
    (r"^embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.distillation_token", "dist_token"),
    (r"^embeddings\.", ""),
    (r"^(?:encoder\.|model\.)?layers?\.", "blocks."),
    (r"\.(?:attention\.){1,2}(?=relative_position_bias)", "."),
    (r"\.relative_position_bias\.", ".attn."),
    (r"\.(?:attention\.){1,2}(?:query|q_proj|q)\.", ".attn.q."),
    (r"\.(?:attention\.){1,2}(?:key|k_proj|k)\.", ".attn.k."),
    (r"\.(?:attention\.){1,2}(?:value|v_proj|v)\.", ".attn.v."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.(?:intermediate\.dense|mlp\.weights_in)\.", ".mlp.fc1."),
    (r"\.(?:output\.dense|mlp\.weights_out|mlp\.down_proj)\.", ".mlp.fc2."),
    (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
    (r"\.mlp\.up_proj\.", ".mlp.fc1_x."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.lambda_(\d)$", r".gamma_\1"),
    (r"^layernorm\.", "norm."),
    (r"^pooler\.layernorm\.", "fc_norm."),
)
# what timm's networks hold as one, and others in parts
_PARTS = {"attn.qkv": ("attn.q", "attn.k", "attn.v"), "mlp.fc1": ("mlp.fc1_g", "mlp.fc1_x")}


def adapt_names(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the parameters the names, and the parts together, that timm's network has them under.

    ``own`` are the parameters of that network. Values stay as they are.
    """
    if any(key.startswith("embeddings.patch_embeddings.") for key in state):
        # by the absence of a learned position: DINOv3, under Meta's name for its registers
        rotary = "embeddings.position_embeddings" not in state
        state = _rename(state, lambda key: _rename_transformers(key, rotary))
    if not any(_CHUNK.match(key) for key in own):
        state = _rename(state, lambda key: _CHUNK.sub("blocks.", key))
    for whole, parts in _PARTS.items():
        state = _put_together(state, own, whole, parts)
    return state


def _rename(state: Mapping[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    _add(renamed, ((rename(key), value) for key, value in state.items()), "the checkpoint")
    return renamed


def _rename_transformers(key: str, rotary: bool) -> str:
    for pattern, name in _RENAMED:
        key = re.sub(pattern, name, key)
    return "storage_tokens" if rotary and key == "register_tokens" else key


def _put_together(
    state: dict[str, Tensor], own: Mapping[str, Tensor], whole: str, parts: tuple[str, ...]
) -> dict[str, Tensor]:
    stems = "|".join(map(re.escape, parts))
    pattern = re.compile(rf"(blocks\.\d+\.)({stems})\.(weight|bias)")
    result, found = {}, dict[tuple[str, str], dict[str, Tensor]]()
    for key, value in state.items():
        match = None if key in own else pattern.fullmatch(key)
        if match is None:
            result[key] = value
        else:
            found.setdefault((match[1], match[3]), {})[match[2]] = value
    for (block, kind), values in found.items():
        given = next(iter(values.values()))
        if whole == "attn.qkv" and kind == "bias" and f"{block}attn.q_bias" in own:
            result |= {f"{block}{part}_bias": value for part, value in values.items()}
        elif whole == "mlp.fc1" and len(values) == 1:
            # a layer of that name without a gate
            result[f"{block}{whole}.{kind}"] = given
        elif kind == "bias" or len(values) == len(parts):
            # a bias that is not there is zero
            each = [values.get(part, torch.zeros_like(given)) for part in parts]
            result[f"{block}{whole}.{kind}"] = torch.cat(each)
        else:
            result |= {f"{block}{part}.{kind}": value for part, value in values.items()}
    return result
