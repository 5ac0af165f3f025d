"""The metadata of groups and arrays, while others write and remove some."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.metadata import consolidate, is_consolidated, is_damaged, list_nodes
from pipeline.store import write_group


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of two groups, each with an array."""
    for name in ("k12", "k20"):
        arrays = {"w": (np.ones((2, 3), np.float32), ("a", "b"))}
        write_group(tmp_path / "em.zarr", name, arrays, {})
    return tmp_path / "em.zarr"


def test_nodes_with_their_metadata(store: Path) -> None:
    nodes = list_nodes(store)
    assert list(nodes) == ["k12", "k12/w", "k20", "k20/w"]
    assert nodes["k20/w"] == (store / "k20/w/zarr.json").read_bytes()
    assert list_nodes(store / "none") == list_nodes(store / "k12/zarr.json") == {}


@pytest.mark.parametrize("last", ["k20/zarr.json", "k20/w/zarr.json"])
def test_a_group_that_is_removed_meanwhile(
    store: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    read = Path.read_bytes

    def read_and_remove(path: Path) -> bytes:
        content = read(path)
        if path == store / last:
            shutil.rmtree(store / "k20")
        return content

    monkeypatch.setattr(Path, "read_bytes", read_and_remove)
    consolidate(store)
    held = json.loads(read(store / "zarr.json"))["consolidated_metadata"]["metadata"]
    assert {"k12", "k12/w"} <= held.keys()
    monkeypatch.undo()
    consolidate(store)
    assert is_consolidated(store)


def test_damaged_is_neither_gone_nor_out_of_date(store: Path) -> None:
    assert not is_damaged(store)
    consolidate(store)
    shutil.rmtree(store / "k20")
    assert not is_damaged(store)
    (store / "zarr.json").write_bytes(b"{")
    assert is_damaged(store)
