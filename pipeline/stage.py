"""What a stage is, and the one way in which stages are run.

A stage plans (which shards, made from what), prepares (allocates its arrays), computes single
shards, and finishes. The same code therefore runs in a loop, in a pool, or on a cluster, and every
shard can be computed again alone.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Generic, TypeVar

from pipeline.condition import require_fresh
from pipeline.errors import PipelineError, RunError, ShardError, StaleError, WeightsError
from pipeline.files import confine_writes, fingerprint, note_writes
from pipeline.inventory import find_lost, list_files, list_sizes
from pipeline.ledger import Ledger, ShardRecord, StageRecord
from pipeline.locks import Lock
from pipeline.progress import Screen
from pipeline.run import Run
from pipeline.scheduler import Execution, compute_shards
from pipeline.settings import StageSettings, describe_changes

S = TypeVar("S", bound=StageSettings)
_LOCK: ContextVar[Lock | None] = ContextVar("lock", default=None)


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be: what it is made from, and how many items it holds."""

    fingerprint: str
    items: int


@dataclass(frozen=True)
class Plan:
    """All shards of a stage.

    Attributes
    ----------
    shards
        In the order of the arrays.
    facts
        Small JSON-able findings that later stages and the report read (channels, grid, source of
        the weights).
    redo
        Shards to compute again although their fingerprint is known.
    sources
        What was read outside the run, by name: JSON-able, other whenever it is another.
    payload
        Anything that :meth:`Stage.prepare` needs from :meth:`Stage.plan`; not kept.
    """

    shards: list[ShardPlan]
    facts: dict[str, Any] = field(default_factory=dict)
    redo: frozenset[int] = frozenset()
    sources: dict[str, Any] = field(default_factory=dict)
    payload: Any = None


