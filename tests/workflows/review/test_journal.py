"""The journal: what is in it, what can be undone, and what a kill leaves of its last line."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pipeline.errors import RunError
from workflows.review.journal import Journal


def test_changes_are_numbered_and_read_again(tmp_path: Path) -> None:
    file = tmp_path / "made" / "journal.jsonl"
    journal = Journal(file)
    assert journal.last is None
    for number, what in enumerate(("first", "wörd\n")):
        assert journal.append({"what": what})["change"] == number
    again = Journal(file)
    assert len(again) == 2
    assert again.read(0)["what"] == "first"
    assert again.last is not None
    assert again.last["what"] == "wörd\n"


def test_what_is_undone_is_undone_once(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    journal = Journal(file)
    for what in "abc":
        journal.append({"what": what})
    journal.append({"what": "c", "undoes": 2})
    assert journal.undoable == [0, 1]
    journal.append({"what": "d"})
    for opened in (journal, Journal(file)):
        assert opened.undoable == [0, 1, 4]


def test_what_is_withdrawn_was_never_there(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    journal = Journal(file)
    journal.append({"what": "a"})
    before = file.read_bytes()
    journal.append({"what": "b"})
    journal.withdraw()
    assert file.read_bytes() == before
    journal.append({"what": "a", "undoes": 0})
    journal.withdraw()
    assert journal.undoable == [0]
    assert file.read_bytes() == before


def test_a_line_that_was_not_written_to_its_end_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    journal = Journal(file)
    journal.append({"what": "kept"})
    whole = file.read_bytes()
    journal.append({"what": "lost"})
    longer = file.read_bytes()
    for end in range(len(whole), len(longer)):
        file.write_bytes(longer[:end])
        opened = Journal(file)
        assert len(opened) == 1
        assert file.read_bytes() == whole
        opened.append({"what": "next"})
        assert [Journal(file).read(n)["what"] for n in range(2)] == ["kept", "next"]


def test_a_damaged_line_is_not_cut_off_with_those_after_it(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    journal = Journal(file)
    for what in "abc":
        journal.append({"what": what})
    content = file.read_bytes().replace(b'{"change": 1', b'"change": 1')
    file.write_bytes(content)
    with pytest.raises(RunError, match="after change 1; correct that line or move the file"):
        Journal(file)
    assert file.read_bytes() == content


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal.jsonl")

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(RunError, match="nothing was changed; free some space"):
            journal.append({"what": "a"})
    assert len(Journal(journal.file)) <= 1
