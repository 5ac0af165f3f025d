"""The ledger: what is written is read back, and nothing else counts as done.

The inventory: files below the run, by name, size and checksum.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DamageError, RunError
from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import Ledger, ShardRecord, StageRecord, find_lost, list_files
from pipeline.storage.files import checksum, note_writes, write_bytes, write_checked_json

STAGE = StageRecord("paint", 2, {"coats": 3}, {"extract": "ab"}, ["p", "q"], {"grid": [2, 2]})
SHARD = ShardRecord(1, "q", 0.5, 7, {"mean": 1.25}, {"masks.zarr/ids/c/0/0": (12, "00ff00ff")})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "state" / "em" / "k12")


def test_an_empty_ledger(ledger: Ledger) -> None:
    assert ledger.read_stage() is None
    assert ledger.read_shard(0) is None
    assert ledger.read_shards() == {}
    ledger.drop(0)
    assert not ledger.folder.exists()


def test_records_are_read_back(ledger: Ledger) -> None:
    ledger.write_stage(STAGE)
    ledger.commit(SHARD)
    ledger.commit(replace(SHARD, shard=0, fingerprint="p"))
    ledger.commit(replace(SHARD, shard=1_234_567))
    assert ledger.read_stage() == STAGE
    assert ledger.read_shard(1) == SHARD
    assert list(ledger.read_shards()) == [0, 1, 1_234_567]
    assert ledger.read_shards()[1] == SHARD


def test_drop(ledger: Ledger) -> None:
    ledger.write_stage(STAGE)
    ledger.commit(SHARD)
    ledger.drop(1)
    assert ledger.read_shards() == {}
    assert ledger.read_stage() == STAGE


def test_the_digest_is_of_the_shards_in_order() -> None:
    assert replace(STAGE, finished=True, facts={}).digest == STAGE.digest
    assert replace(STAGE, shards=["q", "p"]).digest != STAGE.digest
    assert replace(STAGE, shards=["p"]).digest != STAGE.digest
    assert replace(STAGE, findings="f").digest != STAGE.digest


def test_leftovers_of_a_crash_do_not_count(ledger: Ledger) -> None:
    ledger.commit(SHARD)
    (ledger.folder / "shards" / ".abc.part").write_bytes(b"{")
    assert list(ledger.read_shards()) == [1]


@pytest.mark.parametrize("content", [{"shard": 1}, {"colour": 2, "files": {}}, {"files": 3}])
def test_another_version_gives_one_sentence(ledger: Ledger, content: dict[str, Any]) -> None:
    ledger.commit(SHARD)
    write_checked_json(ledger.folder / "shards" / "000001.json", content)
    with pytest.raises(RunError, match=r"was written by another version .*; delete that folder"):
        ledger.read_shards()


@pytest.mark.parametrize("content", ['{"shard": 1}', "[1, 2]"])
def test_a_record_that_is_not_as_it_was_written(ledger: Ledger, content: str) -> None:
    ledger.commit(SHARD)
    (ledger.folder / "shards" / "000001.json").write_text(content)
    with pytest.raises(DamageError, match=r"is not as it was written .*verify --repair"):
        ledger.read_shards()


@given(bit=st.integers(0))
def test_no_flipped_bit_is_read(bit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    ledger = Ledger(tmp_path_factory.getbasetemp() / "flipped")
    ledger.commit(SHARD)
    file = ledger.folder / "shards" / "000001.json"
    content = bytearray(file.read_bytes())
    bit %= 8 * len(content)
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    with suppress(DamageError):
        # white space between the values may be other white space
        assert ledger.read_shard(1) == SHARD


def test_the_record_of_another_shard_is_refused(ledger: Ledger) -> None:
    ledger.commit(SHARD)
    ledger.file(2).write_bytes(ledger.file(1).read_bytes())
    with pytest.raises(DamageError, match=r"000002\.json is the record of shard 1"):
        ledger.read_shard(2)


def test_a_torn_record_gives_one_sentence(ledger: Ledger) -> None:
    ledger.commit(SHARD)
    (ledger.folder / "shards" / "000001.json").write_text('{"shard"')
    with pytest.raises(RunError, match=r"000001\.json is not JSON .*; delete it"):
        ledger.read_shard(1)


def test_files_of_others_are_no_records(ledger: Ledger) -> None:
    ledger.commit(SHARD)
    for name in ("x.json", "1.json", "0000001.json", "00000².json", "-00001.json"):
        (ledger.folder / "shards" / name).write_text("{}")
    assert ledger.list_shards() == [1]
    assert ledger.read_shards() == {1: SHARD}


def test_files_below_the_run_are_named_as_they_were_written_last(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with note_writes() as written:
        write_bytes(run.path / "a" / "b", b"old")
        write_bytes(tmp_path / "elsewhere", b"not ours")
        write_bytes(run.path / "quiet", b"", noted=False)
        write_bytes(run.path / "a" / "b", b"newer")
    files = list_files(run, written)
    assert files == {"a/b": (5, checksum(b"newer"))}


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


def test_a_plan_is_read_once_for_every_time_it_was_written(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    read = Ledger.read_stage

    def look(self: Ledger) -> StageRecord | None:
        reads.append(self.folder)
        return read(self)

    monkeypatch.setattr(Ledger, "read_stage", look)
    assert ledger.recall_stage() is None
    for record in (STAGE, replace(STAGE, shards=["q", "p"])):
        ledger.write_stage(record)
        assert [ledger.recall_stage() for _ in range(3)] == [record] * 3
    assert len(reads) == 2
    ledger.file(None).unlink()
    assert ledger.recall_stage() is None
