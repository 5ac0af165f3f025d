"""The annotation tools' own code, in a Python that has it, and what they are given."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from pipeline.run.directory import RunDirectory
from tests.workflows.export.conftest import QUIET
from workflows.export.folder import Folder
from workflows.export.job import Export, Source, open_source

PROGRAMS = Path(__file__).with_name("programs.py")
# They want other versions of Pillow and NumPy: `pip install 'primaps-pipe[tools]'` elsewhere.
TOOLS_PYTHON = os.environ.get("PRIMAPS_TOOLS_PYTHON", sys.executable)
# A class that CVAT cannot spell, and one that means "not labelled" to it.
NAMES = ("road: wet", "background", "Bäume & <Sträucher>")
Tool = Callable[[str, str, Path, Path], None]


@cache
def _has(module: str) -> bool:
    code = f"from importlib.util import find_spec; raise SystemExit(find_spec({module!r}) is None)"
    return subprocess.run([TOOLS_PYTHON, "-c", code], check=False).returncode == 0


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    """Let a tool read one place and write another; skip where it is not installed."""

    def call(module: str, program: str, given: Path, out: Path) -> None:
        if not _has(module):
            pytest.skip(f"{module} is not installed in PRIMAPS_TOOLS_PYTHON ({TOOLS_PYTHON})")
        quiet = {
            "HOME": str(tmp_path),
            "PATH": os.environ["PATH"],
            "QT_QPA_PLATFORM": "offscreen",
            "FIFTYONE_DO_NOT_TRACK": "1",
            "NO_ALBUMENTATIONS_UPDATE": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [TOOLS_PYTHON, str(PROGRAMS), program, str(given), str(out)]
        done = subprocess.run(
            command, env=quiet, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]

    return call


@pytest.fixture(scope="session")
def source(finished: Path) -> Source:
    """Two classes and one that is ignored, with names that try a format."""
    found = open_source(RunDirectory(finished), em=None, head=None, splits=(), ids="auto")
    colours = found.colours
    table = np.where(found.table == 0, 255, found.table).astype(np.uint8)
    return replace(found, classes=tuple(zip(NAMES, colours, strict=True)), table=table)


@pytest.fixture
def write(source: Source) -> Callable[..., Path]:
    """Write a format of the source; return the folder."""

    def call(format_: object, out: Path, images: str = "copy") -> Path:
        items = source.list_items(nested=format_.NESTED)  # type: ignore[attr-defined]
        format_.write(Export(source, items, Folder(out), images, QUIET))  # type: ignore[attr-defined]
        return out

    return call


@pytest.fixture
def names_of(source: Source) -> Callable[[str], np.ndarray]:
    """Give the name of every pixel of an image; an ignored one has none."""
    images = {image.id: image for image in source.manifest.images}
    table = np.array([*NAMES, *[""] * (256 - len(NAMES))], object)

    def call(id_: str) -> np.ndarray:
        return table[source.read_labels(images[id_])]

    return call
