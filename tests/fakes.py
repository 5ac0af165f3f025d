"""What several tests pretend."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from stages.em.pieces import FitBatch


class SliceArray:
    """Base of arrays that give slices of rows: rows from anywhere are slices of one row."""

    def __getitem__(self, rows: slice) -> np.ndarray:
        raise NotImplementedError

    @property
    def oindex(self) -> Rows:
        """As zarr names it."""
        return Rows(self)


class Rows:
    """Rows from anywhere in an array."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        return np.concatenate([self.array[slice(n, n + 1)] for n in numbers.tolist()])


@dataclass(frozen=True)
class HeldPiece:
    """Some windows of a fit (``stages.em.sums.Piece``) whose features are held in memory."""

    features: Tensor
    proposals: Tensor
    windows: np.ndarray
    size: int

    def list_batches(self) -> list[np.ndarray]:
        return [self.windows[n : n + self.size] for n in range(0, len(self.windows), self.size)]

    def read(self, windows: np.ndarray) -> FitBatch:
        return FitBatch(self.features[windows], self.proposals[windows])


def keep_blob(folder: Path, name: str, content: bytes, etag: str | None = None) -> Path:
    """Lay a file out as the hub's cache does: a link to its content, which its hash names."""
    blob = folder / "blobs" / (etag or hashlib.sha256(content).hexdigest())
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    link = folder / "snapshots" / name
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(Path("..") / "blobs" / blob.name)
    return link
