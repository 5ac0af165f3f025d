"""Where shards are computed: in this process, in local processes, or on a cluster.

Inline, a shard is a call in a loop; otherwise it is a task of a ``distributed`` client. A stage
whose shard is one long computation (a fit, epoch by epoch) is computed in this process, cuts every
step into pieces, hands them to a :class:`Team`, and puts the results together in the order of the
pieces. On a cluster a piece is a task, too, and what it gives stays at its worker until it is
gathered, or used by another piece. A worker that dies costs nothing but time: dask computes what
it held again elsewhere, from the same arguments. One that cannot do the work, for want of the run
or of this version of the package, is named and left out.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4
from weakref import WeakSet

from pipeline.compute.devices import resolve_device
from pipeline.compute.signals import check_stopped, defer_signals
from pipeline.errors import PipelineError, RunError, UsageError, WorkerLostError

if TYPE_CHECKING:
    from distributed import Client, Future

Tell = Callable[[dict[str, Any]], None]
# Asked at a worker: why it cannot do the work, in words that follow "it"; nothing where it can.
Check = Callable[[], str]

CONNECT_S = 5.0
# How often a cluster is asked whether it has workers, while nothing else happens.
LOOK_S = 5.0
# A queue of jobs may take long to start workers; after so long nobody is coming.
WORKERLESS_S = 900.0
# Dead processes of our own are replaced within seconds, but for one that dies while it starts.
RENEW_S = 20.0
# Others may join a cluster none of whose workers can do the work.
GRACE_S = 10.0
# After so long a worker does not see what it was asked for, or its file system hangs.
EXAMINE_S = 20.0
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


def check_execution(execution: Execution, device: str) -> None:
    """Refuse what cannot be run: a scheduler that does not answer, a device that is not there."""
    if execution.scheduler is not None:
        # the workers have the devices
        _check_scheduler(execution.scheduler)
    elif execution.workers:
        choose_gpus(execution.workers, device)
    else:
        resolve_device(device)


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
    check: Check | None = None,
) -> Generator[Done, None, None]:
    """Call a function once per shard and give the ends as they come.

    A shard whose worker process is killed is computed once more when all others have ended, with
    nothing beside it: it may have been their memory that ran out. Workers of a cluster that do not
    pass the ``check`` are left out.
    """
    if not calls:
        return
    names = names or [f"shard {index}" for index in range(len(calls))]
    if shares_work and execution.scheduler is not None:
        with ClusterTeam(partial(open_remote, execution.scheduler), listener, check) as team:
            yield from _compute_inline(function, calls, listener, team)
        return
    # what shares its work uses all cores here: the way to processes beside it only costs time
    if shares_work or execution.inline:
        yield from _compute_inline(function, calls, listener, INLINE)
        return
    if execution.scheduler is not None:
        opened = open_remote(execution.scheduler)
    else:
        opened, check = open_local(min(execution.workers, len(calls)), device), None
    with opened as client:
        yield from _compute_distributed(client, function, calls, names, listener, check)


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
    check: Check | None,
) -> Iterator[Done]:
    from distributed import KilledWorker

    suspects = []
    with ExitStack() as stack:
        client.subscribe_topic(_TOPIC, lambda event: listener(event[1]))
        stack.callback(client.unsubscribe_topic, _TOPIC)
        crew = Crew(client, listener, check)
        for index, future in _compute_each(crew, function, calls):
            error = _read_error(future)
            if isinstance(error, KilledWorker):
                suspects.append((index, future))
            else:
                yield Done(index, None if error is not None else future.result(), error)
                future.release()
        for index, future in sorted(suspects, key=lambda suspect: suspect[0]):
            error = _retry_alone(crew, future, names[index])
            yield Done(index, None if error is not None else future.result(), error)
            # what is kept at a worker that dies is computed again
            future.release()


def _retry_alone(crew: Crew, future: Future, what: str) -> Exception | None:
    """Compute once more what was lost with its worker, with nothing beside it; say how it ended."""
    from distributed import KilledWorker

    crew.tell({"warn": f"the worker process of {what} was killed; once more, alone"})
    crew.client.retry([future])
    _await_all(crew, [future])
    error: Any = _read_error(future)
    if not isinstance(error, KilledWorker):
        return error  # type: ignore[no-any-return]
    times = "twice" if error.allowed_failures == 0 else f"{error.allowed_failures + 2} times"
    return WorkerLostError(
        f"the worker process that computed {what} was killed {times}, the last time with nothing "
        "else to do (out of memory?); give it more memory, or smaller batches or images, and run "
        "the command again."
    )


def _read_error(future: Future) -> Exception | None:
    """Return what a call failed with."""
    error: Any = future.exception() if future.status == "error" else None
    if isinstance(error, UnfitWorkerError):
        return error.error or RunError(f"the worker {error.address}: {error.reason}.")
    return error  # type: ignore[no-any-return]


def _compute_each(
    crew: Crew, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[int, Future]]:
    """Submit calls, no more of them at once than there are threads, and give them as they end.

    A call that waits in a worker's queue would be lost, and blamed, with that worker.
    """
    from distributed import as_completed

    ends = as_completed()
    indices: dict[Any, int] = {}
    waiting = deque(range(len(calls)))
    while waiting or not ends.is_empty():
        if waiting and len(indices) < max(1, crew.count_threads()):
            index = waiting.popleft()
            future = crew.submit(function, *calls[index])
            indices[future.key] = index
            ends.add(future)
        elif ends.has_ready():
            future = next(ends)
            _check_connection(future)
            index = indices.pop(future.key)
            if crew.blames(future):
                waiting.appendleft(index)
            else:
                yield index, future
        else:
            time.sleep(0.01)
            crew.look()


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


@dataclass(eq=False)
class _Piece:
    """A future, and what it is made from: while it lives, it can be made again."""

    future: Any
    call: tuple[Any, ...]
    ahead: bool


class ClusterTeam(Team):
    """Computes pieces on the workers of a cluster; connects when the first is started."""

    remote = True

    def __init__(
        self,
        connect: Callable[[], AbstractContextManager[Any]],
        tell: Tell,
        check: Check | None = None,
    ) -> None:
        self._connect, self._tell, self._check = connect, tell, check
        self._stack = ExitStack()
        self._opened: Crew | None = None
        self._started: WeakSet[_Piece] = WeakSet()

    def __enter__(self) -> ClusterTeam:
        return self

    def __exit__(self, *exc: object) -> None:
        self._started.clear()
        self._stack.close()

    def start(self, function: Callable[..., Any], *arguments: Any, ahead: bool = False) -> Any:
        """Send the piece to a worker; where it uses others, to one that holds them."""
        piece = _Piece(None, (function, *arguments), ahead)
        with _notice_loss():
            self._send(piece)
        self._started.add(piece)
        return piece

    def gather(self, pieces: Sequence[Any]) -> list[Any]:
        """Wait for pieces; one whose workers were killed is computed once more, alone."""
        from distributed import KilledWorker

        crew = self._crew
        with _notice_loss():
            _await_all(crew, [piece.future for piece in pieces])
            while blamed := [piece for piece in pieces if crew.blames(piece.future)]:
                for piece in blamed:
                    self._send_again(piece)
                _await_all(crew, [piece.future for piece in blamed])
        futures = [piece.future for piece in pieces]
        for future in futures:
            error = _read_error(future)
            if isinstance(error, KilledWorker):
                others = [one.future for one in self._started if one.future is not future]
                with _notice_loss():
                    _await_all(crew, others)
                    error = _retry_alone(crew, future, "a piece of the work")
            if error is not None:
                raise error
        with _notice_loss():
            results: list[Any] = crew.client.gather(futures)
        return results

    def stream(
        self, function: Callable[..., Any], firsts: Iterable[Any], *rest: Any
    ) -> Iterator[Any]:
        """Start pieces, a few per worker at once, and give the results in their order."""
        waiting: deque[Any] = deque()
        for first in firsts:
            waiting.append(self.start(function, first, *rest))
            if len(waiting) > AHEAD * self._crew.count_threads():
                yield from self.gather([waiting.popleft()])
        while waiting:
            yield from self.gather([waiting.popleft()])

    def _send(self, piece: _Piece) -> None:
        given = [one.future if isinstance(one, _Piece) else one for one in piece.call]
        piece.future = self._crew.submit(*given, priority=-1 if piece.ahead else 0)

    def _send_again(self, piece: _Piece) -> None:
        """Have a piece made elsewhere, and first those that it uses and that failed with it."""
        for one in piece.call:
            if isinstance(one, _Piece) and one.future.status == "error":
                self._send_again(one)
        self._send(piece)

    @property
    def _crew(self) -> Crew:
        if self._opened is None:
            client = self._stack.enter_context(self._connect())
            self._opened = Crew(client, self._tell, self._check)
        return self._opened


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
    import dask
    from distributed import Client

    _check_scheduler(address)
    # what they say of a lost connection has a traceback, and comes beside our sentence
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # after so long it also gives a lost connection up
    with dask.config.set({"distributed.comm.timeouts.connect": CONNECT_S}):
        opened = Client(address)
    with _notice_loss(), opened as client:
        yield client


@contextmanager
def _notice_loss() -> Iterator[None]:
    """Say in one sentence that a scheduler has gone, whichever request met with it."""
    from distributed import CancelledError
    from distributed.client import ClosedClientError

    try:
        yield
    except (OSError, CancelledError, ClosedClientError) as error:
        # an OSError with a number is one of this machine, of its disk or terminal
        if isinstance(error, OSError) and error.errno is not None and not _is_refused(error):
            raise
        raise _lost() from error


def _lost() -> RunError:
    return RunError("the connection to the dask scheduler is lost; run the command again to go on.")


def _is_refused(error: OSError) -> bool:
    return isinstance(error, ConnectionError) and not isinstance(error, BrokenPipeError)


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
    crowd: Mapping[str, int], demands: _Demands | None, function: Callable[..., Any], *given: Any
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
    return function(*given) if demands is None else _compute_fit(demands, function, *given)


def _await_all(crew: Crew, futures: Sequence[Future]) -> None:
    """Wait until futures have ended, however they end."""
    from distributed import wait

    left = list(futures)
    while left:
        try:
            wait(left, timeout=LOOK_S)
        except TimeoutError:
            crew.look()
        # what ended at a worker that died since is being computed again
        left = [future for future in left if future.status in ("pending", "lost")]
    for future in futures:
        _check_connection(future)


def _check_connection(future: Future) -> None:
    """Refuse a future that nobody is computing any more."""
    if future.status == "cancelled":
        raise _lost()


class Patience:
    """Notices that a cluster has had no worker for too long."""

    def __init__(self, client: Client, tell: Tell) -> None:
        self.client, self.tell = client, tell
        self._looked = self._seen = time.monotonic()
        self._told = False

    def look(self) -> None:
        """Ask for the workers, where that was not done a moment ago."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        if threads := self.client.nthreads():
            self._seen, self._told = now, False
            self._meet(threads)
            return
        cluster = self.client.cluster
        if cluster is not None:
            if now - self._seen > RENEW_S:
                workers = len(cluster.worker_spec)
                cluster.scale(0)
                cluster.scale(workers)
                self._seen = now
            return
        address = self._address
        if not self._told:
            self.tell({"warn": f"the dask scheduler at {address} has no workers; waiting."})
            self._told = True
        if now - self._seen > WORKERLESS_S:
            raise RunError(
                f"the dask scheduler at {address} has had no worker for "
                f"{WORKERLESS_S / 60:g} minutes; start some with `dask worker {address}`, and run "
                "the command again to go on."
            )

    def _meet(self, threads: Mapping[str, int]) -> None:
        """Look at the workers that there are, and how many threads each has."""

    @property
    def _address(self) -> str:
        return getattr(self.client.scheduler, "address", "?")


