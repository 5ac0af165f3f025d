"""Locks as objects: conditional requests, lost answers, and requests that arrive late."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RunError
from pipeline.storage import locks
from pipeline.storage.locks import Owner, UnreachableError, hold_lock, open_claims
from pipeline.storage.places import ObjectPath, parse_place
from pipeline.storage.s3 import S3Store
from tests.object_store.flaky import FlakyProxy
from tests.pipeline.storage import test_locks as local
from tests.pipeline.storage.test_locks import COUNT, ELSEWHERE, HOLD, Start, leave, read_line, tell

start, quick = local.start, local.quick
WHAT = local.WHAT


@pytest.fixture
def file(bucket: str) -> Path:
    return parse_place(f"{bucket}/runs/ä b/state/locks/em+k12")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give requests up soon, so that hanging ones do not make the tests slow."""
    monkeypatch.setattr(locks, "REQUEST_S", 0.5)


def hold(file: Path, **options: Any) -> Any:
    return hold_lock(file, what=WHAT, **({"wait": False} | options))


def leave_claim(file: Path, **change: Any) -> Owner:
    owner = replace(Owner.here(), **change)
    assert open_claims(file).take(owner, None)
    return owner


def test_an_object_while_held_and_nothing_after(file: Path) -> None:
    with hold(file) as lock:
        assert file.is_file()
        assert [path.name for path in file.parent.iterdir()] == ["em+k12"]
        lock.check()
    assert not file.is_file()


def test_writes_are_conditional(file: Path) -> None:
    first = leave_claim(file)
    claim, sight = open_claims(file), open_claims(file).look()
    assert not claim.take(Owner.here(), None)
    assert open_claims(file).holds(first)
    owner = open_claims(file)
    assert owner.holds(first)
    assert owner.renew(first.beaten())
    # seen as stale, but it has given a sign of life since
    assert not claim.take(Owner.here(), sight)
    new = Owner.here()
    assert claim.take(new, claim.look())
    assert not owner.holds(first)
    assert not owner.renew(first.beaten())
    owner.release(first)
    assert claim.holds(new)
    claim.release(new)
    assert open_claims(file).look() is None
    assert not claim.renew(new)


def test_a_second_process_stops_or_waits(file: Path, start: Start, quick: None) -> None:
    owner = start(HOLD, file)
    assert read_line(owner) == "inside"
    with (
        pytest.raises(RunError, match=f"is computing {WHAT}: process {owner.pid} on "),
        hold(file),
    ):
        pass
    said: list[str] = []
    entered = threading.Event()

    def wait() -> None:
        with hold(file, wait=True, say=said.append):
            entered.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not entered.wait(1.5)
    assert tell(owner) == "held"
    leave(owner)
    assert entered.wait(10)
    thread.join()
    assert len(said) == 1
    assert said[0].startswith(f"waiting for {WHAT}: process {owner.pid} on ")


def test_a_killed_owner_is_taken_over_at_once(file: Path, start: Start) -> None:
    owner = start(HOLD, file)
    assert read_line(owner) == "inside"
    owner.kill()
    owner.wait()
    said: list[str] = []
    begun = time.monotonic()
    with hold(file, say=said.append) as lock:
        assert time.monotonic() - begun < 2
        lock.check()
    assert said[0].endswith("which ended without releasing it.")


def test_an_owner_elsewhere_loses_its_lease_and_notices(
    file: Path, start: Start, quick: None
) -> None:
    owner = start(ELSEWHERE + HOLD, file)
    assert read_line(owner) == "inside"
    os.kill(owner.pid, signal.SIGSTOP)
    with hold(file, wait=True, say=lambda line: None) as lock:
        os.kill(owner.pid, signal.SIGCONT)
        assert tell(owner).startswith("another process has taken over em/k12 in here, as this")
        leave(owner)
        time.sleep(0.3)
        lock.check()


