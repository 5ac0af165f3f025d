"""Label maps on disk: indexed PNGs whose index 255 means ignore."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from pipeline.files import write_bytes


def write_label(path: Path, labels: NDArray[np.uint8], palette: bytes) -> None:
    """Write a label map as an indexed PNG, atomically.

    Parameters
    ----------
    path
        Where to; folders are made.
    labels
        uint8 [y, x].
    palette
        256 x 3 colour values.

    Raises
    ------
    RunError
        It cannot be written.
    """
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
    others = [path for path in folder.rglob("*.png") if path.is_file() and path not in keep]
    for path in others:
        path.unlink()
    for path in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        if not any(path.iterdir()):
            path.rmdir()
    return len(others)
