"""Where shards are computed: in this process, in local processes, or on a cluster.

Inline, a shard is a call in a loop; otherwise it is a task of a ``distributed`` client. A stage
whose shard is one long computation (a fit, epoch by epoch) is computed in this process, cuts every
step into pieces, hands them to a :class:`Team`, and puts the results together in the order of the
pieces. On a cluster a piece is a task, too, and what it gives stays at its worker until it is
gathered, or used by another piece. A worker that dies costs nothing but time: dask computes what
it held again elsewhere, from the same arguments.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from pipeline.compute.devices import resolve_device
from pipeline.compute.signals import check_stopped, defer_signals
from pipeline.errors import RunError, UsageError, WorkerLostError

if TYPE_CHECKING:
    from distributed import Client, Future

Tell = Callable[[dict[str, Any]], None]

CONNECT_S = 5.0
# How often a cluster is asked whether it has workers, while nothing else happens.
LOOK_S = 5.0
# A queue of jobs may take long to start workers; after so long nobody is coming.
WORKERLESS_S = 900.0
# Dead processes of our own are replaced within seconds, but for one that dies while it starts.
RENEW_S = 20.0
# Pieces of a stream under way at once, per worker thread; their results wait at the workers.
AHEAD = 2
_TOPIC = "primaps-pipe"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_LISTENER: ContextVar[Tell | None] = ContextVar("listener", default=None)


@dataclass(frozen=True)
class Execution:
    """How a stage is run; nothing here changes what it writes."""

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
    worker.log_event(_TOPIC, event)


def compute_shards(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    execution: Execution,
    listener: Tell,
    *,
    names: Sequence[str] | None = None,
    shares_work: bool = False,
    device: str = "cpu",
) -> Iterator[Done]:
    """Call a function once per shard and give the ends as they come.

    A shard whose worker process is killed is computed once more when all others have ended, with
    nothing beside it: it may have been their memory that ran out.
    """
    if not calls:
        return
    names = names or [f"shard {index}" for index in range(len(calls))]
    if shares_work and execution.scheduler is not None:
        with ClusterTeam(partial(open_remote, execution.scheduler), listener) as team:
            yield from _compute_inline(function, calls, listener, team)
        return
    # what shares its work uses all cores here: the way to processes beside it only costs time
    if shares_work or execution.inline:
        yield from _compute_inline(function, calls, listener, INLINE)
        return
    if execution.scheduler is not None:
        opened = open_remote(execution.scheduler)
    else:
        opened = open_local(min(execution.workers, len(calls)), device)
    with opened as client:
        yield from _compute_distributed(client, function, calls, names, listener)


def _compute_inline(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], listener: Tell, team: Team
) -> Iterator[Done]:
    for index, arguments in enumerate(calls):
        told, joined = _LISTENER.set(listener), _TEAM.set(team)
        try:
            done = Done(index, function(*arguments))
        except Exception as error:
            done = Done(index, error=error)
        finally:
            _LISTENER.reset(told)
            _TEAM.reset(joined)
        check_stopped()
        yield done


def _compute_distributed(
    client: Client,
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    names: Sequence[str],
    listener: Tell,
) -> Iterator[Done]:
    from distributed import KilledWorker

    crowd = count_neighbours(client)

    def submit(index: int) -> Future:
        return client.submit(_compute_limited, crowd, function, *calls[index], pure=False)

    suspects = []
    with ExitStack() as stack:
        client.subscribe_topic(_TOPIC, lambda event: listener(event[1]))
        stack.callback(client.unsubscribe_topic, _TOPIC)
        for index, future in _compute_each(client, submit, len(calls), listener):
            error = future.exception()
            if isinstance(error, KilledWorker):
                suspects.append((index, future))
            else:
                yield Done(index, None if error is not None else future.result(), error)
                future.release()
        for index, future in sorted(suspects, key=lambda suspect: suspect[0]):
            error = _retry_alone(client, future, names[index], listener)
            yield Done(index, None if error is not None else future.result(), error)
            # what is kept at a worker that dies is computed again
            future.release()


def _retry_alone(client: Client, future: Future, what: str, tell: Tell) -> Exception | None:
    """Compute once more what was lost with its worker, with nothing beside it; say how it ended."""
    from distributed import KilledWorker

    tell({"warn": f"the worker process of {what} was killed; once more, alone"})
    client.retry([future])
    _await_all(client, [future], tell)
    error: Any = future.exception()
    if not isinstance(error, KilledWorker):
        return error
    times = "twice" if error.allowed_failures == 0 else f"{error.allowed_failures + 2} times"
    return WorkerLostError(
        f"the worker process that computed {what} was killed {times}, the last time with nothing "
        "else to do (out of memory?); give it more memory, or smaller batches or images, and run "
        "the command again."
    )


def _compute_each(
    client: Client, submit: Callable[[int], Future], calls: int, tell: Tell
) -> Iterator[tuple[int, Future]]:
    """Submit calls, no more of them at once than there are threads, and give them as they end.

    A call that waits in a worker's queue would be lost, and blamed, with that worker.
    """
    from distributed import as_completed

    ends = as_completed()
    patience = Patience(client, tell)
    indices: dict[Any, int] = {}
    following = 0
    while following < calls or not ends.is_empty():
        if following < calls and len(indices) < max(1, sum(client.nthreads().values())):
            future = submit(following)
            indices[future.key] = following
            ends.add(future)
            following += 1
        elif ends.has_ready():
            future = next(ends)
            _check_connection(future)
            yield indices.pop(future.key), future
        else:
            time.sleep(0.01)
            patience.look()


class Team:
    """Computes pieces of a shard: this one at once, in this process."""

    remote = False

    def start(self, function: Callable[..., Any], *arguments: Any, ahead: bool = False) -> Any:
        """Start a piece."""
        return function(*arguments)

    def gather(self, pieces: Sequence[Any]) -> list[Any]:
        """Return what pieces give, in their order."""
        return list(pieces)

    def map(self, function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Start a piece per task, and return what they give, in the order of the tasks."""
        return self.gather([self.start(function, *task) for task in tasks])

    def stream(
        self, function: Callable[..., Any], firsts: Iterable[Any], *rest: Any
    ) -> Iterator[Any]:
        """Start ``function(first, *rest)`` for every first, and give the results in their order.

        Only a few are under way at once, so that neither firsts nor results pile up.
        """
        for first in firsts:
            yield function(first, *rest)


