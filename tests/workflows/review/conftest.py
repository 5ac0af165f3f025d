"""A copy of the finished run, to say things of."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.run.directory import RunDirectory, Subject
from pipeline.run.manifest import Image, read_manifest
from stages.artefacts import open_artefacts
from stages.labelling import MAIN
from workflows.review.state import Said


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> RunDirectory:
    shutil.copytree(finished, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def image(run: RunDirectory) -> Image:
    return next(image for image in read_manifest(run).images if image.ok)


@pytest.fixture
def begin(run: RunDirectory) -> Callable[[], Said]:
    """Begin a review of what lies in the run, as a new process does."""

    def find_image(split: str, id: str) -> Image:
        images = read_manifest(run).images
        return next(i for i in images if (i.split, i.id) == (split, id))

    clusters = open_artefacts(run, "default", gain=1.0).classifiers[MAIN]
    return lambda: Said(run, Subject("em", "default"), clusters, find_image)
