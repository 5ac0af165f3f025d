"""Where shards are computed: inline, in local processes, or on a cluster; one code path.

Every shard becomes one ``dask.delayed`` call. Inline, dask's synchronous scheduler runs it in this
process; otherwise a ``distributed`` client does. A shard that shares its own work out is computed
in this process, with a team of workers at hand.

Teams: who computes the pieces of one shard that is too long for one worker.

A stage whose shard is a long computation (a fit, epoch by epoch) cuts every step into pieces, hands
them to the team, and puts the results together in the order of the pieces. Inline, a piece is
computed where it is started; on a cluster it is a task, and what it gives stays at its worker until
it is gathered, or used by another piece. A worker that dies costs nothing but time: dask computes
what it held again elsewhere, from the same arguments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar
from weakref import WeakSet

from pipeline.compute.cluster import (
    Tell,
    await_all,
    compute_each,
    count_neighbours,
    describe_loss,
    limit_threads,
    open_local,
    open_remote,
)
from pipeline.compute.signals import check_stopped

# Pieces of a stream under way at once, per worker thread; their results wait at the workers.
AHEAD = 2


class Team(ABC):
    """Computes pieces."""

    remote: ClassVar[bool]

    @abstractmethod
    def start(self, function: Callable[..., Any], *arguments: Any, ahead: bool = False) -> Any:
        """Start a piece."""

    @abstractmethod
    def gather(self, pieces: Sequence[Any]) -> list[Any]:
        """Return what pieces give, in their order."""

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
            yield from self.map(function, [(first, *rest)])


class InlineTeam(Team):
    """Computes every piece at once, in this process."""

    remote = False

    def start(self, function: Callable[..., Any], *arguments: Any, ahead: bool = False) -> Any:
        """Compute the piece."""
        return function(*arguments)

    def gather(self, pieces: Sequence[Any]) -> list[Any]:
        """Return the pieces."""
        return list(pieces)


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
            _compute_piece, self._crowd, function, *given, pure=False, priority=-1 if ahead else 0
        )
        piece = _Piece(future, tuple(one for one in arguments if isinstance(one, _Piece)))
        self._started.add(piece)
        return piece

    def gather(self, pieces: Sequence[Any]) -> list[Any]:
        """Wait for pieces; one whose workers were killed is computed once more, alone."""
        from distributed import KilledWorker

        client = self._open()
        futures = [piece.future for piece in pieces]
        await_all(client, futures, self._tell)
        for future in futures:
            if future.status != "error":
                continue
            if isinstance(future.exception(), KilledWorker):
                self._retry_alone(future)
            if future.status == "error":
                raise future.exception()
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

    def _retry_alone(self, future: Any) -> None:
        from distributed import KilledWorker

        others = [piece.future for piece in self._started if piece.future is not future]
        await_all(self._client, others, self._tell)
        self._tell({"warn": "the worker process of a piece was killed; once more, alone"})
        self._client.retry([future])
        await_all(self._client, [future], self._tell)
        if future.status == "error" and isinstance(future.exception(), KilledWorker):
            raise describe_loss("a piece of the work", future.exception())

    def _open(self) -> Any:
        if self._client is None:
            self._client = self._stack.enter_context(self._connect())
            self._crowd = count_neighbours(self._client)
        return self._client


def _compute_piece(crowd: Mapping[str, int], function: Callable[..., Any], *arguments: Any) -> Any:
    limit_threads(crowd)
    return function(*arguments)


INLINE = InlineTeam()
_TEAM: ContextVar[Team] = ContextVar("team", default=INLINE)


def current_team() -> Team:
    """Return the team of the shard that is being computed; inline where nobody gave it one."""
    return _TEAM.get()


@contextmanager
def with_team(team: Team) -> Iterator[None]:
    """Give what is computed inside a team."""
    token = _TEAM.set(team)
    try:
        yield
    finally:
        _TEAM.reset(token)


TOPIC = "primaps-pipe"
_LISTENER: ContextVar[Callable[[dict[str, Any]], None] | None] = ContextVar(
    "listener", default=None
)


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
