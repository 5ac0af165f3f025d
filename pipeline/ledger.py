"""The ledger of one stage: which shards are finished, made from what.

``state/<key>/stage.json`` holds the plan that was prepared last, ``state/<key>/shards/<n>.json``
one record per finished shard. A shard is done when its record says so, whatever lies in the arrays:
the record is written last, atomically.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import RunError
from pipeline.files import fingerprint, read_json, write_json


@dataclass(frozen=True)
class ShardRecord:
    """What is known of one finished shard."""

    shard: int
    fingerprint: str
    seconds: float
    items: int
    result: dict[str, Any] = field(default_factory=dict)


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
        content = read_json(self.folder / "stage.json")
        return None if content is None else _make(StageRecord, content, self.folder)

    def write_stage(self, record: StageRecord) -> None:
        """Write the plan."""
        write_json(self.folder / "stage.json", asdict(record))

    def read_shard(self, shard: int) -> ShardRecord | None:
        """Return the record of one shard, or None if it is not finished."""
        content = read_json(self._file(shard))
        return None if content is None else _make(ShardRecord, content, self.folder)

    def read_shards(self) -> dict[int, ShardRecord]:
        """Return the records of all finished shards."""
        numbers = sorted(int(file.stem) for file in (self.folder / "shards").glob("*.json"))
        records = {number: self.read_shard(number) for number in numbers}
        return {number: record for number, record in records.items() if record is not None}

    def commit(self, record: ShardRecord) -> None:
        """Say that a shard is finished; the last thing that is done for it."""
        write_json(self._file(record.shard), asdict(record))

    def drop(self, shard: int) -> None:
        """Say that a shard is not finished."""
        self._file(shard).unlink(missing_ok=True)

    def _file(self, shard: int) -> Path:
        return self.folder / "shards" / f"{shard:06d}.json"


def _make(cls: type[Any], content: Any, folder: Path) -> Any:
    try:
        return cls(**content)
    except TypeError as error:
        raise RunError(
            f"the ledger {folder} was written by another version ({error}); "
            "delete that folder and run the stage again."
        ) from error
