"""Teams: who computes the pieces of one shard that is too long for one worker.

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
from typing import Any, ClassVar
from weakref import WeakSet

from pipeline.cluster import Tell, await_all, count_neighbours, describe_loss, limit_threads

# Pieces of a stream under way at once, per worker thread; their results wait at the workers.
AHEAD = 2


class Team(ABC):
    """Computes pieces.

    Attributes
    ----------
    remote
        Whether pieces are computed in other processes. What they take and give then travels.
    """

    remote: ClassVar[bool]

    @abstractmethod
    def start(self, function: Callable[..., Any], *arguments: Any, ahead: bool = False) -> Any:
        """Start a piece.

        Parameters
        ----------
        function
            A module-level function without side effects: it may be called again, elsewhere.
        *arguments
            Its arguments; what this method returned stands for what that piece gives.
        ahead
            Whether other pieces are wanted sooner.

        Returns
        -------
        Any
            To be passed to another piece or to :meth:`gather`, and to be looked at by nobody else.
        """

    @abstractmethod
    def gather(self, pieces: Sequence[Any]) -> list[Any]:
        """Return what pieces give, in their order.

        Raises
        ------
        WorkerLostError
            The workers that compute a piece are killed again and again.
        """

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
    """Computes pieces on the workers of a cluster; connects when the first is started.

    Parameters
    ----------
    connect
        Gives the client, as a context manager.
    tell
        Receives warnings, as ``{"warn": text}``.
    """

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
