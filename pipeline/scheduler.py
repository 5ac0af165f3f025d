"""Where shards are computed: inline, in local processes, or on a cluster; one code path.

Every shard becomes one ``dask.delayed`` call. Inline, dask's synchronous scheduler runs it in this
process; otherwise a ``distributed`` client does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UsageError

TOPIC = "primaps-pipe"
CONNECT_S = 5.0
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
    """

    workers: int = 0
    scheduler: str | None = None
    force: bool = False
    dry_run: bool = False


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
) -> Iterator[Done]:
    """Call a function once per shard and give the ends as they come.

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

    Yields
    ------
    Done
        One per call, in the order of their ends. A call's exception is handed over, not raised, so
        that one bad shard does not cost the others.
    """
    import dask

    if not calls:
        return
    tasks = [dask.delayed(function, pure=False)(*arguments) for arguments in calls]
    if execution.workers == 0 and execution.scheduler is None:
        yield from _compute_inline(tasks, listener)
        return
    with _connect(execution, len(calls)) as client:
        yield from _compute_distributed(client, tasks, listener)


def _compute_inline(tasks: Sequence[Any], listener: Callable[..., None]) -> Iterator[Done]:
    import dask

    for index, task in enumerate(tasks):
        token = _LISTENER.set(listener)
        try:
            (value,) = dask.compute(task, scheduler="synchronous")
            done = Done(index, value)
        except Exception as error:
            done = Done(index, error=error)
        finally:
            _LISTENER.reset(token)
        yield done


def _compute_distributed(
    client: Any, tasks: Sequence[Any], listener: Callable[..., None]
) -> Iterator[Done]:
    from distributed import as_completed

    client.subscribe_topic(TOPIC, lambda event: listener(event[1]))
    futures = client.compute(list(tasks))
    indices = {future.key: index for index, future in enumerate(futures)}
    try:
        for future in as_completed(futures):
            error = future.exception()
            value = None if error is not None else future.result()
            yield Done(indices[future.key], value, error)
            future.release()
    finally:
        client.unsubscribe_topic(TOPIC)


@contextmanager
def _connect(execution: Execution, calls: int) -> Iterator[Any]:
    import dask
    from distributed import Client, LocalCluster

    with ExitStack() as stack:
        if execution.scheduler is not None:
            _check_scheduler(execution.scheduler)
            yield stack.enter_context(Client(execution.scheduler))
            return
        workers = min(execution.workers, max(calls, 1))
        threads = max(1, (os.cpu_count() or 1) // workers)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        stack.enter_context(
            dask.config.set(
                {f"distributed.nanny.pre-spawn-environ.{name}": threads for name in names}
            )
        )
        cluster = stack.enter_context(
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=0,
                dashboard_address=None,
                silence_logs="ERROR",
            )
        )
        yield stack.enter_context(Client(cluster))


def _check_scheduler(address: str) -> None:
    """Knock first: a `Client` that never connected holds the process up for long at its end."""
    import asyncio

    from distributed.comm import connect
    from distributed.security import Security

    async def knock() -> None:
        arguments = Security().get_connection_args("client")
        comm = await connect(address, timeout=CONNECT_S, **arguments)
        await comm.close()

    try:
        asyncio.run(knock())
    except (OSError, TimeoutError, ValueError) as error:
        raise UsageError(
            f"no dask scheduler answers at {address} ({error}); "
            "start one with `dask scheduler`, or use --workers."
        ) from error
