"""What extract takes of a dataset that the run keeps, and of one that is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.datasets import get_dataset
from pipeline.errors import DatasetError, UsageError
from pipeline.run.directory import RunDirectory
from pipeline.run.manifest import Manifest
from stages.extract.settings import ExtractSettings
from stages.extract.stage import open_source


@pytest.fixture
def definition(tmp_path: Path) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text("name: x\nimages: '*.png'\nclasses: [a, b]\n")
    return path


def keep(run: RunDirectory, name: str, root: Path) -> None:
    """Keep a dataset in a run without images."""
    run.create()
    Manifest(name, root, None, (), (), get_dataset(name).content).write(run)


def test_a_new_run_takes_what_there_is(definition: Path, tmp_path: Path) -> None:
    settings = ExtractSettings(dataset=str(definition), root=tmp_path)
    source = open_source(RunDirectory(tmp_path / "run"), settings)
    assert source.dataset.class_names() == ("a", "b")
    assert (source.root, source.kept, source.warning) == (tmp_path, None, "")


def test_what_is_gone_is_taken_from_the_run(definition: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    keep(run, str(definition), tmp_path / "photographs")
    settings = ExtractSettings(dataset=str(definition), root=tmp_path / "other")
    source = open_source(run, settings)
    assert source.kept == source.dataset.content and not source.warning
    definition.unlink()
    source = open_source(run, settings)
    assert source.dataset.class_names() == ("a", "b") and "is gone" in source.warning
    assert source.root == tmp_path / "other"
    with pytest.raises(UsageError, match="no such file"):
        open_source(run, ExtractSettings(dataset=f"{tmp_path}/y.yaml", root=tmp_path))


def test_what_is_broken_is_not_replaced(definition: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    keep(run, str(definition), tmp_path)
    definition.write_text("name: x\n")
    with pytest.raises(DatasetError, match="the key 'images' is missing"):
        open_source(run, ExtractSettings(dataset=str(definition), root=tmp_path))


def test_another_dataset_has_nothing_kept(definition: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    keep(run, str(definition), tmp_path)
    source = open_source(run, ExtractSettings(dataset="camvid", root=tmp_path))
    assert source.kept is None and source.dataset.name == "camvid"


def test_who_needs_a_root_is_asked_for_one() -> None:
    with pytest.raises(ValueError, match=r"needs --root \(setting extract\.root\)"):
        ExtractSettings(dataset="camvid")
    assert ExtractSettings(dataset="list:a.csv").root is None
