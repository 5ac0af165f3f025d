"""Small files for the layouts that the datasets read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat


def write_image(path: Path) -> Path:
    """Write a photograph of 4 x 3 pixels, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (10, 20, 30)).save(path)
    return path


def write_label(path: Path, ids: list[list[int]]) -> Path:
    """Write a greyscale label map, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(ids, dtype=np.uint8)).save(path)
    return path


def write_mat(path: Path, name: str, values: np.ndarray) -> Path:
    """Write one array to a MAT-file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {name: values})
    return path