@dataclass(frozen=True, eq=False)
class _Piece:
    """A future, and the pieces that it is made from: while it lives, they can be made again."""

    future: Any
    sources: tuple[_Piece, ...]


class ClusterTeam(Team):
    """Computes pieces on the workers of a cluster; connects when the first is started."""

    remote = True

    def __init__(self, connect: Callable[[], AbstractContextManager[Any]], tell: Tell) -> None:
        self._connect, self._tell = connect, tell
        self._stack = ExitStack()
        self._client: Any = None
        self._crowd: dict[str, int] = {}
        self._started: WeakSet[_Piece] = WeakSet()

    def __enter__(self) -> ClusterTeam:
        return self

    def __exit__(self, *exc: object) -> None:
        self._started.clear()
        self._stack.close()

    def start(self, function: Callable[..., Any], *arguments: Any, ahead: bool = False) -> Any:
        """Send the piece to a worker; where it uses others, to one that holds them."""
        client = self._open()
        given = [one.future if isinstance(one, _Piece) else one for one in arguments]
        future = client.submit(
            _compute_limited, self._crowd, function, *given, pure=False, priority=-1 if ahead else 0
        )
        piece = _Piece(future, tuple(one for one in arguments if isinstance(one, _Piece)))
        self._started.add(piece)
        return piece

    def gather(self, pieces: Sequence[Any]) -> list[Any]:
        """Wait for pieces; one whose workers were killed is computed once more, alone."""
        from distributed import KilledWorker

        client = self._open()
        futures = [piece.future for piece in pieces]
        _await_all(client, futures, self._tell)
        for future in futures:
            error = future.exception() if future.status == "error" else None
            if isinstance(error, KilledWorker):
                others = [one.future for one in self._started if one.future is not future]
                _await_all(client, others, self._tell)
                error = _retry_alone(client, future, "a piece of the work", self._tell)
            if error is not None:
                raise error
        results: list[Any] = client.gather(futures)
        return results

    def stream(
        self, function: Callable[..., Any], firsts: Iterable[Any], *rest: Any
    ) -> Iterator[Any]:
        """Start pieces, a few per worker at once, and give the results in their order."""
        waiting: deque[Any] = deque()
        for first in firsts:
            waiting.append(self.start(function, first, *rest))
            if len(waiting) > AHEAD * sum(self._open().nthreads().values()):
                yield from self.gather([waiting.popleft()])
        while waiting:
            yield from self.gather([waiting.popleft()])

    def _open(self) -> Any:
        if self._client is None:
            self._client = self._stack.enter_context(self._connect())
            self._crowd = count_neighbours(self._client)
        return self._client


INLINE = Team()
_TEAM: ContextVar[Team] = ContextVar("team", default=INLINE)


def current_team() -> Team:
    """Return the team of the shard that is being computed; inline where nobody gave it one."""
    return _TEAM.get()


@contextmanager
def open_local(workers: int, device: str) -> Iterator[Client]:
    """Start worker processes on this machine; they end with this process, however it ends."""
    import dask
    from distributed import Client

    threads = str(share_cores(workers))
    config: dict[str, Any] = {
        **{f"distributed.nanny.pre-spawn-environ.{name}": threads for name in _THREADS},
        "distributed.scheduler.allowed-failures": 0,
    }
    before = {name: os.environ.get(name) for name in _THREADS}
    try:
        with dask.config.set(config), ExitStack() as stack:
            # half started, a cluster cannot be stopped
            with defer_signals():
                cluster = stack.enter_context(_make_cluster(workers, device))
                client = stack.enter_context(Client(cluster))
            yield client
    finally:
        # a nanny puts what its worker is told into the environment of this process, too
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _make_cluster(workers: int, device: str) -> Any:
    common = {
        "threads_per_worker": 1,
        # any port: another command may have the usual one
        "dashboard_address": "127.0.0.1:0",
        "silence_logs": "CRITICAL",
    }
    gpus = choose_gpus(workers, device)
    if not gpus:
        from distributed import LocalCluster

        return LocalCluster(n_workers=workers, processes=True, memory_limit=0, **common)
    try:
        from dask_cuda import LocalCUDACluster
    except ImportError:
        raise UsageError(
            "--workers on GPUs needs dask-cuda; install `primaps-pipe[cuda]`, use --device cpu, "
            "or leave --workers out."
        ) from None
    return LocalCUDACluster(CUDA_VISIBLE_DEVICES=gpus, **common)


