"""The ledger of one stage: which shards are finished, made from what, and what they wrote.

``state/<key>/stage.json`` holds the plan that was prepared last, ``state/<key>/shards/<n>.json``
one record per finished shard. A shard is done when its record says so, whatever lies in the arrays:
the record is written last, atomically. Records name the files that were written, with size and
checksum, and carry a checksum of their own. So the ledger alone tells how a stage stands, and what
was written below a run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from pipeline.errors import DamageError, RunError, StaleError
from pipeline.run.directory import RunDirectory
from pipeline.settings import StageSettings
from pipeline.storage.files import (
    Stamp,
    Stored,
    fingerprint,
    read_checked_json,
    remove_file,
    stamp,
    write_checked_json,
)
from pipeline.storage.places import find_objects, is_remote, map_requests

# Files under any other name were put there by somebody else.
_NUMBER = re.compile(r"[0-9]{6}|[1-9][0-9]{6,}")
# Path relative to the run -> its size in bytes and the checksum of its content.
Files = dict[str, tuple[int, str]]


@dataclass(frozen=True)
class ShardRecord:
    """What is known of one finished shard."""

    shard: int
    fingerprint: str
    seconds: float
    items: int
    result: dict[str, Any] = field(default_factory=dict)
    files: Files = field(default_factory=dict)


@dataclass(frozen=True)
class StageRecord:
    """What a stage was last prepared to do."""

    stage: str
    version: int
    settings: dict[str, Any]
    inputs: dict[str, str]
    shards: list[str]
    facts: dict[str, Any]
    options: str = ""
    verb: str = ""
    findings: str = ""
    finished: bool = False
    sources: dict[str, Any] = field(default_factory=dict)
    files: Files = field(default_factory=dict)

    @property
    def command(self) -> str:
        """The verb of the command line that runs the stage."""
        return self.verb or self.stage

    @cached_property
    def digest(self) -> str:
        """The fingerprint of everything that the stage writes."""
        return fingerprint(self.shards, self.findings)


@dataclass(frozen=True)
class Ledger:
    """The ledger in one folder of ``state/``."""

    folder: Path

    def read_stage(self) -> StageRecord | None:
        """Return the plan prepared last, or None."""
        content = read_checked_json(self.file(None))
        return None if content is None else _make(StageRecord, content, self.folder)

    def recall_stage(self) -> StageRecord | None:
        """Return the plan prepared last, read once in a process for every time it was written."""
        # it names every shard, and every shard asks for it
        now = stamp(self.file(None))
        return None if now is None else _recall_stage(self, now)

    def write_stage(self, record: StageRecord) -> None:
        """Write the plan."""
        write_checked_json(self.file(None), asdict(record))

    def read_shard(self, shard: int) -> ShardRecord | None:
        """Return the record of one shard, or None if it is not finished."""
        content = read_checked_json(self.file(shard))
        if content is None:
            return None
        record: ShardRecord = _make(ShardRecord, content, self.folder)
        if record.shard != shard:
            raise DamageError(
                f"{self.file(shard)} is the record of shard {record.shard}; "
                "`primaps-pipe verify --repair` puts it right."
            )
        return record

    def read_shards(self) -> dict[int, ShardRecord]:
        """Return the records of all finished shards."""
        numbers = self.list_shards()
        records = map_requests(self.folder, self.read_shard, numbers)
        found = zip(numbers, records, strict=True)
        return {number: record for number, record in found if record is not None}

    def list_shards(self) -> list[int]:
        """List the finished shards, without reading their records."""
        files = (self.folder / "shards").glob("*.json")
        return sorted(int(file.stem) for file in files if _NUMBER.fullmatch(file.stem))

    def commit(self, record: ShardRecord) -> None:
        """Say that a shard is finished; the last thing that is done for it."""
        write_checked_json(self.file(record.shard), asdict(record))

    def drop(self, shard: int) -> None:
        """Say that a shard is not finished."""
        remove_file(self.file(shard))

    def file(self, shard: int | None) -> Path:
        """Return the file of a shard's record, or of the plan."""
        if shard is None:
            return self.folder / "stage.json"
        return self.folder / "shards" / f"{shard:06d}.json"


@lru_cache(maxsize=64)
def _recall_stage(ledger: Ledger, _stamp: Stamp) -> StageRecord | None:
    return ledger.read_stage()


def _make(cls: type[Any], content: Any, folder: Path) -> Any:
    try:
        files = {name: tuple(facts) for name, facts in content.pop("files").items()}
        return cls(**content, files=files)
    except (AttributeError, KeyError, TypeError) as error:
        raise RunError(
            f"the ledger {folder} was written by another version ({error}); "
            "delete that folder and run the stage again."
        ) from error


def read_record(run: RunDirectory, key: str) -> StageRecord:
    """Return what a stage was last prepared to do, without judging it."""
    record = Ledger(run.state(key)).recall_stage()
    if record is None:
        raise RunError(f"{key} has not been run in {run.path}; run it first.")
    return record


