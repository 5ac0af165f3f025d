"""How a stage stands, read from the ledger alone: missing, incomplete, stale (and why) or fresh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import RunError, StaleError
from pipeline.ledger import Ledger, StageRecord
from pipeline.run_directory import RunDirectory


def read_record(run: RunDirectory, key: str) -> StageRecord:
    """Return what a stage was last prepared to do, without judging it.

    Raises
    ------
    RunError
        It never was.
    """
    record = Ledger(run.state(key)).read_stage()
    if record is None:
        raise RunError(f"{key} has not been run in {run.path}; run it first.")
    return record


def require_fresh(
    run: RunDirectory, key: str, versions: Mapping[str, int] | None = None
) -> StageRecord:
    """Return the record of a stage whose artefacts may be read.

    Raises
    ------
    RunError
        The stage was not run, or not to its end.
    StaleError
        What it was made from has changed since.
    """
    run.require()
    condition = inspect_stage(run, key, versions)
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
    """Refuse to go on where what a stage reads is not what it was when the stage began.

    Raises
    ------
    StaleError
        A stage that it reads has been run in between, or is being run.
    """
    record = Ledger(run.state(key)).read_stage()
    for name, digest in ({} if record is None else record.inputs).items():
        upstream = Ledger(run.state(name)).read_stage()
        if upstream is None or not upstream.finished or upstream.digest != digest:
            raise StaleError(
                f"{name} in {run.path} has changed while {key} was computed from it; "
                f"run {name} to its end, and then {key} again."
            )


@dataclass(frozen=True)
class Condition:
    """How a stage stands: ``missing``, ``incomplete``, ``stale`` (and why) or ``fresh``."""

    key: str
    state: str
    done: int
    total: int
    seconds: float
    reason: str = ""
    record: StageRecord | None = None


def inspect_stage(
    run: RunDirectory, key: str, versions: Mapping[str, int] | None = None
) -> Condition:
    """Say how a stage stands, from the ledger alone.

    Parameters
    ----------
    run
        The run directory.
    key
        Ledger key of the stage.
    versions
        Version number of every stage of this installation, by stage name, where known.
    """
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
    reason = _find_staleness(run, record, versions)
    if reason:
        state = "stale"
    elif record.finished and done == total:
        state = "fresh"
    else:
        state = "incomplete"
    return Condition(key, state, done, total, seconds, reason, record)


def _find_staleness(
    run: RunDirectory, record: StageRecord, versions: Mapping[str, int] | None
) -> str:
    current = (versions or {}).get(record.stage, record.version)
    if current != record.version:
        return f"{record.stage} is now version {current}, was {record.version}"
    for key, digest in record.inputs.items():
        upstream = Ledger(run.state(key)).read_stage()
        if upstream is None:
            return f"{key} is gone"
        if upstream.digest != digest:
            return f"{key} has changed"
        deeper = _find_staleness(run, upstream, versions)
        if deeper:
            return deeper
    return ""


def list_upstream(run: RunDirectory, key: str) -> list[str]:
    """List the keys of all stages that a stage was made from, the nearest first."""
    record = Ledger(run.state(key)).read_stage()
    nearest = [] if record is None else list(record.inputs)
    deeper = [name for near in nearest for name in list_upstream(run, near)]
    return list(dict.fromkeys([*nearest, *deeper]))
