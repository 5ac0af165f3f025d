"""The inventory: files below the run, by name, size and checksum."""

from __future__ import annotations

from pathlib import Path

from pipeline.files import checksum, note_writes, write_bytes
from pipeline.inventory import find_lost, list_files, note_files
from pipeline.run_directory import RunDirectory


def test_files_below_the_run_are_named_as_they_were_written_last(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with note_writes() as written:
        write_bytes(run.path / "a" / "b", b"old")
        write_bytes(tmp_path / "elsewhere", b"not ours")
        write_bytes(run.path / "quiet", b"", noted=False)
        write_bytes(run.path / "a" / "b", b"newer")
    files = list_files(run, written)
    assert files == {"a/b": (5, checksum(b"newer"))}
    with note_writes() as again:
        note_files(run, files)
    assert list_files(run, again) == files


def test_files_that_are_gone_or_of_another_size_are_lost(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with note_writes() as written:
        for name in ("kept", "gone", "cut"):
            write_bytes(tmp_path / name, b"1234")
    files = list_files(run, written)
    assert find_lost(run, files) == []
    (tmp_path / "gone").unlink()
    (tmp_path / "cut").write_bytes(b"12")
    assert find_lost(run, files) == ["gone", "cut"]
    assert find_lost(run, {"kept/inside": (1, "")}) == ["kept/inside"]
