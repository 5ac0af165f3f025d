"""Locks between real processes: one inside at a time, and none is kept out by a dead one.

Who holds a lock, and whether it still runs.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RunError
from pipeline.storage import locks
from pipeline.storage.locks import Lock, Owner, State, hold_lock, open_claims

REPOSITORY = Path(__file__).resolve().parents[3]
WHAT = "em/k12 in here"
Start = Callable[..., "subprocess.Popen[str]"]

PRELUDE = """
import sys, time
from dataclasses import replace
from pathlib import Path
from pipeline.storage import locks
from pipeline.errors import RunError
from pipeline.storage.locks import hold_lock
from pipeline.storage.places import parse_place

locks.BEAT_S, locks.LEASE_S, locks.SAY_AFTER_S = 0.1, 1.0, 0.1
locks.REMOTE_PAUSES_S = 0.02, 0.1
file = parse_place(sys.argv[1])

def say(line):
    print(line, flush=True)
"""

HOLD = """
with hold_lock(file, what="em/k12 in here", wait=False) as lock:
    say("inside")
    for line in sys.stdin:
        try:
            lock.check()
            say("held")
        except RunError as error:
            say(error)
say("outside")
"""

# a name that the others do not share: to them, this is a machine whose processes they cannot see
ELSEWHERE = "locks.name_machine = lambda: 'another'\n"

COUNT = """
counter, rounds = Path(sys.argv[2]), int(sys.argv[3])
for _ in range(rounds):
    with hold_lock(file, what="the counter", wait=True, say=lambda line: None) as lock:
        # not atomic on purpose: of two inside, one would be lost
        number = int(counter.read_text())
        time.sleep(0.0005)
        counter.write_text(str(number + 1))
"""


def write_program(code: str) -> str:
    return PRELUDE + textwrap.dedent(code)


@pytest.fixture
def start() -> Iterator[Start]:
    """Start programs that know the lock; what is left of them is killed."""
    processes: list[subprocess.Popen[str]] = []

    def call(code: str, *arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", write_program(code), *map(str, arguments)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield call
    for process in processes:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "locks" / "em+k12"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT_S", 0.1)
    monkeypatch.setattr(locks, "LEASE_S", 1.0)
    monkeypatch.setattr(locks, "REMOTE_PAUSES_S", (0.02, 0.1))
    monkeypatch.setattr(locks, "SAY_AFTER_S", 0.1)


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def tell(process: subprocess.Popen[str]) -> str:
    """Let a holder check its lock; return what it says."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return read_line(process)


