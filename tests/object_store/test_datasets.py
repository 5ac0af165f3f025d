"""Datasets of one's own in a store: the same samples as on a disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.dataset_names import complete_dataset_name
from pipeline.datasets import get_dataset
from pipeline.datasets.listing import find_paths
from pipeline.errors import DatasetError, UsageError
from pipeline.storage.places import parse_place
from tests.object_store.test_objects import copy_tree
from tests.pipeline.datasets.layout import write_image, write_label

NAMES = (
    *("t/a.png", "t/u/b.png", "t/u/v/c [1].png", "t/.h/d.png", "t/u/.e.png", "f.png", "x/u/b.jpg"),
    *("t/x...png", "t/x.a.png"),
)
PATTERNS = ("t/**/*.png", "**/*.png", "*/u/*", "*.png", "t/u/b.png", "t/x*.png", "*/*/v/c*.png")


@pytest.fixture
def both(bucket: str, tmp_path: Path) -> tuple[Path, Path]:
    """The same photographs on disk and in a store."""
    for name in NAMES:
        write_image(tmp_path / "set" / name)
    write_label(tmp_path / "set" / "l" / "u" / "b.png", [[1]])
    (tmp_path / "set" / "all.csv").write_text("image,label\nt/a.png,\nt/u/b.png,l/u/b.png\n")
    text = "name: x\nimages: t/**/*.png\nlabels: l/**/*.png\nclasses: [a, b]\n"
    (tmp_path / "set" / "x.yaml").write_text(text)
    remote = parse_place(f"{bucket}/set")
    copy_tree(tmp_path / "set", remote)
    return tmp_path / "set", remote


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_find_the_same(both: tuple[Path, Path], pattern: str) -> None:
    local, remote = both
    found = sorted(find_paths(local, pattern))
    assert sorted(find_paths(remote, pattern)) == found
    assert found


def test_a_definition_and_a_list_in_a_store(both: tuple[Path, Path]) -> None:
    local, remote = both
    for name in ("x.yaml", "all.csv"):
        prefix = "list:" if name == "all.csv" else ""
        ours = get_dataset(f"{prefix}{local / name}")
        theirs = get_dataset(f"{prefix}{remote / name}")
        expected = ours.list_samples(local, ["all"])
        assert theirs.list_samples(remote, ["all"]) == expected
        assert ours.list_samples(local, ["all"]) == expected
        assert [s.id for s in expected if s.label] in (["u/b"], ["t/u/b"])
        assert complete_dataset_name(f"{prefix}{remote / name}") == f"{prefix}{remote / name}"
    assert theirs.find_root(None) == remote
    url = f"{remote}/t/a.png"
    (remote / "urls.csv").write_bytes(f"image\n{url}\n".encode())
    (sample,) = get_dataset(f"list:{remote}/urls.csv").list_samples(remote, ["all"])
    assert sample.image == "t/a.png"


def test_what_is_not_there(both: tuple[Path, Path]) -> None:
    _, remote = both
    with pytest.raises(UsageError, match="no such file"):
        get_dataset(f"{remote}/y.yaml")
    with pytest.raises(DatasetError, match="there is no list"):
        get_dataset(f"list:{remote}/y.csv")
    with pytest.raises(UsageError, match="must be a local folder"):
        get_dataset(f"huggingface:{remote}")
