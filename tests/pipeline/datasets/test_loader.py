"""Reading a dataset's YAML: safely, and with one sentence on what is none."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.datasets import DATASET_NAMES
from pipeline.datasets.loader import load_shipped, read_definition
from pipeline.errors import DatasetError

# lists of lists of the same lists: written out, a billion numbers
BOMB = "name: x\nimages: '*'\nabout:\n  a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"  {b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghijk")
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must hold keys and values"),
        ("- a", "must hold keys and values"),
        ("name: [", "is not YAML"),
        ("name: a\nname: b\nimages: '*.png'", "'name' is there twice"),
        ("name: !!python/object/apply:os.system ['true']", "is not YAML"),
        ("name: 2024-13-45", "is not YAML"),
        ("a: &a [*a]", "unknown key 'a'"),
        ("name: \0", "is not YAML"),
        ("[" * 100_000, "is not YAML"),
        ("name: x\nimages: '*'\nabout: {a: &a [*a]}", "about: 'a' must be a text"),
        (BOMB, "must be a text"),
    ],
)
def test_files_that_are_no_definition(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(DatasetError, match=said) as caught:
        read_definition(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(DatasetError, match="not UTF-8"):
        read_definition(tmp_path / "x.yaml")
    with pytest.raises(DatasetError, match="is a directory"):
        read_definition(tmp_path)
    (tmp_path / "big.yaml").write_text("#" * 2**20 + "\nname: x")
    with pytest.raises(DatasetError, match="more than"):
        read_definition(tmp_path / "big.yaml")


def test_the_shipped_ones_are_files() -> None:
    for name in set(DATASET_NAMES) - {"folder"}:
        about = load_shipped(name).about
        assert {"title", "paper", "url", "licence", "classes", "checked"} <= about.keys()
