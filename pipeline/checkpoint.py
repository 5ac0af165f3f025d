"""Checkpoints of a long computation: two slots in turn, and a pointer to the whole one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.files import read_json, write_json
from pipeline.store import read_group, write_group


@dataclass(frozen=True)
class Checkpoint:
    """Where a computation saves itself.

    A save writes the slot that the pointer does not name, then moves the pointer atomically: killed
    at any instant, the older slot is still whole.

    Attributes
    ----------
    store, group
        Zarr store, and the group in it that holds the slots.
    pointer
        JSON file that names the whole slot.
    fingerprint
        What the computation is made from; a checkpoint of anything else is ignored.
    """

    store: Path
    group: str
    pointer: Path
    fingerprint: str

    def save(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Save arrays and JSON-able values."""
        slot = 1 - self._slot()
        named = {name: (a, tuple(f"axis_{i}" for i in range(a.ndim))) for name, a in arrays.items()}
        write_group(self.store, f"{self.group}/{slot}", named, values)
        write_json(self.pointer, {"slot": slot, "fingerprint": self.fingerprint})

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Return what was saved last, or None where nothing of this fingerprint is left."""
        content = read_json(self.pointer)
        if content is None or content["fingerprint"] != self.fingerprint:
            return None
        group = f"{self.group}/{content['slot']}"
        # the store may have been deleted to start afresh, and the pointer lies elsewhere
        return read_group(self.store, group) if (self.store / group).is_dir() else None

    def remove(self) -> None:
        """Forget everything, the pointer first."""
        self.pointer.unlink(missing_ok=True)
        shutil.rmtree(self.store / self.group, ignore_errors=True)

    def _slot(self) -> int:
        content = read_json(self.pointer)
        return int(content["slot"]) if content else 1
