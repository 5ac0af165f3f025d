"""Another kind of object store is one class and one entry point."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from zarr.core.buffer import cpu
from zarr.storage import MemoryStore

from pipeline.errors import RunError, UsageError
from pipeline.storage.arrays import ArraySpec, open_arrays, prepare_arrays, read_rows, write_shard
from pipeline.storage.files import remove_tree, write_bytes
from pipeline.storage.locks import hold_lock
from pipeline.storage.places import (
    PREFIX,
    STORES,
    ObjectPath,
    ObjectStatus,
    Store,
    find_files,
    measure,
    parse_place,
)


class HeapStore(Store):
    """Objects in a dictionary: key -> content; the tag is the content's hash."""

    credentials = "none are needed"
    objects: ClassVar[dict[str, bytes]] = {}

    @classmethod
    def connect(cls) -> HeapStore:
        return cls()

    def get(self, path: ObjectPath, most: int) -> tuple[bytes | None, ObjectStatus]:
        status = self.head(path)
        return (self.objects[path.key] if status.st_size <= most else None), status

    def head(self, path: ObjectPath) -> ObjectStatus:
        if path.key not in self.objects:
            raise FileNotFoundError(errno.ENOENT, "no such object", str(path))
        content = self.objects[path.key]
        return ObjectStatus.of(tag_of(content), len(content), datetime(2026, 1, 2, tzinfo=UTC))

    def put(self, path: ObjectPath, content: bytes) -> None:
        self.objects[path.key] = content

    def delete(self, path: ObjectPath) -> None:
        self.objects.pop(path.key, None)

    def delete_below(self, path: ObjectPath) -> None:
        for name, _ in self.list(path, deep=True):
            self.objects.pop(path.prefix + name, None)

    def list(self, path: ObjectPath, *, deep: bool) -> list[tuple[str, ObjectStatus]]:
        below = [key.removeprefix(path.prefix) for key in self.objects if self._is_in(key, path)]
        if deep:
            return [(name, self.head(path / name)) for name in below]
        prefixes = {name.partition("/")[0] for name in below if "/" in name}
        found = [(name, self.head(path / name)) for name in below if "/" not in name]
        return found + [(name, PREFIX) for name in prefixes]

    def holds(self, path: ObjectPath) -> bool:
        return any(self._is_in(key, path) for key in self.objects)

    def open_zarr(self, path: ObjectPath) -> MemoryStore:
        listed = self.list(path, deep=True)
        return MemoryStore(
            {name: cpu.Buffer.from_bytes((path / name).read_bytes()) for name, _ in listed},
            read_only=True,
        )

    def get_tagged(self, path: ObjectPath, seconds: float) -> tuple[str, bytes] | None:
        content = self.objects.get(path.key)
        return None if content is None else (tag_of(content), content)

    def put_if(
        self, path: ObjectPath, content: bytes, tag: str | None, seconds: float
    ) -> str | None:
        found = self.objects.get(path.key)
        if tag != (None if found is None else tag_of(found)):
            return None
        self.objects[path.key] = content
        return tag_of(content)

    def delete_if(self, path: ObjectPath, tag: str | None, seconds: float) -> bool:
        if path.key not in self.objects or tag not in (None, tag_of(self.objects[path.key])):
            return False
        del self.objects[path.key]
        return True

    def _is_in(self, key: str, path: ObjectPath) -> bool:
        return key.startswith(path.prefix)


def tag_of(content: bytes) -> str:
    return str(hash(content))


@pytest.fixture
def top(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A prefix of the store, which another package has brought."""
    entry = EntryPoint("heap", f"{__name__}:HeapStore", "primaps_pipe.stores")
    monkeypatch.setattr(STORES, "_entries", {**STORES._entries, "heap": [entry]})
    yield parse_place("heap://bucket/top")
    HeapStore.objects.clear()


def test_another_store_is_named_by_its_scheme(top: Path) -> None:
    assert str(top / "a") == "heap://bucket/top/a"
    with pytest.raises(UsageError, match=r"password; none are needed\.$"):
        parse_place("heap://me:secret@bucket/a")
    with pytest.raises(UsageError, match=r"local path or s3://bucket/prefix or heap://bucket/pre"):
        parse_place("gs://bucket/a")


def test_files_in_another_store(top: Path) -> None:
    for name in ("a.json", "b/c.json", "b/d/e.png"):
        write_bytes(top / name, name.encode())
    assert [path.relative_to(top).as_posix() for path in find_files(top)] == [
        "a.json",
        "b/c.json",
        "b/d/e.png",
    ]
    assert [path.name for path in top.iterdir()] == ["a.json", "b"]
    assert [path.name for path in top.glob("*/*.json")] == ["c.json"]
    assert (top / "b" / "d" / "e.png").read_text() == "b/d/e.png"
    assert measure(top / "b") == len("b/c.json") + len("b/d/e.png")
    remove_tree(top / "b")
    assert not (top / "b").exists()


def test_arrays_in_another_store(top: Path) -> None:
    spec = ArraySpec((2,), ("row", "x"), "float32", compress=True)
    prepare_arrays(top / "a.zarr", {"values": spec}, 3, 2, {})
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    write_shard(top / "a.zarr", {"values": rows[:2]}, 0, 2)
    write_shard(top / "a.zarr", {"values": rows[2:]}, 1, 2)
    values: Any = open_arrays(top / "a.zarr", ["values"])["values"]
    assert np.array_equal(read_rows(values, 0, 3), rows)


def test_locks_in_another_store(top: Path) -> None:
    file = top / "state" / "locks" / "em"
    with hold_lock(file, what="em", wait=False) as lock:
        lock.check()
        with (
            pytest.raises(RunError, match="is computing em"),
            hold_lock(file, what="em", wait=False),
        ):
            pass
    assert not file.exists()