def require_fresh(
    run: RunDirectory, key: str, stages: Mapping[str, type[StageSettings]] | None = None
) -> StageRecord:
    """Return the record of a stage whose artefacts may be read."""
    run.require()
    condition = inspect_stage(run, key, stages)
    options, verb = "", key.partition("/")[0]
    if condition.record is not None:
        options, verb = condition.record.options, condition.record.command
    command = f"`primaps-pipe {verb} {run.quoted}{options}`"
    if condition.record is None:
        raise RunError(f"{key} has not been run in {run.path}; run {command} first.")
    if condition.state == "incomplete" and condition.done == condition.total:
        raise RunError(
            f"{key} is incomplete in {run.path}: its shards are finished, its summary is not; "
            f"run {command} again."
        )
    if condition.state == "incomplete":
        raise RunError(
            f"{key} is incomplete in {run.path}: {condition.done} of {condition.total} shards are "
            f"finished; run {command} again, it goes on with the missing ones."
        )
    if condition.state == "stale":
        raise StaleError(f"{key} is stale in {run.path} ({condition.reason}); run {command} again.")
    return condition.record


def require_unchanged(run: RunDirectory, key: str) -> None:
    """Refuse to go on where what a stage reads is not what it was when the stage began."""
    record = Ledger(run.state(key)).recall_stage()
    for name, digest in ({} if record is None else record.inputs).items():
        upstream = Ledger(run.state(name)).recall_stage()
        if upstream is None or not upstream.finished or upstream.digest != digest:
            raise StaleError(
                f"{name} in {run.path} has changed while {key} was computed from it; "
                f"run {name} to its end, and then {key} again."
            )


@dataclass(frozen=True)
class Condition:
    """How a stage stands: ``missing``, ``incomplete``, ``stale`` (and why) or ``fresh``.

    Only ``status`` measures its ``bytes``, and says which stage is to be run ``first``, or which
    ``command`` where it is not a stage's.
    """

    key: str
    state: str
    done: int
    total: int
    seconds: float
    reason: str = ""
    record: StageRecord | None = None
    bytes: int = 0
    first: str = ""
    command: str = ""

    @property
    def crf(self) -> str:
        """Name of the dense CRF's backend; empty for a stage that has none."""
        return "" if self.record is None else self.record.facts.get("crf", "")


def inspect_stage(
    run: RunDirectory, key: str, stages: Mapping[str, type[StageSettings]] | None = None
) -> Condition:
    """Say how a stage stands, from the ledger alone."""
    ledger = Ledger(run.state(key))
    record = ledger.read_stage()
    if record is None:
        return Condition(key, "missing", 0, 0, 0.0)
    shards = ledger.read_shards()
    done = sum(
        number in shards and shards[number].fingerprint == print_
        for number, print_ in enumerate(record.shards)
    )
    seconds = sum(shard.seconds for shard in shards.values())
    total = len(record.shards)
    reason = find_staleness(run, record, stages)
    if reason:
        state = "stale"
    elif record.finished and done == total:
        state = "fresh"
    else:
        state = "incomplete"
    return Condition(key, state, done, total, seconds, reason, record)


def find_staleness(
    run: RunDirectory,
    record: StageRecord,
    stages: Mapping[str, type[StageSettings]] | None = None,
) -> str:
    """Say what a stage was made from that is not the same any more; nothing where all is."""
    if stages and record.stage in stages and stages[record.stage].version != record.version:
        version = stages[record.stage].version
        return f"{record.stage} is now version {version}, was {record.version}"
    for key, digest in record.inputs.items():
        ledger = Ledger(run.state(key))
        upstream = ledger.read_stage()
        if upstream is None:
            return f"{key} is gone"
        if upstream.digest != digest:
            return f"{key} has changed"
        # whoever reads it is refused, so what was made from it cannot be made again either
        if not upstream.finished or len(ledger.list_shards()) < len(upstream.shards):
            return f"{key} is incomplete"
        deeper = find_staleness(run, upstream, stages)
        if deeper:
            return deeper
    return ""


def list_sources(run: RunDirectory, key: str) -> dict[str, StageRecord]:
    """List the records of a stage and of all that it was made from, each after what it reads."""
    records: dict[str, StageRecord] = {}

    def visit(key: str) -> None:
        record = Ledger(run.state(key)).recall_stage()
        if record is None:
            return
        for source in record.inputs:
            if source not in records:
                visit(source)
        records[key] = record

    visit(key)
    return records


def list_files(run: RunDirectory, written: Sequence[Stored]) -> Files:
    """Name the files below the run, as they were written last."""
    return {
        run.name_file(stored.path): (stored.bytes, stored.checksum)
        for stored in written
        if stored.path.is_relative_to(run.path)
    }


def list_sizes(run: RunDirectory) -> Mapping[str, int] | None:
    """List the bytes of all objects below a run, by their relative names; None on a file system."""
    if not is_remote(run.path):
        return None
    # a store answers for a thousand objects as fast as for one
    return {name: status.st_size for name, status in find_objects(run.path)}


def find_lost(run: RunDirectory, files: Files, sizes: Mapping[str, int] | None = None) -> list[str]:
    """Return those of some files, relative to the run, that are gone or of another size."""

    def measure(name: str) -> int | None:
        if sizes is not None:
            return sizes.get(name)
        try:
            return (run.path / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    return [name for name, (size, _) in files.items() if measure(name) != size]
