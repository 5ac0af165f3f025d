"""The one way in which stages are run: plan, prepare, compute what is missing or stale, finish.

What a stage writes is guarded by its lock, and its records are written last: a run may end at any
instant, and another may take over.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, replace
from typing import Any, TypeVar

from pipeline.compute.devices import describe_device, resolve_device
from pipeline.compute.scheduler import Execution, compute_shards
from pipeline.errors import PipelineError, RunError, ShardError, StaleError, WeightsError
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import (
    Ledger,
    ShardRecord,
    StageRecord,
    find_lost,
    list_files,
    list_sizes,
    require_fresh,
    require_unchanged,
)
from pipeline.run.stage import Plan, ShardPlan, Stage, Stages
from pipeline.settings import StageSettings, describe_changes
from pipeline.storage.files import confine_writes, fingerprint, guard_writes, note_writes
from pipeline.storage.locks import Permit
from pipeline.wording import count_of

S = TypeVar("S", bound=StageSettings)
_PERMIT: ContextVar[Permit | None] = ContextVar("permit", default=None)


def run_named(
    stages: Stages,
    name: str,
    run: RunDirectory,
    settings: StageSettings,
    execution: Execution,
    screen: Screen,
) -> list[StageRecord] | None:
    """Bring all that is asked of a stage up to date, each of its runs as :func:`run_stage` does.

    Returns the records of its runs; None where a dry run leaves one to do.
    """
    stage = stages.load(name)
    if not execution.dry_run:
        with confine_writes(run.path):
            stage.adopt(run, settings, wait=execution.wait)
    records = [
        run_stage(stage, run, part, execution, screen, stages) for part in stage.divide(settings)
    ]
    found = [record for record in records if record is not None]
    return found if len(found) == len(records) else None


def run_stage(
    stage: Stage[S],
    run: RunDirectory,
    settings: S,
    execution: Execution,
    screen: Screen,
    stages: Mapping[str, type[StageSettings]] | None = None,
) -> StageRecord | None:
    """Bring a stage up to date: compute the shards that are missing or stale, and no others."""
    names = settings.model_fields_set
    settings = stage.resolve(run, settings)
    key = stage.key(settings)
    if execution.dry_run:
        return _bring_up_to_date(stage, run, settings, names, execution, screen, stages)
    if stage.inputs(run, settings):
        run.require()
    existed = run.path.exists()
    with confine_writes(run.path):
        run.create()
        try:
            with run.lock(key, wait=execution.wait, say=screen.warn) as lock, _hold(lock.permit):
                return _bring_up_to_date(stage, run, settings, names, execution, screen, stages)
        finally:
            # a first command that was refused leaves nothing behind
            run.discard_unused(folder=not existed)


@contextmanager
def _hold(permit: Permit | None) -> Iterator[None]:
    """Write nothing any more where another process has taken over the stage."""
    if permit is None:
        yield
        return
    token = _PERMIT.set(permit)
    try:
        # one that stood still for long was taken for dead, and must not write over its successor
        with guard_writes(permit.check):
            yield
    finally:
        _PERMIT.reset(token)


def _bring_up_to_date(
    stage: Stage[S],
    run: RunDirectory,
    settings: S,
    names: set[str],
    execution: Execution,
    screen: Screen,
    stages: Mapping[str, type[StageSettings]] | None,
) -> StageRecord | None:
    key = stage.key(settings)
    inputs = {name: require_fresh(run, name, stages).digest for name in stage.inputs(run, settings)}
    plan = stage.plan(run, settings, screen)
    ledger = Ledger(run.state(key))
    old = ledger.read_stage()
    new = StageRecord(
        stage=stage.name,
        version=stage.version,
        settings=settings.output_settings(),
        inputs=inputs,
        shards=[shard.fingerprint for shard in plan.shards],
        facts=plan.facts,
        options=stage.name_options(settings),
        verb=stage.verb,
        sources=plan.sources,
    )
    known = ledger.read_shards()
    stale = {n for n, record in known.items() if _is_stale(n, record, plan)}
    sizes = list_sizes(run)
    lost = {n for n in known.keys() - stale if find_lost(run, known[n].files, sizes)}
    if lost:
        screen.warn(f"{key}: what {count_of(len(lost), 'finished shards')} wrote is gone.")
    pending = [
        n
        for n in range(len(plan.shards))
        if execution.force or n not in known or n in stale or n in lost
    ]
    kept = {n: known[n] for n in range(len(plan.shards)) if n in known}
    fresh = (
        not pending
        and old is not None
        and _equal(old, _seal(stage, run, settings, replace(new, files=old.files), kept))
        and not find_lost(run, old.files, sizes)
    )
    _say_plan(key, old, new, len(stale), len(pending), fresh, plan, stage.unit, screen)
    if execution.dry_run:
        return old if fresh else None
    resolved = settings.model_dump(mode="json")
    run.write_settings(key, resolved, {name: resolved[name] for name in resolved if name in names})
    if fresh:
        assert old is not None
        return _refresh(stage, run, settings, plan, old, ledger)

    # the ledger forgets a shard before its bytes change, so a crash in between mixes nothing
    ledger.write_stage(new)
    for number in {*stale, *pending} & known.keys():
        ledger.drop(number)
    every = frozenset(range(len(plan.shards)))
    with note_writes() as prepared:
        stage.prepare(run, settings, replace(plan, redo=every) if execution.force else plan)
    _compute_pending(stage, run, settings, plan, pending, execution, screen)
    records = ledger.read_shards()
    with note_writes() as summary:
        lines = stage.finish(run, settings, records, screen)
    new = replace(new, files=list_files(run, [*prepared, *summary]))
    finished = _seal(stage, run, settings, new, records)
    require_unchanged(run, key)
    ledger.write_stage(finished)
    for line in lines:
        screen.note(line)
    return finished


def _refresh(
    stage: Stage[S], run: RunDirectory, settings: S, plan: Plan, record: StageRecord, ledger: Ledger
) -> StageRecord:
    """Have a finished stage put right what it allocates, and note what that has changed."""
    with note_writes() as written:
        stage.prepare(run, settings, plan)
    files = {**record.files, **list_files(run, written)}
    if files != record.files:
        record = replace(record, files=files)
        ledger.write_stage(record)
    return record


def _seal(
    stage: Stage[S],
    run: RunDirectory,
    settings: S,
    record: StageRecord,
    records: dict[int, ShardRecord],
) -> StageRecord:
    return replace(record, findings=stage.find(run, settings, records), finished=True)


def _equal(first: StageRecord, second: StageRecord) -> bool:
    # by their JSON: what is read back holds lists where tuples were written
    return fingerprint(asdict(first)) == fingerprint(asdict(second))


def _is_stale(number: int, record: ShardRecord, plan: Plan) -> bool:
    return (
        number >= len(plan.shards)
        or record.fingerprint != plan.shards[number].fingerprint
        or number in plan.redo
    )


def _compute_pending(
    stage: Stage[S],
    run: RunDirectory,
    settings: S,
    plan: Plan,
    pending: list[int],
    execution: Execution,
    screen: Screen,
) -> None:
    here = execution.scheduler is None and (execution.inline or stage.shares_work(settings))
    # another process may have another working folder
    place = run if here else RunDirectory(run.path.absolute())
    permit = _PERMIT.get()
    calls = [(stage, place, settings, number, plan.shards[number], permit) for number in pending]
    total = sum(plan.shards[number].items for number in pending)
    failed: list[tuple[int, Exception]] = []
    with screen.count(
        stage.name,
        total,
        stage.unit,
        device=_describe_device(settings, execution) if screen.progress else "",
        images=_count_images(run, stage.unit) if screen.progress else None,
    ) as counter:

        def listen(event: dict[str, Any]) -> None:
            if "say" in event:
                counter.say(str(event["say"]))
            if "warn" in event:
                screen.warn(str(event["warn"]))
            if "note" in event and screen.progress:
                screen.note(str(event["note"]))
            counter.advance(int(event.get("advance", 0)))

        ends = compute_shards(
            compute_shard,
            calls,
            execution,
            listen,
            names=[f"shard {number}" for number in pending],
            shares_work=stage.shares_work(settings),
            device=str(getattr(settings, "device", "cpu")),
        )
        for done in ends:
            if done.error is None:
                counter.wrote(sum(size for size, _ in done.value.files.values()))
            else:
                failed.append((pending[done.index], done.error))
                if isinstance(done.error, PipelineError) and len(pending) == 1:
                    raise done.error
                if isinstance(done.error, RunError | WeightsError) and not isinstance(
                    done.error, StaleError
                ):
                    break  # a full disk or absent weights fail every other shard, too
    if failed:
        number, error = failed[0]
        raise ShardError(
            f"{stage.name}: {len(failed)} of {count_of(len(pending), 'shards')} failed, "
            f"the others are kept; shard {number}: {type(error).__name__}: {error}"
        ) from error


def _describe_device(settings: StageSettings, execution: Execution) -> str:
    """Name what computes, as far as this process can know it; nothing where it cannot be chosen."""
    wanted = getattr(settings, "device", "")
    if execution.scheduler is not None:
        return "cluster"
    if not wanted:
        return ""
    device = resolve_device(wanted)
    if execution.inline:
        return describe_device(device)
    # to ask a GPU for its name takes some of its memory, which is the workers'
    return f"{count_of(execution.workers, 'workers')} on {device.type}"


def _count_images(run: RunDirectory, unit: str) -> float | None:
    """Return how many images a window stands for, on average; None where others are counted."""
    if unit != "windows":
        return None
    # help pages, which need the stages' settings, do without pyarrow
    from pipeline.run.manifest import read_manifest

    rows = read_manifest(run).windows.column("image")
    return len(rows.unique()) / len(rows)


def compute_shard(
    stage: Stage[S],
    run: RunDirectory,
    settings: S,
    number: int,
    shard: ShardPlan,
    permit: Permit | None = None,
) -> ShardRecord:
    """Compute one shard and, last of all, write its record."""
    start = time.perf_counter()
    with confine_writes(run.path), _hold(permit):
        with note_writes() as written:
            result = stage.compute(run, settings, number)
        record = ShardRecord(
            shard=number,
            fingerprint=shard.fingerprint,
            seconds=round(time.perf_counter() - start, 3),
            items=shard.items,
            result=result,
            files=list_files(run, written),
        )
        key = stage.key(settings)
        require_unchanged(run, key)
        Ledger(run.state(key)).commit(record)
    return record


def _say_plan(
    key: str,
    old: StageRecord | None,
    new: StageRecord,
    stale: int,
    pending: int,
    fresh: bool,
    plan: Plan,
    unit: str,
    screen: Screen,
) -> None:
    total = count_of(len(plan.shards), "shards")
    items = count_of(sum(shard.items for shard in plan.shards), unit)
    if not pending:
        state = "fresh, nothing to do" if fresh else "shards are fresh, the summary is made again"
        screen.note(f"{key}: {state} ({total}, {items})")
        return
    if old is not None and stale:
        reasons = describe_changes(old.settings, new.settings)
        reasons += describe_changes(old.facts, new.facts)
        reasons += [f"{k} has changed" for k in new.inputs if old.inputs.get(k) != new.inputs[k]]
        outside = [k for k in new.sources if old.sources.get(k) != new.sources[k]]
        reasons += [f"the {k} have changed" for k in outside]
        if old.version != new.version:
            reasons.append(f"version {old.version} -> {new.version}")
        why = "; ".join(dict.fromkeys(reasons)) or "its input files have changed"
        are = "is" if stale == 1 else "are"
        screen.note(f"{key}: {count_of(stale, 'shards')} {are} stale: {why}")
    screen.note(f"{key}: {pending} of {total} to compute ({items} in all)")
