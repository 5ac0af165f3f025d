"""Teams: pieces inline and on workers, lost workers, and errors."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster

from pipeline.errors import ImageError, WorkerLostError
from pipeline.team import INLINE, ClusterTeam, Team, current_team, with_team

WARNINGS: list[dict[str, Any]] = []


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            memory_limit=0,
            dashboard_address=":0",
            silence_logs="CRITICAL",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(params=["inline", "cluster"])
def team(request: pytest.FixtureRequest) -> Iterator[Team]:
    if request.param == "inline":
        yield INLINE
        return
    client = request.getfixturevalue("client")
    with ClusterTeam(lambda: nullcontext(client), WARNINGS.append) as team:
        yield team


def wait_then_square(number: int) -> int:
    # the first are the last to be done
    time.sleep(0.2 / (number + 1))
    return number**2


def make(number: int) -> dict[str, int]:
    return {"number": number, "process": os.getpid()}


def look(made: dict[str, int], factor: int) -> tuple[int, int, int]:
    return factor * made["number"], made["process"], os.getpid()


def fail(number: int) -> int:
    if number == 1:
        raise ImageError("piece 1 is dark")
    return number


def test_results_come_in_the_order_of_the_tasks(team: Team) -> None:
    assert team.map(wait_then_square, [(number,) for number in range(6)]) == [
        number**2 for number in range(6)
    ]
    assert team.map(wait_then_square, []) == []


def test_a_stream_is_in_order_and_takes_only_so_much_ahead(team: Team) -> None:
    taken: list[int] = []

    def count() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    for place, result in enumerate(team.stream(wait_then_square, count())):
        assert result == place**2
        assert len(taken) <= place + 1 + 2 * 2
    assert taken == list(range(20))


def test_a_piece_is_used_where_it_is(team: Team) -> None:
    made = [team.start(make, number) for number in range(4)]
    looked = team.map(look, [(piece, 3) for piece in made])
    assert [number for number, _, _ in looked] == [0, 3, 6, 9]
    assert all(before == after for _, before, after in looked)
    assert (os.getpid() in {after for _, _, after in looked}) is not team.remote


def test_an_error_of_a_piece_is_that_of_the_call(team: Team) -> None:
    with pytest.raises(ImageError, match=r"^piece 1 is dark$"):
        team.map(fail, [(number,) for number in range(3)])
    assert team.map(fail, [(2,)]) == [2]


def test_the_team_of_a_shard() -> None:
    assert current_team() is INLINE
    other = ClusterTeam(lambda: nullcontext(), WARNINGS.append)
    with with_team(other):
        assert current_team() is other
    assert current_team() is INLINE


def test_what_a_killed_worker_held_is_made_again(client: Client) -> None:
    with ClusterTeam(lambda: nullcontext(client), WARNINGS.append) as team:
        made = [team.start(make, number) for number in range(4)]
        lost = team.map(look, [(made[0], 1)])[0][1]
        os.kill(lost, signal.SIGKILL)
        looked = team.map(look, [(piece, 3) for piece in made])
        assert [number for number, _, _ in looked] == [0, 3, 6, 9]
        assert lost not in {process for _, process, _ in looked}


def kill_at_first(number: int, diary: Path, times: int) -> int:
    """Kill the process that computes number 2, so many times."""
    if number == 2:
        earlier = len(list(diary.iterdir()))
        if earlier < times:
            (diary / str(earlier)).touch()
            # a process that has hardly started is not replaced at once
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
    return number


def add_one(number: int) -> int:
    return number + 1


# dask tries a piece four times before it gives up, and the team once more
@pytest.mark.parametrize(("times", "warned"), [(1, 0), (4, 1)])
def test_a_piece_whose_worker_is_killed_is_computed_again(
    client: Client, tmp_path: Path, times: int, warned: int
) -> None:
    warnings: list[Any] = []
    with ClusterTeam(lambda: nullcontext(client), warnings.append) as team:
        made = [team.start(kill_at_first, number, tmp_path, times) for number in range(4)]
        assert team.map(add_one, [(piece,) for piece in made]) == [1, 2, 3, 4]
    assert len(list(tmp_path.iterdir())) == times
    # the cluster blames all that a dead worker held, so another piece may have been retried, too
    retried = len([event for event in warnings if "alone" in event["warn"]])
    assert warned <= retried <= 4 * warned


def test_a_piece_that_kills_every_worker_is_given_up(client: Client, tmp_path: Path) -> None:
    with ClusterTeam(lambda: nullcontext(client), WARNINGS.append) as team:
        with pytest.raises(WorkerLostError, match=r"^the worker process .* was killed 5 times"):
            team.map(kill_at_first, [(number, tmp_path, 99) for number in range(4)])
        assert len(list(tmp_path.iterdir())) == 5
        assert team.map(add_one, [(7,)]) == [8]
