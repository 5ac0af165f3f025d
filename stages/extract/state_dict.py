"""State dicts: read from a file of weights without running code that it may carry."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from pipeline.errors import WeightsError

STATE_WRAPPERS = ("state_dict", "model", "teacher", "student")
KEY_PREFIXES = re.compile(r"^(?:module\.|backbone\.|_orig_mod\.)+")


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a file of weights, without running code that it may carry.

    Parameters
    ----------
    path : Path
        `.safetensors`, or a file of `torch.save` under any other suffix.

    Returns
    -------
    dict of str to Tensor
        On the CPU, in the file's own dtypes; wrappers (`state_dict`, `model`, `teacher`,
        `student`) and prefixes (`module.`, `backbone.`, `_orig_mod.`) are taken off.

    Raises
    ------
    WeightsError
        If the file is broken, would run code, or holds no weights.
    """
    loaded = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    state = _unwrap(loaded)
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{path} holds no weights: name a file that holds a state dict.")
    stripped: dict[str, Tensor] = {}
    for key, value in tensors.items():
        short = KEY_PREFIXES.sub("", key)
        if short in stripped:
            raise WeightsError(f"{path} holds two parameters named {short}: keep one of the two.")
        stripped[short] = value
    return stripped


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors ({error}).") from error


def _read_pickle(path: Path) -> Mapping[str, Any]:
    try:
        # DINO's full checkpoints keep their arguments in a Namespace, a record without behaviour.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is refused: it is broken, or it holds objects beside weights, which could run "
            "code when they are loaded; save its state dict as .safetensors and name that file."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{path} cannot be read as weights saved by torch ({first_line(error)})."
        ) from error
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, not a state dict.")
    return loaded


def _unwrap(state: Mapping[str, Any]) -> Mapping[str, Any]:
    for wrapper in STATE_WRAPPERS:
        inner = state.get(wrapper)
        if isinstance(inner, Mapping):
            return _unwrap(inner)
    return state


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
