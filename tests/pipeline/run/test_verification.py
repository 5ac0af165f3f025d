"""Verification: every file against the ledger, whatever stage wrote it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import RunError
from pipeline.progress import Counter
from pipeline.run import verification
from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import Ledger, ShardRecord, StageRecord, list_files
from pipeline.run.verification import Damage, verify_run
from pipeline.storage.arrays import consolidate, is_consolidated, write_group
from pipeline.storage.files import Checkpoint, note_writes, write_bytes

NAMES = ("one", "two")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run in which a stage has finished two shards and a summary."""
    run = RunDirectory(tmp_path / "run").create()
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


def verify(run: RunDirectory) -> list[Damage]:
    return list(verify_run(run, lambda total: Counter()).damages)


def test_nothing_is_found_where_nothing_is_wrong(run: RunDirectory) -> None:
    findings = verify_run(run, lambda total: Counter())
    assert findings.damages == ()
    assert (findings.files, findings.bytes) == (3, 64)


def test_files_of_shards_and_of_the_stage(run: RunDirectory) -> None:
    (run.path / "one").write_bytes(b"ONE" * 10)
    (run.path / "two").write_bytes(b"two")
    (run.path / "summary").unlink()
    assert sorted(map(Damage.describe, verify(run))) == [
        "paint, shard 0: one has other bytes than were written",
        "paint, shard 1: two has 3 bytes, not 30",
        "paint: summary is gone",
    ]


def test_records(run: RunDirectory) -> None:
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


def test_what_is_not_finished_may_lack_shards(run: RunDirectory) -> None:
    ledger = Ledger(run.state("paint"))
    ledger.write_stage(StageRecord("paint", 1, {}, {}, ["p"] * 3, {}))
    assert verify(run) == []


def test_settings_and_their_copy(run: RunDirectory) -> None:
    text = run.settings_file.read_text()
    run.settings_file.write_text(text.replace("coats: 2", "coats: 3"))
    assert [d.describe() for d in verify(run)] == ["run.yaml is not as it was written"]
    run.settings_file.write_text(text)
    run.settings_copy.unlink()
    assert [d.describe() for d in verify(run)] == ["state/run.yaml is gone"]


def test_checkpoints(run: RunDirectory) -> None:
    checkpoint = Checkpoint(run.state("paint") / "fit.npz", "abc")
    checkpoint.save({}, {"epoch": 3})
    assert verify(run) == []
    checkpoint.file.write_bytes(checkpoint.file.read_bytes()[:-30])
    assert [d.describe() for d in verify(run)] == [
        "paint: state/paint/fit.npz is a damaged checkpoint"
    ]


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run directory"):
        verify(RunDirectory(tmp_path / "none"))


def test_settings_that_were_edited_are_no_damage(run: RunDirectory) -> None:
    lines = run.settings_file.read_text().replace("coats: 2", "coats: 3").splitlines()
    run.settings_file.write_text("\n".join(lines[:-1]) + "\n")
    assert verify(run) == []
    run.settings_copy.write_text("\n".join(lines))
    assert [d.describe() for d in verify(run)] == ["state/run.yaml is not as it was written"]


@pytest.mark.parametrize("begun", [False, True])
def test_a_stage_that_is_finished_or_begun_meanwhile(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    ledger = Ledger(run.state("paint"))
    finished, record = ledger.read_stage(), ledger.read_shard(1)
    assert finished is not None and record is not None
    if not begun:
        ledger.write_stage(replace(finished, finished=False))
        ledger.drop(1)
    pending = [None]

    def go_on() -> None:
        while pending:
            pending.pop()
            ledger.write_stage(replace(finished, finished=not begun))
            if begun:
                ledger.drop(1)
            else:
                ledger.commit(record)

    for name in ("read_stage", "list_shards"):
        method = getattr(Ledger, name)

        def read(self: Ledger, method: Callable[[Ledger], Any] = method) -> Any:
            found = method(self)
            go_on()
            return found

        monkeypatch.setattr(Ledger, name, read)
    assert verify(run) == []


def write_fit(run: RunDirectory, name: str, *, finished: bool) -> None:
    """Write a fit as a stage does, which is then finished or still at work."""
    ledger = Ledger(run.state(f"em/{name}"))
    with note_writes() as written:
        write_group(run.em, name, {"w": (np.ones((2, 3), np.float32), ("a", "b"))}, {})
    ledger.commit(ShardRecord(0, "p", 0.1, 1, files=list_files(run, written)))
    if finished:
        consolidate(run.em)
    ledger.write_stage(StageRecord("em", 1, {}, {}, ["p"], {}, finished=finished))


def test_the_metadata_of_a_store_that_is_being_written(run: RunDirectory) -> None:
    shared = run.em / "zarr.json"
    write_fit(run, "first", finished=False)
    assert verify(run) == []
    write_fit(run, "first", finished=True)
    assert verify(run) == []
    write_fit(run, "second", finished=False)
    assert verify(run) == []
    whole = shared.read_bytes()
    # what cannot come from a stage at work
    shared.write_bytes(whole.replace(b"first", b"fiRst"))
    assert [d.describe() for d in verify(run)] == ["em.zarr/zarr.json is not as it was written"]
    shared.unlink()
    assert [d.describe() for d in verify(run)] == ["em.zarr/zarr.json is gone"]
    write_fit(run, "second", finished=True)
    assert verify(run) == []
    shared.write_bytes(whole)
    assert [d.describe() for d in verify(run)] == [
        "em.zarr/zarr.json is not that of the arrays below it"
    ]


def test_a_fit_that_is_finished_between_two_looks(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_fit(run, "first", finished=True)
    write_fit(run, "second", finished=False)
    looks = iter([False])

    def look(store: Path) -> bool:
        found = next(looks, None)
        if found is None:
            return is_consolidated(store)
        write_fit(run, "second", finished=True)
        return found

    monkeypatch.setattr(verification, "is_consolidated", look)
    assert verify(run) == []
