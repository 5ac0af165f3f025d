"""Label maps on disk: indexed PNGs whose index 255 means ignore."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from pipeline.storage.files import require_inside, write_bytes
from pipeline.storage.places import find_files, is_remote


def write_label(path: Path, labels: NDArray[np.uint8], palette: bytes) -> None:
    """Write a label map as an indexed PNG, atomically."""
    image = PillowImage.fromarray(np.ascontiguousarray(labels))
    image.putpalette(palette)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=False)
    write_bytes(path, buffer.getvalue())


def remove_other_labels(folder: Path, keep: set[Path]) -> int:
    """Remove the PNGs below a folder that are not in ``keep``, and return how many there were.

    Label maps of an earlier evaluation (other splits, images that are gone) would otherwise be
    taken for those of this one.
    """
    require_inside(folder)
    others = [p for p in find_files(folder) if p.suffix == ".png" and p not in keep]
    for path in others:
        path.unlink()
    if is_remote(folder):
        return len(others)
    folders = (p for p in folder.rglob("*") if p.is_dir() and not p.is_symlink())
    for path in sorted(folders, reverse=True):
        if not any(path.iterdir()):
            path.rmdir()
    return len(others)