@dataclass(frozen=True)
class _Demands:
    """What a worker has to fulfil; one that has once is not asked again."""

    package: str
    check: Check
    token: str


_fulfilled: set[str] = set()


class UnfitWorkerError(PipelineError):
    """A worker cannot do the work: its address and host, the reason, and what it failed with."""

    def __init__(self, address: str, host: str, reason: str, error: Exception | None) -> None:
        super().__init__(address, host, reason, error)
        self.address, self.host, self.reason, self.error = address, host, reason, error


class Crew(Patience):
    """The workers of a cluster that can do the work; one that cannot is named and left out.

    Who is there, and who joins, is asked before it gets work. A worker asks itself again when what
    it was given fails.
    """

    def __init__(self, client: Client, tell: Tell, check: Check | None) -> None:
        super().__init__(client, tell)
        demands = None if check is None else _Demands(describe_package(), check, uuid4().hex)
        self._demands = demands
        self._crowd = count_neighbours(client)
        self._known: set[str] = set()
        self._unfit: dict[str, str] = {}
        self._hopeless: float | None = None
        self._meet(client.nthreads())

    def count_threads(self) -> int:
        """Count the threads of those that can do the work."""
        return sum(self._list_fit().values())

    def submit(self, function: Callable[..., Any], *given: Any, **options: Any) -> Future:
        """Have a function called by one that can do the work."""
        while self._unfit:
            fit = list(self._list_fit())
            if fit:
                # others where these die: whoever joins then may be fit
                options |= {"workers": fit, "allow_other_workers": True}
                break
            time.sleep(0.05)
            self.look()
        return self.client.submit(
            _compute_limited, self._crowd, self._demands, function, *given, pure=False, **options
        )

    def blames(self, future: Future) -> bool:
        """Whether a call failed because of its worker, so that another may do it."""
        error: Any = future.exception() if future.status == "error" else None
        if error is None or self._demands is None:
            return False
        if isinstance(error, UnfitWorkerError):
            return self._leave_out(error.address, error.host, error.reason)
        before = len(self._unfit)
        # one that joined a moment ago cannot say what it lacks where it lacks this very package
        self._meet(self.client.nthreads())
        return len(self._unfit) > before

    def _list_fit(self) -> dict[str, int]:
        return {a: n for a, n in self.client.nthreads().items() if a not in self._unfit}

    def _meet(self, threads: Mapping[str, int]) -> None:
        if self._demands is None:
            return
        newcomers = list(threads.keys() - self._known)
        if newcomers:
            answers = self.client.run(_examine, self._demands, workers=newcomers, on_error="return")
            workers = self.client.scheduler_info(n_workers=-1)["workers"]
            for address, answer in answers.items():
                if isinstance(answer, OSError):
                    continue  # it has ended meanwhile
                if isinstance(answer, Exception):
                    what = " ".join(f"{type(answer).__name__}: {answer}".split())
                    lack = f"it cannot run this version of primaps-pipe ({what})"
                    answer = workers.get(address, {}).get("host", "?"), lack
                self._known.add(address)
                if answer[1]:
                    self._leave_out(address, *answer)
        if not threads or threads.keys() - self._unfit.keys():
            self._hopeless = None
        elif self._hopeless is None:
            self._hopeless = time.monotonic()
        elif time.monotonic() - self._hopeless > GRACE_S:
            reasons = "; ".join(self._unfit[address] for address in sorted(threads)[:3])
            raise RunError(
                f"no worker of the dask scheduler at {self._address} can do the work: {reasons}. "
                "Put that right, and run the same command again to go on."
            )

    def _leave_out(self, address: str, host: str, reason: str) -> bool:
        assert self._demands is not None
        if address not in self._unfit:
            if self._demands.check():
                return False  # nor can this process
            self._unfit[address] = f"the worker {address} on {host}: {reason}"
            self.tell({"warn": f"left out is {self._unfit[address]}."})
        return True


