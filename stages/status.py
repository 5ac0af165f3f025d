"""How a run stands: stage by stage, with sizes and times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
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
from pipeline.storage.places import measure
from stages import OPTIONAL, SETTINGS, VERSIONS
from stages.outside import find_changes, find_other_names, needs_extract


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


def inspect_run(run: RunDirectory) -> list[StageStatus]:
    """Say how every stage of a run stands.

    Stages that were never run are listed as missing, in the order of the pipeline, but for those
    that a run may do without.
    """
    known = run.require().keys()
    keys = []
    for stage in SETTINGS:
        named = [key for key in known if key.partition("/")[0] == stage]
        keys += named or ([] if stage in OPTIONAL else [stage])
    changes, sizes = _find_changes(run, keys), list_sizes(run)
    return [_inspect_key(run, key, changes, sizes) for key in keys]


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
    run: RunDirectory, key: str, changes: Mapping[str, str], sizes: Mapping[str, int] | None
) -> StageStatus:
    condition = inspect_stage(run, key, VERSIONS)
    if condition.state == "fresh":
        reason = changes.get(key) or next(
            (f"{name}: {changes[name]}" for name in list_upstream(run, key) if name in changes), ""
        )
        condition = replace(condition, state="stale" if reason else "fresh", reason=reason)
    paths = list_artefacts(run, key)
    gone = [path.name for path in paths if not path.exists()]
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
    if condition.state == "fresh" and condition.record is not None:
        reason = find_other_names(run, key, condition.record)
        if reason:
            condition = replace(condition, state="incomplete", reason=reason)
    first = "extract" if condition.state == "stale" and needs_extract(run, key) else ""
    return StageStatus(condition, sum(map(measure, paths)), first)


def list_artefacts(run: RunDirectory, key: str) -> list[Path]:
    """Return the files and folders that a stage writes."""
    stage, _, name = key.partition("/")
    if stage == "extract":
        # the group itself where its arrays are gone with it
        names = ("zarr.json", "clean", "mirror") if run.features.is_dir() else ("",)
        return [run.manifest_file, run.windows_file, *(run.features / name for name in names)]
    if stage == "masks":
        return [run.masks]
    if not name:
        return []
    if stage == "views":
        record = Ledger(run.state(key)).read_stage()
        return [run.features / array for array in record.facts["arrays"]] if record else []
    report = run.report(name)
    return {
        "head": [run.heads / name],
        "encode": [run.codes(name)],
        "em": [run.em / name],
        "evaluate": [run.labels(name), report / "metrics.json", report / "images.parquet"],
        "report": [report / "index.html"],
    }[stage]
