"""What a dataset may be called, and what is said of a name that cannot be meant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.dataset_names import (
    DATASET_NAMES,
    check_dataset_name,
    complete_dataset_name,
    is_gone,
    needs_root,
)
from pipeline.datasets import get_dataset
from pipeline.errors import UsageError


@pytest.mark.parametrize("name", [*DATASET_NAMES, "list:a.csv", "huggingface:no/such folder"])
def test_names_that_can_be_meant(name: str) -> None:
    assert check_dataset_name(name) == name


def test_files_have_to_be_there(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.touch()
    assert check_dataset_name(str(path)) == str(path)
    assert not is_gone(str(path)) and not is_gone("camvid")
    path.unlink()
    assert is_gone(str(path)) and is_gone(f"list:{path}") and is_gone(f"huggingface:{path}")
    with pytest.raises(UsageError, match=r"mine\.yml: there is no such file"):
        check_dataset_name(str(path))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("camvit", "did you mean 'camvid'"),
        ("COCO-Stuff", "did you mean 'cocostuff'"),
        ("ade", "choose from folder, ade20k"),
        ("zzz", r"huggingface:DIR, list:FILE\.csv, the path of a YAML of your own"),
        ("list:", "give the path of the CSV file after the colon"),
        ("huggingface: ", "give the path of the folder of a dataset"),
        ("data/photographs", "no such file"),
    ],
)
def test_names_that_cannot_be_meant(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_dataset_name(name)
    with pytest.raises(UsageError, match=said):
        get_dataset(name)


def test_paths_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert complete_dataset_name("camvid") == "camvid"
    assert complete_dataset_name("x.yaml") == f"{tmp_path}/x.yaml"
    assert complete_dataset_name("list:d/x.csv") == f"list:{tmp_path}/d/x.csv"
    assert complete_dataset_name("huggingface:d") == f"huggingface:{tmp_path}/d"
    assert complete_dataset_name(f"huggingface:{tmp_path}/d") == f"huggingface:{tmp_path}/d"
    assert needs_root("camvid") and not needs_root("list:x") and not needs_root("huggingface:x")


def test_asking_is_cheap() -> None:
    code = "import sys, pipeline.dataset_names as n; print({'numpy', 'PIL'} & {*sys.modules})"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "set()\n"
