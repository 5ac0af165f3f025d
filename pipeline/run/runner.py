"""The one way in which stages are run: plan, prepare, compute what is missing or stale, finish.

What a stage writes is guarded by its lock, and its records are written last: a run may end at any
instant, and another may take over.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Generic, TypeVar

from pipeline.compute.devices import describe_device, resolve_device
from pipeline.compute.scheduler import Check, Execution, check_execution, compute_shards
from pipeline.errors import (
    PipelineError,
    RunError,
    ShardError,
    StaleError,
    UsageError,
    WeightsError,
    count_of,
)
from pipeline.progress import Screen
from pipeline.run.by_hand import find_by_hand, make_refusal
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
from pipeline.storage.files import (
    confine_writes,
    fetch_nothing,
    fingerprint,
    guard_writes,
    note_writes,
    stamp,
)
from pipeline.storage.locks import Permit

S = TypeVar("S", bound=StageSettings)


def run_named(
    stages: Stages,
    name: str,
    run: RunDirectory,
    settings: StageSettings,
    execution: Execution,
    screen: Screen,
) -> list[StageRecord] | None:
    """Bring all runs of a stage that are asked for up to date; None where a dry run leaves one."""
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
    with fetch_nothing() if execution.dry_run else nullcontext():
        names, resolved = settings.model_fields_set, stage.resolve(run, settings)
        work = _Work(stage, run, resolved, names, execution, screen, stages)
        if execution.dry_run:
            return work.bring_up_to_date(None)
    if stage.inputs(run, work.settings):
        run.require()
    existed = run.path.exists()
    with confine_writes(run.path):
        run.create().probe_store(screen.warn)
        lock = run.lock(work.key, wait=execution.wait, say=screen.warn)
        try:
            with lock as held, _guard(held.permit):
                return work.bring_up_to_date(held.permit)
        finally:
            # a first command that was refused leaves nothing behind
            run.discard_unused(folder=not existed)


def _guard(permit: Permit | None) -> AbstractContextManager[Any]:
    """Write nothing any more where another process has taken over the stage."""
    # one that stood still for long was taken for dead, and must not write over its successor
    return nullcontext() if permit is None else guard_writes(permit.check)


@dataclass(frozen=True)
class _Work(Generic[S]):
    """One stage under one key, its settings resolved, and how it is to be run."""

    stage: Stage[S]
    run: RunDirectory
    settings: S
    names: set[str]  # of the settings that were given
    execution: Execution
    screen: Screen
    stages: Mapping[str, type[StageSettings]] | None

    @property
    def key(self) -> str:
        return self.stage.key(self.settings)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.run.state(self.key))

    def bring_up_to_date(self, permit: Permit | None) -> StageRecord | None:
        stage, run, settings, ledger = self.stage, self.run, self.settings, self.ledger
        sources = stage.inputs(run, settings)
        inputs = {name: require_fresh(run, name, self.stages).digest for name in sources}
        plan = stage.plan(run, settings, self.screen)
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
        known, every = ledger.read_shards(), range(len(plan.shards))
        stale = {
            n
            for n, record in known.items()
            if n not in every or n in plan.redo or record.fingerprint != plan.shards[n].fingerprint
        }
        sizes = list_sizes(run)
        lost = {n: find_lost(run, known[n].files, sizes) for n in known.keys() - stale}
        lost = {n: files for n, files in lost.items() if files}
        if gone := [n for n, files in lost.items() if not find_by_hand(run, old, files)]:
            many = count_of(len(gone), "finished shards")
            self.screen.warn(f"{self.key}: what {many} wrote is gone.")
        force = self.execution.force
        pending = [n for n in every if force or n not in known or n in stale or n in lost]
        kept = {n: known[n] for n in every if n in known}
        fresh = (
            not pending
            and old is not None
            and _equal(old, self._seal(replace(new, files=old.files), kept))
            and not find_lost(run, old.files, sizes)
        )
        why = "" if old is None else _compare(old, new, plan)
        self._say_plan(plan, len(stale), why, len(pending), fresh)
        if self.execution.dry_run:
            if changed := find_by_hand(run, old, chain.from_iterable(lost.values())):
                self.screen.warn(str(make_refusal(run, self.key, changed)))
            return old if fresh else None
        if fresh:
            assert old is not None
            self._remember()
            return self._refresh(plan, old)

        # nothing is forgotten for a command that cannot run
        if pending:
            check_execution(self.execution, str(getattr(settings, "device", "cpu")))
        stage.protect(run, settings, plan, pending, self.screen, force=force)
        self._remember()
        # the ledger forgets a shard before its bytes change, so a crash in between mixes nothing:
        # what other arrays are allocated for here, any other where its computation starts
        ledger.write_stage(new)
        for number in stale:
            ledger.drop(number)
        with note_writes() as prepared:
            stage.prepare(run, settings, replace(plan, redo=frozenset(every)) if force else plan)
        self._compute(plan, pending, permit)
        records = ledger.read_shards()
        with note_writes() as summary:
            lines = stage.finish(run, settings, records, self.screen)
        finished = self._seal(replace(new, files=list_files(run, [*prepared, *summary])), records)
        require_unchanged(run, self.key)
        ledger.write_stage(finished)
        for line in lines:
            self.screen.note(line)
        return finished

    def _remember(self) -> None:
        """Remember the settings, and which of them were given."""
        resolved = self.settings.model_dump(mode="json")
        given = {name: value for name, value in resolved.items() if name in self.names}
        self.run.write_settings(self.key, resolved, given)

    def _refresh(self, plan: Plan, record: StageRecord) -> StageRecord:
        """Have a finished stage put right what it allocates, and note what that has changed."""
        with note_writes() as written:
            self.stage.prepare(self.run, self.settings, plan)
        files = {**record.files, **list_files(self.run, written)}
        if files != record.files:
            record = replace(record, files=files)
            self.ledger.write_stage(record)
        return record

    def _seal(self, record: StageRecord, records: dict[int, ShardRecord]) -> StageRecord:
        findings = self.stage.find(self.run, self.settings, records)
        return replace(record, findings=findings, finished=True)

    def _compute(self, plan: Plan, pending: list[int], permit: Permit | None) -> None:
        stage, run, settings, screen = self.stage, self.run, self.settings, self.screen
        shared = stage.shares_work(settings)
        here = self.execution.scheduler is None and (self.execution.inline or shared)
        # another process may have another working folder
        place = run if here else RunDirectory(run.path.absolute())
        failed: list[tuple[int, Exception]] = []
        with screen.count(
            stage.name,
            sum(plan.shards[number].items for number in pending),
            stage.unit,
            device=_describe_device(settings, self.execution, len(pending))
            if screen.progress
            else "",
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
                [(stage, place, settings, n, plan.shards[n], permit) for n in pending],
                self.execution,
                listen,
                names=[f"shard {number}" for number in pending],
                shares_work=shared,
                device=str(getattr(settings, "device", "cpu")),
                check=self._make_check(place, permit),
            )
            # what is left early lets its workers go at once
            with closing(ends):
                for done in ends:
                    if done.error is None:
                        counter.wrote(sum(size for size, _ in done.value.files.values()))
                        continue
                    failed.append((pending[done.index], done.error))
                    if isinstance(done.error, PipelineError) and len(pending) == 1:
                        raise done.error
                    hopeless = isinstance(done.error, RunError | UsageError | WeightsError)
                    if hopeless and not isinstance(done.error, StaleError):
                        break  # a full disk or absent weights fail every other shard, too
        if failed:
            number, error = failed[0]
            raise ShardError(
                f"{stage.name}: {len(failed)} of {count_of(len(pending), 'shards')} failed, "
                f"the others are kept; shard {number}: {type(error).__name__}: {error}"
            ) from error

    def _make_check(self, place: RunDirectory, permit: Permit | None) -> Check | None:
        if permit is None or self.execution.scheduler is None:
            return None
        # help pages, which need the stages' settings, do without pyarrow
        from pipeline.run.manifest import read_manifest

        image = None
        if self.stage.reads_images:
            manifest = read_manifest(self.run)
            image = next((manifest.root / i.path for i in manifest.images if i.ok), None)
        return partial(find_obstacle, place, permit, image, () if image is None else _stamp(image))

    def _say_plan(self, plan: Plan, stale: int, why: str, pending: int, fresh: bool) -> None:
        total = count_of(len(plan.shards), "shards")
        items = count_of(sum(shard.items for shard in plan.shards), self.stage.unit)
        if not pending:
            state = "shards are fresh, the summary is made again"
            state = "fresh, nothing to do" if fresh else state
            self.screen.note(f"{self.key}: {state} ({total}, {items})")
            return
        if stale and why:
            are = "is" if stale == 1 else "are"
            self.screen.note(f"{self.key}: {count_of(stale, 'shards')} {are} stale: {why}")
        self.screen.note(f"{self.key}: {pending} of {total} to compute ({items} in all)")


def _stamp(path: Path) -> tuple[int, ...]:
    # without its number, which a copy does not share
    return (stamp(path) or ())[1:]


def find_obstacle(
    run: RunDirectory, permit: Permit, image: Path | None, known: tuple[int, ...]
) -> str:
    """Say why this process cannot work for a stage, after "it"; nothing where it can."""
    try:
        if not permit.holds():
            return f"it does not see {run.path}, or another folder of that name"
        if image and known and _stamp(image) != known:
            return f"it does not see {image}, or another file of that name"
    except (OSError, RunError) as error:
        return f"it cannot read {run.path} ({error})"
    return ""


def _compare(old: StageRecord, new: StageRecord, plan: Plan) -> str:
    """Say why shards that were made by one plan are stale by another."""
    reasons = describe_changes(old.settings, new.settings)
    told = [{n: v for n, v in each.facts.items() if n not in plan.words} for each in (old, new)]
    reasons += describe_changes(*told)
    changed = (n for n in plan.words if old.facts.get(n) != new.facts.get(n))
    reasons += [f"the {plan.words[n]} have changed" for n in changed]
    reasons += [f"{k} has changed" for k in new.inputs if old.inputs.get(k) != new.inputs[k]]
    outside = [k for k in new.sources if old.sources.get(k) != new.sources[k]]
    reasons += [f"the {k} have changed" for k in outside]
    if old.version != new.version:
        reasons.append(f"version {old.version} -> {new.version}")
    if plan.redo and plan.why:
        reasons.append(plan.why)
    return "; ".join(dict.fromkeys(reasons)) or "its input files have changed"


def _equal(first: StageRecord, second: StageRecord) -> bool:
    # by their JSON: what is read back holds lists where tuples were written
    return fingerprint(asdict(first)) == fingerprint(asdict(second))


def _describe_device(settings: StageSettings, execution: Execution, shards: int) -> str:
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
    return f"{count_of(min(execution.workers, shards), 'workers')} on {device.type}"


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
    key = stage.key(settings)
    with confine_writes(run.path), _guard(permit):
        Ledger(run.state(key)).drop(number)
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
        require_unchanged(run, key)
        Ledger(run.state(key)).commit(record)
    return record
