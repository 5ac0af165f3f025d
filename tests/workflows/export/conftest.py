"""Exports of the shared run, and the label maps that they must hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from workflows.export.job import export_run

Export = Callable[..., list[str]]
QUIET = Screen(progress=False)


@pytest.fixture(scope="session")
def expected(finished: Path) -> dict[str, np.ndarray]:
    """Id -> classes of the run's label maps, uint8 [y, x], mapped here by hand."""
    metrics = json.loads((finished / "report" / "metrics.json").read_text())
    table = np.array(metrics["assignment_crf"], np.uint8)
    folder = finished / "labels" / "all"
    return {
        path.relative_to(folder).with_suffix("").as_posix(): table[np.asarray(Image.open(path))]
        for path in sorted(folder.rglob("*.png"))
    }


@pytest.fixture
def export(finished: Path) -> Export:
    """Export the shared run."""

    def call(format_: str, out: Path, **options: object) -> list[str]:
        run = options.pop("run", finished)
        return export_run(RunDirectory(Path(str(run))), format_, out, screen=QUIET, **options)  # type: ignore[arg-type]

    return call


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "run copy"))