def leave(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    assert read_line(process) == "outside"
    assert process.wait(10) == 0


def read_start(pid: int) -> int | None:
    return locks._read_process(pid)[0]


def hold(file: Path, **options: Any) -> Any:
    return hold_lock(file, what=WHAT, **({"wait": False} | options))


def leave_claim(file: Path, **change: Any) -> Owner:
    """Write what an owner with other properties would have left."""
    owner = replace(Owner.here(), **change)
    assert open_claims(file).take(owner, None)
    return owner


def list_claims(file: Path) -> list[Path]:
    return sorted(file.parent.iterdir())


def test_a_lock_is_a_readable_record_while_held_and_nothing_after(file: Path) -> None:
    with hold(file) as lock:
        (claim,) = list_claims(file)
        owner = Owner.decode(claim.read_bytes())
        assert owner is not None
        assert owner.pid == os.getpid()
        lock.check()
        assert not lock.lost
    assert list_claims(file) == []


def test_names_that_begin_alike_are_different_locks(file: Path) -> None:
    with hold(file), hold(file.with_name("em+k12.1")), hold(file.with_name("em+k1")):
        assert len(list_claims(file)) == 3


def test_a_second_process_stops_with_the_owner_s_name(file: Path, start: Start) -> None:
    owner = start(HOLD, file)
    assert read_line(owner) == "inside"
    with (
        pytest.raises(
            RunError,
            match=rf"^another process is computing em/k12 in here: process {owner.pid} on \S+, "
            r"since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC; wait until it has ended\.$",
        ),
        hold(file),
    ):
        pass
    assert tell(owner) == "held"
    leave(owner)
    with hold(file):
        pass


def test_a_second_process_waits_and_says_for_whom(file: Path, start: Start, quick: None) -> None:
    owner = start(HOLD, file)
    assert read_line(owner) == "inside"
    said: list[str] = []
    entered = threading.Event()

    def wait() -> None:
        with hold(file, wait=True, say=said.append):
            entered.set()

    thread = threading.Thread(target=wait)
    thread.start()
    # longer than a lease: an owner on this machine that runs is never taken over
    assert not entered.wait(1.5)
    (line,) = said
    assert line.startswith(f"waiting for {WHAT}: process {owner.pid} on ")
    leave(owner)
    assert entered.wait(5)
    thread.join()
    assert len(said) == 1


def test_short_waits_are_not_mentioned(file: Path) -> None:
    said: list[str] = []
    inside, done = threading.Event(), threading.Event()

    def keep() -> None:
        with hold(file):
            inside.set()
            done.wait(0.1)

    thread = threading.Thread(target=keep)
    thread.start()
    inside.wait()
    with hold(file, wait=True, say=said.append):
        pass
    thread.join()
    assert said == []


def test_threads_of_one_process_keep_each_other_out(file: Path) -> None:
    with hold(file), pytest.raises(RunError, match=f"process {os.getpid()} on "), hold(file):
        pass
    most, inside, errors = 0, 0, []

    def work() -> None:
        nonlocal most, inside
        for _ in range(10):
            with hold(file, wait=True):
                inside += 1
                most = max(most, inside)
                time.sleep(0.0002)
                inside -= 1

    def guard() -> None:
        try:
            work()
        except RunError as error:
            errors.append(error)

    threads = [threading.Thread(target=guard) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, inside, errors) == (1, 0, [])


def test_a_killed_owner_is_taken_over_at_once(file: Path, start: Start) -> None:
    owner = start(HOLD, file)
    assert read_line(owner) == "inside"
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    said: list[str] = []
    begun = time.monotonic()
    with hold(file, say=said.append) as lock:
        taken = time.monotonic() - begun
        lock.check()
        assert len(list_claims(file)) == 1
    assert taken < 0.5
    assert len(said) == 1
    assert re.fullmatch(
        rf"took over {WHAT} from process {owner.pid} on .*, which ended without releasing it\.",
        said[0],
    )


def test_an_owner_elsewhere_that_lives_is_left_alone(file: Path, start: Start, quick: None) -> None:
    owner = start(ELSEWHERE + HOLD, file)
    assert read_line(owner) == "inside"
    begun = time.monotonic()
    with pytest.raises(RunError, match=f"process {owner.pid} on "), hold(file):
        pass
    assert time.monotonic() - begun < 0.4
    time.sleep(1.5)
    with pytest.raises(RunError, match=f"process {owner.pid} on "), hold(file):
        pass
    assert tell(owner) == "held"
    leave(owner)


def test_an_owner_elsewhere_whose_clock_is_wrong_is_known_by_its_beats(
    file: Path, start: Start, quick: None
) -> None:
    wrong = "late = time.time\ntime.time = lambda: late() - 9999\n"
    owner = start(ELSEWHERE + wrong + HOLD, file)
    assert read_line(owner) == "inside"
    said: list[str] = []
    with pytest.raises(RunError, match=f"process {owner.pid} on "), hold(file, say=said.append):
        pass
    assert len(said) == 1
    assert "which may have ended; watching it for 1 s." in said[0]
    leave(owner)


def test_an_owner_elsewhere_that_died_long_ago_is_taken_over(file: Path, quick: None) -> None:
    leave_claim(file, host="elsewhere", pid=7, seen=0, since=0)
    said: list[str] = []
    begun = time.monotonic()
    with hold(file, say=said.append) as lock:
        # not at once, and not for ever: a busy machine is late
        assert 1.0 <= time.monotonic() - begun < 10
        lock.check()
    who = "process 7 on elsewhere, since 1970-01-01 00:00:00 UTC"
    assert said == [
        f"{WHAT} is locked by {who}, which may have ended; watching it for 1 s.",
        f"took over {WHAT} from {who}, which gave no sign of life for 1 s.",
    ]


def test_an_owner_elsewhere_that_died_just_now_is_waited_for(file: Path, quick: None) -> None:
    leave_claim(file, host="elsewhere", pid=7)
    with pytest.raises(RunError, match="process 7 on elsewhere"), hold(file):
        pass
    said: list[str] = []
    with hold(file, wait=True, say=said.append):
        pass
    assert [line.partition(" ")[0] for line in said] == ["waiting", "took"]


def test_an_owner_that_stood_still_notices_that_it_was_taken_over(
    file: Path, start: Start, quick: None
) -> None:
    owner = start(ELSEWHERE + HOLD, file)
    assert read_line(owner) == "inside"
    os.kill(owner.pid, signal.SIGSTOP)
    try:
        with hold(file, wait=True, say=lambda line: None) as lock:
            os.kill(owner.pid, signal.SIGCONT)
            assert tell(owner).startswith("another process has taken over em/k12 in here, as this")
            # neither its check, nor its beats, nor its release touch what is no longer its
            leave(owner)
            time.sleep(0.3)
            lock.check()
    finally:
        owner.kill()
    assert list_claims(file) == []


def test_beats_alone_notice_it_too(file: Path, quick: None) -> None:
    with hold(file) as lock:
        (claim,) = list_claims(file)
        claim.unlink()
        deadline = time.monotonic() + 5
        while not lock.lost and time.monotonic() < deadline:
            time.sleep(0.02)
        assert lock.lost
        with pytest.raises(RunError, match="has taken over"):
            lock.check()
    assert list_claims(file) == []


def test_a_record_that_a_power_failure_left_empty_is_taken_over(file: Path, quick: None) -> None:
    file.parent.mkdir(parents=True)
    file.with_name(f"em+k12~{'0' * 32}").write_bytes(b"")
    said: list[str] = []
    with hold(file, say=said.append):
        assert len(list_claims(file)) == 1
    assert said[0].startswith(f"{WHAT} is locked by an unknown process")


def test_half_written_records_are_cleared_away(file: Path) -> None:
    file.parent.mkdir(parents=True)
    file.with_name(f"em+k12~{'0' * 32}.part").write_bytes(b"{")
    other = file.with_name(f"masks~{'0' * 32}.part")
    other.write_bytes(b"{")
    with hold(file):
        assert len(list_claims(file)) == 2
    assert list_claims(file) == [other]


def test_a_claim_is_withdrawn_where_another_came_first(file: Path) -> None:
    stale = leave_claim(file, host="elsewhere")
    sight = open_claims(file).look()
    assert open_claims(file).take(Owner.here(), None) is False
    open_claims(file).renew(stale.beaten())
    # seen as stale, but it has given a sign of life since
    assert open_claims(file).take(Owner.here(), sight) is False
    assert len(list_claims(file)) == 1
    new = Owner.here()
    assert open_claims(file).take(new, open_claims(file).look()) is True
    assert not open_claims(file).holds(stale)
    assert not open_claims(file).renew(stale)
    open_claims(file).release(stale)
    assert open_claims(file).holds(new)


def test_of_two_that_take_at_once_at_most_one_gets_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every way in which the steps of two contenders can follow each other."""
    first, second = open_claims(file), open_claims(file)
    inner: list[bool] = []
    read = locks._FolderClaims._read_claims

    def interleave(self: locks._FolderClaims) -> dict[str, bytes]:
        # the other one comes between the writing and the listing of this one
        if self is first and not inner:
            inner.append(False)
            inner[0] = second.take(Owner.here(), None)
        return read(self)

    monkeypatch.setattr(locks._FolderClaims, "_read_claims", interleave)
    outer = first.take(Owner.here(), None)
    assert [outer, *inner] in ([True, False], [False, True])
    assert len(list_claims(file)) == 1


def test_a_fork_does_not_release_what_its_parent_holds(file: Path) -> None:
    with hold(file) as lock:
        code = (
            "import os, sys\n"
            "from pathlib import Path\n"
            "from pipeline.storage.locks import hold_lock\n"
            "with hold_lock(Path(sys.argv[1]), what='x', wait=False) as lock:\n"
            "    if (pid := os.fork()):\n"
            "        os.waitpid(pid, 0)\n"
            "        lock.check()\n"
        )
        other = file.with_name("other")
        subprocess.run([sys.executable, "-c", code, other], cwd=REPOSITORY, check=True)
        lock.check()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc refuses everybody")
def test_a_folder_that_refuses_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for bad in (tmp_path / "file" / "locks" / "em", Path("/proc/locks-of-nobody/em")):
        with (
            pytest.raises(
                RunError, match=r"^cannot lock em/k12 in here: .* \(/.*\); choose a folder that may"
            ) as raised,
            hold(bad),
        ):
            pass
        assert "\n" not in str(raised.value)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(RunError, match="No space left on device"), hold(file):
        pass
    assert list_claims(file) == []


def test_an_interrupt_while_taking_leaves_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: Lock, *_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Lock, "__init__", interrupt)
    with pytest.raises(KeyboardInterrupt), hold(file):
        pass
    assert list_claims(file) == []


def test_many_processes_race_for_stale_locks(file: Path, start: Start, tmp_path: Path) -> None:
    """Eight processes, fifty stale locks each found by all at once: never two inside."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    race = """
    counter, gate, rounds = Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    for number in range(rounds):
        while not (gate / str(number)).exists():
            time.sleep(0.001)
        with hold_lock(file, what="the counter", wait=True, say=lambda line: None) as lock:
            value = int(counter.read_text())
            time.sleep(0.0005)
            counter.write_text(str(value + 1))
            lock.check()
        (gate / f"{number}-{sys.argv[5]}").touch()
    """
    gate = tmp_path / "gate"
    gate.mkdir()
    runners, rounds = 8, 50
    processes = [start(race, file, counter, gate, rounds, n) for n in range(runners)]
    for number in range(rounds):
        # a process of this machine that has ended
        leave_claim(file, pid=2**22 + 1, start=1)
        (gate / str(number)).touch()
        deadline = time.monotonic() + 30
        while len(list(gate.glob(f"{number}-*"))) < runners:
            assert time.monotonic() < deadline
            time.sleep(0.002)
    for process in processes:
        assert process.wait(10) == 0
    assert int(counter.read_text()) == runners * rounds
    assert list_claims(file) == []


def test_processes_take_turns(file: Path, start: Start, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    processes = [start(COUNT, file, counter, 25) for _ in range(4)]
    for process in processes:
        assert process.wait(60) == 0
    assert int(counter.read_text()) == 100


def test_the_request_limit_is_shorter_than_the_lease() -> None:
    assert locks.REQUEST_S < locks.LEASE_S / 2
    assert 2 * locks.BEAT_S < locks.LEASE_S


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are known by /proc")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def make_owner(pid: int) -> locks.Owner:
    start, _ = locks._read_process(pid)
    return replace(Owner.here(), pid=pid, start=start)


def test_a_record_comes_back_and_keeps_its_length() -> None:
    owner = Owner.here()
    assert Owner.decode(owner.encode()) == owner
    later = replace(owner, beat=123_456, seen=owner.seen + 999)
    assert Owner.decode(later.encode()) == later
    assert len(later.encode()) == len(owner.encode())
    assert owner.beaten().beat == 1
    assert owner.beaten().encode() != owner.encode()


@pytest.mark.parametrize(
    "change",
    [
        {"pid": 0},
        {"pid": None},
        {"host": "a\nb"},
        {"host": "\x1b[31m"},
        {"token": "../../x"},
        {"since": "9" * 18},
        {"start": "then"},
    ],
)
def test_a_record_that_is_not_whole_names_nobody(change: dict[str, object]) -> None:
    content = Owner.here().encode()
    assert Owner.decode(content[:-9]) is None
    assert Owner.decode(b"") is None
    assert Owner.decode(b"[1]") is None
    assert Owner.decode(b"\xff\xfe") is None
    assert Owner.decode(json.dumps(json.loads(content) | change).encode()) is None


def test_the_sentence_names_process_host_and_time() -> None:
    owner = replace(Owner.here(), host="box", pid=42, since=0)
    assert str(owner) == "process 42 on box, since 1970-01-01 00:00:00 UTC"


@on_linux
def test_a_process_runs_until_it_is_killed(child: subprocess.Popen[bytes]) -> None:
    owner = make_owner(child.pid)
    assert owner.judge() is State.RUNNING
    os.kill(child.pid, signal.SIGSTOP)
    assert owner.judge() is State.RUNNING
    os.kill(child.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while owner.judge() is not State.ENDED and time.monotonic() < deadline:
        time.sleep(0.01)
    # a zombie, for nobody has asked for its exit code
    assert Path(f"/proc/{child.pid}").exists()
    assert owner.judge() is State.ENDED
    child.wait()
    assert owner.judge() is State.ENDED


@on_linux
def test_a_number_given_out_again_is_another_process(child: subprocess.Popen[bytes]) -> None:
    owner = make_owner(child.pid)
    assert owner.start is not None
    assert replace(owner, start=owner.start - 1).judge() is State.ENDED
    assert replace(owner, start=None).judge() is State.UNKNOWN


@on_linux
@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"machine": "other"}, {"machine": ""}])
def test_nothing_is_known_of_another_machine(change: dict[str, str]) -> None:
    owner = Owner.here()
    assert owner.host == socket.gethostname()
    locks._held.add(owner.token)
    assert owner.judge() is State.RUNNING
    assert replace(owner, **change).judge() is State.UNKNOWN
    locks._held.discard(owner.token)


@on_linux
def test_of_this_process_only_what_it_holds_counts() -> None:
    owner = Owner.here()
    assert owner.judge() is State.ENDED
    locks._held.add(owner.token)
    assert owner.judge() is State.RUNNING
    locks._held.discard(owner.token)
    assert owner.judge() is State.ENDED