def choose_gpus(workers: int, device: str) -> list[int]:
    """Choose one GPU for every worker; none where the work runs on the processor."""
    if resolve_device(device).type != "cuda":
        return []
    if ":" in device:
        raise UsageError(
            f"--device {device} names one GPU, and --workers gives every worker one of its own; "
            "use --device cuda."
        )
    import torch

    gpus = torch.cuda.device_count()
    if workers > gpus:
        raise UsageError(
            f"--workers {workers}: this machine has {gpus} GPU{'s' * (gpus != 1)}, one per worker; "
            f"use --workers {gpus}, or --device cpu."
        )
    return list(range(workers))


@contextmanager
def open_remote(address: str) -> Iterator[Client]:
    """Connect to a running scheduler."""
    from distributed import Client

    _check_scheduler(address)
    with Client(address) as client:
        yield client


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


def share_cores(workers: int) -> int:
    """Return how many threads each of so many processes may use on this machine."""
    from dask.system import CPU_COUNT

    own = max(1, CPU_COUNT // max(workers, 1))
    told = os.environ.get("OMP_NUM_THREADS", "")
    return min(own, int(told)) if told.isdigit() and int(told) else own


def count_neighbours(client: Client) -> dict[str, int]:
    """Count the tasks that all workers of each host compute at once, by the host's address."""
    crowd: dict[str, int] = {}
    for worker in client.scheduler_info(n_workers=-1)["workers"].values():
        crowd[worker["host"]] = crowd.get(worker["host"], 0) + worker["nthreads"]
    return crowd


def _compute_limited(
    crowd: Mapping[str, int], function: Callable[..., Any], *arguments: Any
) -> Any:
    """Call a function at a worker, whose libraries use no more than its share of the host's cores.

    A worker that was told its share in ``OMP_NUM_THREADS``, as those started here and by ``dask
    worker`` are, keeps to it.
    """
    told = os.environ.get("OMP_NUM_THREADS", "")
    if not (told.isdigit() and int(told)):
        from distributed import get_worker
        from threadpoolctl import threadpool_limits

        worker = get_worker()
        host = worker.address.partition("://")[2].rpartition(":")[0]
        told = str(share_cores(max(crowd.get(host, 0), worker.state.nthreads)))
        os.environ.update(dict.fromkeys(_THREADS, told))
        # too late for the environment alone: the libraries are loaded
        threadpool_limits(int(told))
    torch = sys.modules.get("torch")
    if torch is not None:
        # every thread has a limit of its own
        torch.set_num_threads(int(told))
    return function(*arguments)


def _await_all(client: Client, futures: Sequence[Future], tell: Tell) -> None:
    """Wait until futures have ended, however they end."""
    from distributed import wait

    patience = Patience(client, tell)
    left = list(futures)
    while left:
        try:
            wait(left, timeout=LOOK_S)
        except TimeoutError:
            patience.look()
        # what ended at a worker that died since is being computed again
        left = [future for future in left if future.status in ("pending", "lost")]
    for future in futures:
        _check_connection(future)


def _check_connection(future: Future) -> None:
    """Refuse a future that nobody is computing any more."""
    if future.status == "cancelled":
        raise RunError(
            "the connection to the dask scheduler is lost; run the command again to go on."
        )


class Patience:
    """Notices that a cluster has had no worker for too long."""

    def __init__(self, client: Client, tell: Tell) -> None:
        self._client, self._tell = client, tell
        self._looked = self._seen = time.monotonic()
        self._told = False

    def look(self) -> None:
        """Ask for the workers, where that was not done a moment ago."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        if self._client.nthreads():
            self._seen, self._told = now, False
            return
        cluster = self._client.cluster
        if cluster is not None:
            if now - self._seen > RENEW_S:
                workers = len(cluster.worker_spec)
                cluster.scale(0)
                cluster.scale(workers)
                self._seen = now
            return
        address = getattr(self._client.scheduler, "address", "?")
        if not self._told:
            self._tell({"warn": f"the dask scheduler at {address} has no workers; waiting."})
            self._told = True
        if now - self._seen > WORKERLESS_S:
            raise RunError(
                f"the dask scheduler at {address} has had no worker for "
                f"{WORKERLESS_S / 60:g} minutes; start some with `dask worker {address}`, and run "
                "the command again to go on."
            )
