"""Files are whole or absent, whatever fails in between.

Checkpoints: killed at any instant, the last whole one is loaded.

Where the cache lies.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DamageError, RunError
from pipeline.storage.files import (
    Checkpoint,
    confine_writes,
    find_cache,
    fingerprint,
    read_json,
    remove_file,
    remove_tree,
    sync_folder,
    write_bytes,
    write_json,
    write_text,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_content_replaces_content_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_bytes(path, b"old")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_failed_write_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    monkeypatch.setattr(*((os, "fsync") if where == "fsync" else (Path, "replace")), full_disk)
    with pytest.raises(RunError) as caught:
        write_bytes(path, b"new")
    assert str(caught.value) == (
        f"cannot write {path} (3 bytes): No space left on device; "
        "free some space or choose a folder that may be written."
    )
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_an_interrupt_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    monkeypatch.setattr(*((os, "fsync") if where == "fsync" else (Path, "replace")), interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_bytes_are_on_disk_before_the_name_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, move = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        kind = os.fstat(descriptor).st_mode
        calls.append("sync folder" if stat.S_ISDIR(kind) else "sync file")
        sync(descriptor)

    def note_move(self: Path, target: Path) -> Path:
        calls.append("move")
        return move(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_move)
    write_bytes(tmp_path / "file", b"new")
    assert calls == ["sync file", "move", "sync folder"]


def test_a_folder_that_is_a_file_gives_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match=r"^cannot write .*; free some space or choose a folder"):
        write_bytes(tmp_path / "file" / "inside", b"x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_locked_folder_gives_one_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RunError, match="Permission denied"):
            write_bytes(tmp_path / "file", b"x")
    finally:
        tmp_path.chmod(0o700)


def test_permission_errors_give_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RunError, match=r"^cannot write .* \(1 bytes\): Permission denied; free"):
        write_bytes(tmp_path / "file", b"x")


def test_files_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_writing_from_threads_leaves_the_umask_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> int:
        raise AssertionError("the umask belongs to the whole process")

    monkeypatch.setattr(os, "umask", refuse)
    threads = [
        threading.Thread(target=write_bytes, args=(tmp_path / "file", b"%d" % i)) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() in [b"%d" % i for i in range(8)]


def test_a_system_that_cannot_sync_folders_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    sync_folder(tmp_path)


def test_a_folder_that_fails_to_sync_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output"):
        sync_folder(tmp_path)


def test_text_and_json_are_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "Krähenbühl\n")
    assert (tmp_path / "text").read_bytes() == "Krähenbühl\n".encode()
    write_json(tmp_path / "json", {"é": [1, None, "日本"]})
    assert "日本" in (tmp_path / "json").read_text(encoding="utf-8")
    assert read_json(tmp_path / "json") == {"é": [1, None, "日本"]}


def test_json_holds_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "json", float("nan"))
    assert not list(tmp_path.iterdir())


def test_absent_json_is_none(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none") is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_broken_json_gives_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"x\.json is not JSON .*; delete it to compute it again\.$"):
        read_json(path)


def test_json_that_cannot_be_read_gives_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^cannot read "):
        read_json(tmp_path)


@given(JSON, JSON)
def test_fingerprints_are_equal_where_values_are(first: Any, second: Any) -> None:
    same = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert (fingerprint(first) == fingerprint(second)) is same
    assert fingerprint(first) == fingerprint(json.loads(json.dumps(first)))


def test_fingerprints_know_where_a_part_ends() -> None:
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint((1, 2)) == fingerprint([1, 2])
    assert len(fingerprint("x")) == 32


def test_fingerprints_do_not_change_between_versions() -> None:
    assert fingerprint("extract", 1, {"size": 320}) == "fad08c185a0aa1f01b038eb73210057e"


def test_writes_are_confined_to_a_folder(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "inner").mkdir(parents=True)
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious")
    (root / "link").symlink_to(outside)
    (root / "inner" / "file").symlink_to(outside / "precious")
    (root / "near").symlink_to(root / "inner")
    bad = [
        *(root / "link" / "file", root / "link" / "precious", root / "inner" / "file"),
        *(root / ".." / "outside" / "precious", outside / "precious", tmp_path / "rootless"),
    ]
    for path in bad:
        with confine_writes(root):
            for change in (lambda p: write_bytes(p, b"x"), remove_file, remove_tree):
                with pytest.raises(RunError, match="nothing is"):
                    change(path)
    assert (outside / "precious").read_bytes() == b"precious"
    assert [path.name for path in outside.iterdir()] == ["precious"]
    with confine_writes(root):
        for path in (root / "a", root / "inner" / "b" / "c", root / "near" / "d"):
            write_bytes(path, b"x")
            assert path.read_bytes() == b"x"
        remove_tree(root / "inner" / "b")
        with confine_writes(outside):
            write_bytes(outside / "a", b"x")
        with pytest.raises(RunError):
            write_bytes(outside / "b", b"x")
    # where nothing is named, nothing is refused
    write_bytes(outside / "b", b"x")


def test_the_confining_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with confine_writes(tmp_path / "link"):
        write_bytes(tmp_path / "link" / "a" / "b", b"x")
    assert (tmp_path / "real" / "a" / "b").read_bytes() == b"x"


def make(folder: Path, fingerprint: str = "abc") -> Checkpoint:
    return Checkpoint(folder / "fit.npz", fingerprint)


def arrays(epoch: int) -> dict[str, np.ndarray]:
    return {
        "weight": np.full((3, 2), epoch, np.float32) / 3,
        "step": np.array(10 * epoch, np.int64),
        "none": np.zeros((0, 2), np.float64),
    }


def assert_epoch(saved: tuple[dict[str, np.ndarray], dict[str, Any]] | None, epoch: int) -> None:
    assert saved is not None
    loaded, values = saved
    assert values == {"epoch": epoch, "loss": [0.1] * epoch}
    assert sorted(loaded) == ["none", "step", "weight"]
    for name, array in arrays(epoch).items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array, strict=True)


def save(checkpoint: Checkpoint, epoch: int) -> None:
    checkpoint.save(arrays(epoch), {"epoch": epoch, "loss": [0.1] * epoch})


def test_the_last_one_is_loaded_exactly(tmp_path: Path) -> None:
    assert make(tmp_path).load() is None
    for epoch in range(1, 5):
        save(make(tmp_path), epoch)
        assert_epoch(make(tmp_path).load(), epoch)


def test_killed_in_a_save_the_older_one_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    save(make(tmp_path), 1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            save(make(tmp_path), 2)
    assert_epoch(make(tmp_path).load(), 1)


def test_one_of_something_else_is_ignored(tmp_path: Path) -> None:
    save(make(tmp_path), 1)
    assert make(tmp_path, "other").load() is None
    assert_epoch(make(tmp_path).load(), 1)
    save(make(tmp_path, "other"), 2)
    assert make(tmp_path).load() is None
    assert_epoch(make(tmp_path, "other").load(), 2)


def test_no_flipped_bit_is_loaded(tmp_path: Path) -> None:
    save(make(tmp_path), 3)
    whole = make(tmp_path).file.read_bytes()
    for bit in range(0, 8 * len(whole), 97):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        make(tmp_path).file.write_bytes(content)
        try:
            # a bit of a time or of padding changes nothing
            assert_epoch(make(tmp_path).load(), 3)
        except DamageError as error:
            assert "delete it to begin the fit again" in str(error)


def test_removed_it_is_gone(tmp_path: Path) -> None:
    save(make(tmp_path), 1)
    make(tmp_path).remove()
    make(tmp_path).remove()
    assert make(tmp_path).load() is None
    assert not any(tmp_path.iterdir())


def test_the_environment_says_where_the_cache_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIMAPS_CACHE_DIR", str(tmp_path))
    assert find_cache("weights") == tmp_path / "weights"


def test_without_a_word_it_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRIMAPS_CACHE_DIR", raising=False)
    assert find_cache("datasets").parent.name == "primaps-pipe"
