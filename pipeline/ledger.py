"""The ledger of one stage: which shards are finished, made from what, and what they wrote.

``state/<key>/stage.json`` holds the plan that was prepared last, ``state/<key>/shards/<n>.json``
one record per finished shard. A shard is done when its record says so, whatever lies in the arrays:
the record is written last, atomically. Records name the files that were written, with size and
checksum, and carry a checksum of their own.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import DamageError, RunError
from pipeline.files import fingerprint, read_checked_json, remove_file, write_checked_json
from pipeline.places import map_requests

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

    @property
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


def _make(cls: type[Any], content: Any, folder: Path) -> Any:
    try:
        files = {name: tuple(facts) for name, facts in content.pop("files").items()}
        return cls(**content, files=files)
    except (AttributeError, KeyError, TypeError) as error:
        raise RunError(
            f"the ledger {folder} was written by another version ({error}); "
            "delete that folder and run the stage again."
        ) from error