@lru_cache(maxsize=1)
def describe_package() -> str:
    """Tell this package from another version, which may compute other bytes."""
    code = blake2b(digest_size=4)
    for room in ("pipeline", "stages"):
        for file in sorted((Path(__file__).parents[2] / room).rglob("*.py")):
            code.update(file.read_bytes())
    return f"{version('primaps-pipe')}, code {code.hexdigest()}"


def _find_obstacle(demands: _Demands) -> str:
    own = describe_package()
    if own != demands.package:
        return f"it has primaps-pipe {own}, and this process {demands.package}"
    return demands.check()


async def _examine(demands: _Demands) -> tuple[str, str]:
    """Return, at a worker, its host and why it cannot do the work; nothing where it can."""
    import asyncio

    try:
        reason = await asyncio.wait_for(asyncio.to_thread(_find_obstacle, demands), EXAMINE_S)
    except TimeoutError:
        reason = f"it has not answered for {EXAMINE_S:g} s whether it sees the run"
    return socket.gethostname(), reason


def _compute_fit(demands: _Demands, function: Callable[..., Any], *given: Any) -> Any:
    """Call a function at a worker that can do it; whether its failure is the worker's own."""
    if demands.token not in _fulfilled:
        _require_fitness(demands, None)
        _fulfilled.add(demands.token)
    try:
        return function(*given)
    except (PipelineError, OSError) as error:
        _require_fitness(demands, error)
        raise


def _require_fitness(demands: _Demands, error: Exception | None) -> None:
    from distributed import get_worker

    reason = _find_obstacle(demands)
    if reason:
        raise UnfitWorkerError(get_worker().address, socket.gethostname(), reason, error)
