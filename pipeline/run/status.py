"""How a run stands: stage by stage, with sizes and times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import (
    Condition,
    Ledger,
    find_lost,
    inspect_stage,
    list_sizes,
    list_upstream,
)
from pipeline.run.outside import find_changes, find_other_names, needs_listing
from pipeline.run.stage import Stages
from pipeline.storage.places import measure


@dataclass(frozen=True)
class StageStatus:
    """One row of ``primaps-pipe status``."""

    condition: Condition
    bytes: int
    first: str = ""

    @property
    def crf(self) -> str:
        """Name of the dense CRF's backend; empty for a stage that has none."""
        record = self.condition.record
        return "" if record is None else record.facts.get("crf", "")


def inspect_run(run: RunDirectory, stages: Stages) -> list[StageStatus]:
    """Say how every stage of a run stands.

    Stages that were never run are listed as missing, in the order of the pipeline, but for those
    that a run may do without.
    """
    known = run.require().keys()
    keys = []
    for name, settings in stages.items():
        named = [key for key in known if key.partition("/")[0] == name]
        keys += named or ([] if settings.optional else [name])
    changes, sizes = _find_changes(run, keys), list_sizes(run)
    return [_inspect_key(run, stages, key, changes, sizes) for key in keys]


def describe_row(row: StageStatus) -> dict[str, Any]:
    """Return a row as JSON."""
    c = row.condition
    return {
        "stage": c.key,
        "state": c.state,
        "shards_done": c.done,
        "shards_total": c.total,
        "bytes": row.bytes,
        "seconds": round(c.seconds, 3),
        "crf": row.crf,
        "reason": c.reason,
    }


def _find_changes(run: RunDirectory, keys: list[str]) -> dict[str, str]:
    """Say of each stage what has changed outside the run since it was finished."""
    records = {key: Ledger(run.state(key)).read_stage() for key in keys}
    found = {key: find_changes(run, record) for key, record in records.items() if record}
    return {key: reason for key, reason in found.items() if reason}


def _inspect_key(
    run: RunDirectory,
    stages: Stages,
    key: str,
    changes: Mapping[str, str],
    sizes: Mapping[str, int] | None,
) -> StageStatus:
    condition = inspect_stage(run, key, stages)
    if condition.record is None:
        return StageStatus(condition, 0)
    if condition.state == "fresh":
        reason = changes.get(key) or next(
            (f"{name}: {changes[name]}" for name in list_upstream(run, key) if name in changes), ""
        )
        condition = replace(condition, state="stale" if reason else "fresh", reason=reason)
    artefacts = stages.list_artefacts(key)
    gone = dict.fromkeys(name for each in artefacts if (name := _find_gone(run, each)))
    if condition.state == "fresh" and gone:
        reason = f"{', '.join(gone)} is gone; the same command makes it again"
        condition = replace(condition, state="incomplete", reason=reason)
    if condition.state == "fresh":
        ledger = Ledger(run.state(key))
        records = [ledger.read_stage(), *ledger.read_shards().values()]
        files = {name: facts for r in records if r for name, facts in r.files.items()}
        lost = find_lost(run, files, sizes)
        if lost:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            reason = f"{lost[0]}{more} is gone or cut; the same command makes it again"
            condition = replace(condition, state="incomplete", reason=reason)
    if condition.state == "fresh":
        assert condition.record is not None
        reason = find_other_names(run, key, condition.record)
        if reason:
            condition = replace(condition, state="incomplete", reason=reason)
    # the first stage lists the images
    first = next(iter(stages)) if condition.state == "stale" and needs_listing(run, key) else ""
    return StageStatus(condition, sum(measure(run.path / each) for each in artefacts), first)


def _find_gone(run: RunDirectory, artefact: str) -> str:
    """Name an artefact that is gone, or the zarr store that is gone with it."""
    path = run.path / artefact
    if path.exists():
        return ""
    above = path.parent
    return above.name if above.suffix == ".zarr" and not above.exists() else path.name
