"""Where shards are computed: inline, in local processes, or on a cluster; one code path.

Every shard becomes one ``dask.delayed`` call. Inline, dask's synchronous scheduler runs it in this
process; otherwise a ``distributed`` client does. A shard that shares its own work out is computed
in this process, with a team of workers at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.cluster import (
    await_all,
    compute_each,
    count_neighbours,
    describe_loss,
    limit_threads,
    open_local,
    open_remote,
)
from pipeline.signals import check_stopped
from pipeline.team import INLINE, ClusterTeam, Team, with_team

TOPIC = "primaps-pipe"
_LISTENER: ContextVar[Callable[[dict[str, Any]], None] | None] = ContextVar(
    "listener", default=None
)


@dataclass(frozen=True)
class Execution:
    """How a stage is run; nothing here changes what it writes.

    Attributes
    ----------
    workers
        Number of local processes; 0 computes in this process.
    scheduler
        Address of a running ``distributed`` scheduler, or None.
    force
        Compute finished shards again.
    dry_run
        Say what would be done, and do nothing.
    wait
        Wait for another process that computes the same stage, rather than refuse.
    """

    workers: int = 0
    scheduler: str | None = None
    force: bool = False
    dry_run: bool = False
    wait: bool = False

    @property
    def inline(self) -> bool:
        """Whether everything is computed in this process."""
        return self.workers == 0 and self.scheduler is None


@dataclass(frozen=True)
class Done:
    """The end of one call: its value, or the error it raised."""

    index: int
    value: Any = None
    error: Exception | None = None


def announce(**event: Any) -> None:
    """Tell who started this shard how it goes: ``advance=3`` (items done), ``say="epoch 4"``."""
    listener = _LISTENER.get()
    if listener is not None:
        listener(event)
        check_stopped()
        return
    from distributed import get_worker

    try:
        worker = get_worker()
    except ValueError:
        return
    worker.log_event(TOPIC, event)


def compute_shards(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    execution: Execution,
    listener: Callable[[dict[str, Any]], None],
    *,
    names: Sequence[str] | None = None,
    shares_work: bool = False,
    device: str = "cpu",
) -> Iterator[Done]:
    """Call a function once per shard and give the ends as they come.

    A shard whose worker process is killed is computed once more when all others have ended, with
    nothing beside it: it may have been their memory that ran out.

    Parameters
    ----------
    function
        A module-level function (it may have to travel to another process).
    calls
        The arguments of each call.
    execution
        Where to compute.
    listener
        Receives what the calls :func:`announce`.
    names
        What the calls are named in errors; ``shard`` and their index where there are none.
    shares_work
        Whether the calls share their work out themselves, among ``pipeline.team.current_team()``:
        they are made in this process, and the team is that of a scheduler elsewhere.
    device
        What the calls compute on; with CUDA, every local worker has a GPU of its own.

    Yields
    ------
    Done
        One per call, in the order of their ends. A call's exception is handed over, not raised, so
        that one bad shard does not cost the others.
    """
    if not calls:
        return
    names = names or [f"shard {index}" for index in range(len(calls))]
    if shares_work and execution.scheduler is not None:
        with ClusterTeam(partial(open_remote, execution.scheduler), listener) as team:
            yield from _compute_inline(function, calls, listener, team)
    elif shares_work or execution.inline:
        # what shares its work uses all cores here: the way to processes beside it only costs time
        yield from _compute_inline(function, calls, listener, INLINE)
    else:
        workers = min(execution.workers, len(calls))
        with _connect(execution, workers, device) as client:
            yield from _compute_distributed(client, function, calls, names, listener)


def _connect(execution: Execution, workers: int, device: str) -> AbstractContextManager[Any]:
    if execution.scheduler is not None:
        return open_remote(execution.scheduler)
    return open_local(workers, device, failures=0)


def _compute_inline(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    listener: Callable[..., None],
    team: Team,
) -> Iterator[Done]:
    import dask

    for index, arguments in enumerate(calls):
        task = dask.delayed(function, pure=False)(*arguments)
        token = _LISTENER.set(listener)
        try:
            with with_team(team):
                (value,) = dask.compute(task, scheduler="synchronous")
            done = Done(index, value)
        except Exception as error:
            done = Done(index, error=error)
        finally:
            _LISTENER.reset(token)
        check_stopped()
        yield done


def _compute_distributed(
    client: Any,
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    names: Sequence[str],
    listener: Callable[..., None],
) -> Iterator[Done]:
    from distributed import KilledWorker

    crowd = count_neighbours(client)

    def submit(index: int) -> Any:
        import dask

        task = dask.delayed(_call_limited, pure=False)(crowd, function, *calls[index])
        return client.compute(task)

    suspects = []
    with ExitStack() as stack:
        client.subscribe_topic(TOPIC, lambda event: listener(event[1]))
        stack.callback(client.unsubscribe_topic, TOPIC)
        for index, future in compute_each(client, submit, len(calls), listener):
            error = future.exception()
            if isinstance(error, KilledWorker):
                suspects.append(index)
            else:
                yield Done(index, None if error is not None else future.result(), error)
            future.release()
        for index in sorted(suspects):
            listener({"warn": f"the worker process of {names[index]} was killed; once more, alone"})
            future = submit(index)
            await_all(client, [future], listener)
            error = future.exception()
            if isinstance(error, KilledWorker):
                error = describe_loss(names[index], error)
            yield Done(index, None if error is not None else future.result(), error)


def _call_limited(crowd: Mapping[str, int], function: Callable[..., Any], *arguments: Any) -> Any:
    limit_threads(crowd)
    return function(*arguments)
