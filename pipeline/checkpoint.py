"""Checkpoints of a long computation: one file, replaced as a whole."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from pipeline.errors import DamageError
from pipeline.files import remove_file, write_bytes

_VALUES = "values"
# What the readers of zip archives and arrays raise on damaged bytes.
_DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    EOFError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    BadZipFile,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Checkpoint:
    """Where a computation saves itself: killed at any instant, the last save is whole.

    Attributes
    ----------
    file
        A ``.npz`` file; each of its members carries a checksum.
    fingerprint
        What the computation is made from; a checkpoint of anything else is ignored.
    """

    file: Path
    fingerprint: str

    def save(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Save arrays and JSON-able values."""
        content = {
            "fingerprint": self.fingerprint,
            "names": sorted(arrays),
            "values": dict(values),
        }
        members: dict[str, Any] = {**arrays, _VALUES: np.array(json.dumps(content))}
        buffer = io.BytesIO()
        np.savez(buffer, **members)
        write_bytes(self.file, buffer.getvalue(), noted=False)

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Return what was saved last, or None where nothing of this fingerprint is left.

        Raises
        ------
        DamageError
            The file is damaged.
        """
        try:
            with np.load(io.BytesIO(self.file.read_bytes())) as members:
                arrays = {name: members[name] for name in members.files}
            content = json.loads(str(arrays.pop(_VALUES)))
            if sorted(arrays) != content["names"]:
                raise KeyError("its arrays have other names")
        except FileNotFoundError:
            return None
        except _DAMAGE as error:
            raise DamageError(
                f"the checkpoint {self.file} is damaged ({error}); "
                "delete it to begin the fit again."
            ) from error
        if content["fingerprint"] != self.fingerprint:
            return None
        return arrays, content["values"]

    def remove(self) -> None:
        """Forget everything."""
        remove_file(self.file)
