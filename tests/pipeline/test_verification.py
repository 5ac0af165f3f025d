"""Verification: every file against the ledger, whatever stage wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.checkpoint import Checkpoint
from pipeline.errors import RunError
from pipeline.files import note_writes, write_bytes
from pipeline.inventory import list_files
from pipeline.ledger import Ledger, ShardRecord, StageRecord
from pipeline.progress import Counter
from pipeline.run import Run
from pipeline.verification import Damage, count_shards, verify_run

NAMES = ("one", "two")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run in which a stage has finished two shards and a summary."""
    run = Run(tmp_path / "run").create()
    run.write_settings("paint", {"coats": 2}, {})
    ledger = Ledger(run.state("paint"))
    for shard, name in enumerate(NAMES):
        with note_writes() as written:
            write_bytes(run.path / name, name.encode() * 10)
        ledger.commit(ShardRecord(shard, "p", 0.1, 1, files=list_files(run, written)))
    with note_writes() as written:
        write_bytes(run.path / "summary", b"both")
    files = list_files(run, written)
    ledger.write_stage(StageRecord("paint", 1, {}, {}, ["p", "p"], {}, finished=True, files=files))
    return run


def verify(run: Run) -> list[Damage]:
    return list(verify_run(run, lambda total: Counter()).damages)


def test_nothing_is_found_where_nothing_is_wrong(run: Run) -> None:
    findings = verify_run(run, lambda total: Counter())
    assert findings.damages == ()
    assert (findings.files, findings.bytes) == (3, 64)


def test_files_of_shards_and_of_the_stage(run: Run) -> None:
    (run.path / "one").write_bytes(b"ONE" * 10)
    (run.path / "two").write_bytes(b"two")
    (run.path / "summary").unlink()
    assert sorted(map(Damage.describe, verify(run))) == [
        "paint, shard 0: one has other bytes than were written",
        "paint, shard 1: two has 3 bytes, not 30",
        "paint: summary is gone",
    ]
    assert count_shards(verify(run)) == 2


def test_records(run: Run) -> None:
    state = run.path / "state/paint"
    (state / "shards/000000.json").unlink()
    (state / "shards/000001.json").write_text("{}")
    assert sorted((d.shard, d.what) for d in verify(run)) == [
        (0, "is gone"),
        (1, "is not as it was written"),
    ]
    (state / "stage.json").unlink()
    assert {d.file: d.what for d in verify(run)} == {
        "state/paint/stage.json": "is gone",
        "state/paint/shards/000001.json": "is not as it was written",
    }


def test_what_is_not_finished_may_lack_shards(run: Run) -> None:
    ledger = Ledger(run.state("paint"))
    ledger.write_stage(StageRecord("paint", 1, {}, {}, ["p"] * 3, {}))
    assert verify(run) == []


def test_settings_and_their_copy(run: Run) -> None:
    text = run.settings_file.read_text()
    run.settings_file.write_text(text.replace("coats: 2", "coats: 3"))
    assert [d.describe() for d in verify(run)] == ["run.yaml is not as it was written"]
    run.settings_file.write_text(text)
    run.settings_copy.unlink()
    assert [d.describe() for d in verify(run)] == ["state/run.yaml is gone"]


def test_checkpoints(run: Run) -> None:
    checkpoint = Checkpoint(run.state("paint") / "fit.npz", "abc")
    checkpoint.save({}, {"epoch": 3})
    assert verify(run) == []
    checkpoint.file.write_bytes(checkpoint.file.read_bytes()[:-30])
    assert [d.describe() for d in verify(run)] == [
        "paint: state/paint/fit.npz is a damaged checkpoint"
    ]


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run directory"):
        verify(Run(tmp_path / "none"))