def test_many_processes_race_for_a_stale_lock(file: Path, start: Start, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    leave_claim(file, pid=2**22 + 1, start=1)
    processes = [start(COUNT, file, counter, 10) for _ in range(4)]
    for process in processes:
        assert process.wait(60) == 0
    assert int(counter.read_text()) == 40
    assert not file.is_file()


@pytest.mark.parametrize("fault", ["error", "slowdown", "applied", "lost", "hang", "late"])
@pytest.mark.parametrize(
    "method",
    [
        "PUT",
        pytest.param("GET", marks=pytest.mark.slow),
        pytest.param("DELETE", marks=pytest.mark.slow),
    ],
)
def test_an_answer_that_is_lost_locks_nobody_out(
    file: Path, flaky: FlakyProxy, quick: None, impatient: None, method: str, fault: str
) -> None:
    flaky.hang_s = 0.8
    # of those that end at once, more than the client repeats by itself
    flaky.fail_next(method, *[fault] * (3 if fault in ("hang", "late") else 6))
    with hold(file) as lock:
        lock.check()
        with pytest.raises(RunError, match=f"process {os.getpid()} on "), hold(file):
            pass
    assert flaky.injected[fault] > 0
    flaky.calm()
    with hold(file, say=lambda line: None) as lock:
        time.sleep(1.0 if fault == "late" else 0)
        lock.check()


def test_a_write_that_arrives_after_the_release_is_taken_over(file: Path, quick: None) -> None:
    # this process runs, and does not know of it; nor does another one on this machine
    owner = leave_claim(file)
    said: list[str] = []
    with hold(file, say=said.append):
        assert not open_claims(file).holds(owner)
    assert said[0].endswith("ended without releasing it.")
    leave_claim(file, pid=os.getppid(), start=local.read_start(os.getppid()))
    with hold(file, wait=True, say=said.append):
        pass
    assert said[-1].endswith("which gave no sign of life for 1 s.")


def test_signs_of_life_survive_faults(
    file: Path, flaky: FlakyProxy, start: Start, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    """Nobody gets in while the owner lives, although a third of the requests fail."""
    flaky.fail({"error": 0.1, "applied": 0.1, "lost": 0.1}, seed=3)
    with hold(file) as lock:
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            lock.check()
            with pytest.raises(RunError, match=f"process {os.getpid()} on "), hold(file):
                pass
            time.sleep(0.05)
        assert not lock.lost
    assert flaky.total > 5
    assert not file.is_file()


def test_a_race_through_faults_lets_one_in_at_a_time(
    file: Path, flaky: FlakyProxy, start: Start, tmp_path: Path
) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    flaky.hang_s = 0.3
    flaky.fail({"error": 0.05, "slowdown": 0.05, "applied": 0.05, "lost": 0.05, "cut": 0.05})
    processes = [start(COUNT, file, counter, 6) for _ in range(3)]
    for process in processes:
        assert process.wait(100) == 0
    assert int(counter.read_text()) == 18
    assert flaky.total > 5


def test_a_store_that_does_not_answer_is_one_sentence(
    file: Path, flaky: FlakyProxy, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LEASE_S", 4.0)
    monkeypatch.setattr(locks, "TRIES", 2)
    with hold(file) as lock:
        flaky.patience = 10**6
        flaky.fail({"lost": 1.0})
        # nobody can have taken it over yet
        lock.check()
        deadline = time.monotonic() + 20
        with pytest.raises(RunError, match=r"holds the lock on em/k12 in here cannot be known \("):
            while time.monotonic() < deadline:
                lock.check()
                time.sleep(0.1)
        with (
            pytest.raises(
                RunError, match=r"^cannot lock em/k12 in here: the object store gives no answer"
            ) as raised,
            hold(file),
        ):
            pass
        assert "\n" not in str(raised.value)
        flaky.calm()


def test_a_bucket_that_is_not_there_is_one_sentence(bucket: str) -> None:
    with (
        pytest.raises(RunError, match=r"^there is no bucket nobody-s-bucket"),
        hold(parse_place("s3://nobody-s-bucket/run/state/locks/em")),
    ):
        pass


def test_a_store_without_conditional_removal(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    delete = S3Store.delete_if

    def refuse(self: S3Store, path: ObjectPath, tag: str | None, seconds: float) -> bool:
        if tag is not None:
            raise OSError(errno.ENOSYS, "NotImplemented")
        return delete(self, path, tag, seconds)

    monkeypatch.setattr(S3Store, "delete_if", refuse)
    with hold(file):
        pass
    assert not file.is_file()


def test_a_part_of_a_record_is_no_loss_of_the_lock(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = S3Store.get_tagged

    def tear(self: S3Store, path: ObjectPath, seconds: float) -> tuple[str, bytes] | None:
        found = whole(self, path, seconds)
        return found and (found[0], found[1][:40])

    with hold(file) as lock:
        monkeypatch.setattr(S3Store, "get_tagged", tear)
        with pytest.raises(UnreachableError, match="a part of the lock's record"):
            lock.permit.holds()
        lock.check()
        assert not lock.lost
        monkeypatch.undo()
        lock.check()
        assert lock.permit.holds()
    assert not file.is_file()


@pytest.mark.parametrize("ignored", ["IfNoneMatch", "IfMatch"])
def test_a_store_is_asked_whether_it_honours_conditions(
    file: Path, flaky: FlakyProxy, monkeypatch: pytest.MonkeyPatch, ignored: str
) -> None:
    assert isinstance(file, ObjectPath)
    flaky.fail_next("PUT", "applied", "lost", "error")
    assert locks.probe_conditions(file.parent) is True
    put = S3Store._ask_once

    def ignore(self: S3Store, path: ObjectPath, seconds: float, act: str, **given: Any) -> Any:
        return put(self, path, seconds, act, **{n: v for n, v in given.items() if n != ignored})

    monkeypatch.setattr(S3Store, "_ask_once", ignore)
    assert locks.probe_conditions(file.parent) is False
    assert list(file.parent.iterdir()) == []


def test_a_release_that_is_never_answered_ends(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with hold(file):

        def refuse(*_: object, **__: object) -> None:
            raise UnreachableError(5, "no answer")

        monkeypatch.setattr(S3Store, "_ask_once", refuse)
    assert "could not be released (no answer)" in caplog.text