class Stage(ABC, Generic[S]):
    """One of the pipeline's steps. Instances hold no state: they travel to other processes.

    What a stage writes through ``pipeline.files`` and ``pipeline.store`` is noted down with its
    checksum: what :meth:`compute` writes in the record of the shard, what :meth:`prepare` and
    :meth:`finish` write in that of the stage.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    # the verb of the command line, where it is not the name
    verb: ClassVar[str] = ""
    settings_class: ClassVar[type[StageSettings]]

    @property
    def version(self) -> int:
        """Version of what the stage computes."""
        return self.settings_class.version

    def key(self, settings: S) -> str:
        """Return the ledger key; a stage that may run under several names adds the name."""
        return self.name

    def choose_key(self, run: Run, given: Mapping[str, Any]) -> str:
        """Return the ledger key that the given settings mean, before all settings are known."""
        return self.name

    def name_options(self, settings: S) -> str:
        """Return the command-line options that name the key, with a space in front, or nothing."""
        return ""

    def inputs(self, run: Run, settings: S) -> list[str]:
        """Return the keys of the stages that this one reads."""
        return []

    def resolve(self, run: Run, settings: S) -> S:
        """Replace every ``auto`` or absent value by what it means here."""
        return settings

    @abstractmethod
    def plan(self, run: Run, settings: S, screen: Screen) -> Plan:
        """Say which shards there will be; writes nothing."""

    def shares_work(self, settings: S) -> bool:
        """Whether a shard shares its work out itself, among ``pipeline.team.current_team()``."""
        return False

    @abstractmethod
    def prepare(self, run: Run, settings: S, plan: Plan) -> None:
        """Allocate what the shards are written into; touches nothing that is right already."""

    @abstractmethod
    def compute(self, run: Run, settings: S, shard: int) -> dict[str, Any]:
        """Compute and write one shard; return a small JSON-able result for its record."""

    def find(self, run: Run, settings: S, records: dict[int, ShardRecord]) -> str:
        """Return a fingerprint of what only the computation could tell, for the later stages."""
        return ""

    def finish(
        self, run: Run, settings: S, records: dict[int, ShardRecord], screen: Screen
    ) -> list[str]:
        """Do what needs all shards; return lines for the screen."""
        return []


def run_stage(
    stage: Stage[S],
    run: Run,
    settings: S,
    execution: Execution,
    screen: Screen,
    versions: Mapping[str, int] | None = None,
) -> StageRecord | None:
    """Bring a stage up to date: compute the shards that are missing or stale, and no others.

    Parameters
    ----------
    stage, run, settings
        What to compute, and where.
    execution, screen
        How to compute it, and where to show it.
    versions
        Version number of every stage of this installation, by name, where known: what an older
        version wrote is stale.

    Returns
    -------
    StageRecord or None
        The finished record; None on a dry run that would compute something.

    Raises
    ------
    StaleError, RunError
        A stage that this one reads is missing, incomplete or stale.
    ShardError
        Some shards failed; the others are finished and will not be computed again.
    """
    names = settings.model_fields_set
    settings = stage.resolve(run, settings)
    key = stage.key(settings)
    if execution.dry_run:
        return _bring_up_to_date(stage, run, settings, names, execution, screen, versions)
    if stage.inputs(run, settings):
        run.require()
    existed = run.path.exists()
    with confine_writes(run.path):
        run.create()
        try:
            with run.lock(key, wait=False, say=screen.warn) as lock, _hold(lock):
                return _bring_up_to_date(stage, run, settings, names, execution, screen, versions)
        finally:
            # a first command that was refused leaves nothing behind
            run.discard_unused(folder=not existed)


@contextmanager
def _hold(lock: Lock) -> Iterator[None]:
    token = _LOCK.set(lock)
    try:
        yield
    finally:
        _LOCK.reset(token)


def _check_lock() -> None:
    """Stop where another process has taken over the stage: this one was taken for dead."""
    lock = _LOCK.get()
    if lock is not None:
        lock.check()


def _bring_up_to_date(
    stage: Stage[S],
    run: Run,
    settings: S,
    names: set[str],
    execution: Execution,
    screen: Screen,
    versions: Mapping[str, int] | None,
) -> StageRecord | None:
    key = stage.key(settings)
    inputs = {
        name: require_fresh(run, name, versions).digest for name in stage.inputs(run, settings)
    }
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
        screen.warn(f"{key}: what {len(lost)} finished shards wrote is gone.")
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
        stage.prepare(run, settings, plan)
        return old

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
    _check_lock()
    ledger.write_stage(finished)
    for line in lines:
        screen.note(line)
    return finished


def _seal(
    stage: Stage[S], run: Run, settings: S, record: StageRecord, records: dict[int, ShardRecord]
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
    run: Run,
    settings: S,
    plan: Plan,
    pending: list[int],
    execution: Execution,
    screen: Screen,
) -> None:
    # another process may have another working folder
    place = Run(run.path.absolute())
    calls = [(stage, place, settings, number, plan.shards[number]) for number in pending]
    total = sum(plan.shards[number].items for number in pending)
    failed: list[tuple[int, Exception]] = []
    with screen.count(stage.name, total, stage.unit) as counter:

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
            # workers hold no lock; whoever gave them the work does
            _check_lock()
            if done.error is not None:
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
            f"{stage.name}: {len(failed)} of {len(pending)} shards failed, the others are kept; "
            f"shard {number}: {type(error).__name__}: {error}"
        ) from error


def compute_shard(
    stage: Stage[S], run: Run, settings: S, number: int, shard: ShardPlan
) -> ShardRecord:
    """Compute one shard and, last of all, write its record."""
    start = time.perf_counter()
    with confine_writes(run.path):
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
        _check_lock()
        Ledger(run.state(stage.key(settings))).commit(record)
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
    total = len(plan.shards)
    items = sum(shard.items for shard in plan.shards)
    if not pending:
        state = "fresh, nothing to do" if fresh else "shards are fresh, the summary is made again"
        screen.note(f"{key}: {state} ({total} shards, {items} {unit})")
        return
    if old is not None and stale:
        reasons = describe_changes(old.settings, new.settings)
        reasons += describe_changes(old.facts, new.facts)
        reasons += [f"{k} has changed" for k in new.inputs if old.inputs.get(k) != new.inputs[k]]
        outside = [k for k in new.sources if old.sources.get(k) != new.sources[k]]
        reasons += [f"the {k} have changed" for k in outside]
        if old.version != new.version:
            reasons.append(f"version {old.version} -> {new.version}")
        why = "; ".join(reasons) or "its input files have changed"
        screen.note(f"{key}: {stale} shards are stale: {why}")
    screen.note(f"{key}: {pending} of {total} shards to compute ({items} {unit} in all)")
