"""A warm process that forks one child per command: thousands of kills in minutes.

The imports of a stage take seconds, a stage of six tiny images a tenth of one. The server imports
everything once and computes nothing itself, so that no thread, pool or lock is there to be copied;
every command runs in a fresh child of its own, in a session of its own, and is really killed.

Requests and answers are lines of JSON on standard input and output (see :class:`Server`).
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.compute.signals import leave_at_once

LIMIT_S = 120.0
_HELD = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes
    ----------
    code
        Its exit code; the negative number of the signal that ended it.
    seconds
        How long it ran.
    output, errors
        What it wrote to standard output and standard error.
    orphans
        Processes of its session that were left, by their command line.
    points
        Write boundaries that were counted.
    hung
        It had to be killed at the time limit.
    """

    code: int
    seconds: float
    output: str
    errors: str
    orphans: list[str] = field(default_factory=list)
    points: int = 0
    hung: bool = False

    @property
    def said(self) -> str:
        """Everything that it wrote."""
        return self.output + self.errors


class Server:
    """A client of one warm process; a context manager.

    Parameters
    ----------
    folder
        Where the children run, and where what they write is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
            "COLUMNS": "200",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.torture.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            env=environment,
            text=True,
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)

    def call(
        self,
        arguments: Sequence[object],
        *,
        faults: dict[str, Any] | None = None,
        signals: Sequence[tuple[float, int, str]] = (),
        limits: dict[str, int] | None = None,
        uid: int | None = None,
        environment: dict[str, str] | None = None,
        before: str = "",
        learn: bool = False,
        limit_s: float = LIMIT_S,
    ) -> Outcome:
        """Run the command line in a child.

        Parameters
        ----------
        arguments
            Of ``primaps-pipe``.
        faults
            Arguments of :class:`tests.torture.faults.Faults`.
        signals
            When (seconds from the start), which signal, and whether to the ``process`` alone or to
            its ``group``.
        limits
            Resource limits by name (``FSIZE``, ``AS``), bytes; of ``AS``, on top of what is used.
        uid
            User to become.
        environment
            Variables to set.
        before
            ``module:function`` that the child calls before anything else.
        learn
            Import into the server what the child imported, for the children to come.
        limit_s
            The child is killed then.
        """
        request = {
            "arguments": [str(argument) for argument in arguments],
            "faults": faults,
            "signals": sorted(signals),
            "limits": limits or {},
            "uid": uid,
            "environment": environment or {},
            "before": before,
            "learn": learn,
            "limit_s": limit_s,
        }
        assert self.process.stdin is not None and self.process.stdout is not None
        with self.lock:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError("the fork server has ended")
        return Outcome(**json.loads(answer))


def _serve() -> None:
    for line in sys.stdin:
        answer = _run(json.loads(line))
        print(json.dumps(answer), flush=True)


def _run(request: dict[str, Any]) -> dict[str, Any]:
    files = {
        name: Path(f".{name}").absolute() for name in ("output", "errors", "points", "modules")
    }
    for path in files.values():
        path.unlink(missing_ok=True)
        path.touch()
        path.chmod(0o666)
    # one that came before the child is itself would say nothing
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            code = _be_child(request, files)
        except BaseException:
            traceback.print_exc()
            code = 70
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
    code, hung = _attend(child, request, start)
    seconds = time.monotonic() - start
    orphans = list_session(child)
    for number in orphans:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    if request["learn"]:
        _learn(files["modules"].read_text().split())
    points = files["points"].read_text()
    return {
        "code": code,
        "seconds": round(seconds, 3),
        "output": files["output"].read_text(errors="replace"),
        "errors": files["errors"].read_text(errors="replace"),
        "orphans": list(orphans.values()),
        "points": int(points) if points else 0,
        "hung": hung,
    }


def _be_child(request: dict[str, Any], files: dict[str, Path]) -> int:
    os.setsid()
    for number, source, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, files["output"], os.O_WRONLY | os.O_APPEND),
        (2, files["errors"], os.O_WRONLY | os.O_APPEND),
    ):
        descriptor = os.open(source, flags)
        os.dup2(descriptor, number)
        os.close(descriptor)
    # as the program does while it is being loaded
    leave_at_once()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
    os.environ.update(request["environment"])
    if request["before"]:
        module, _, name = request["before"].partition(":")
        getattr(importlib.import_module(module), name)()
    for name, amount in request["limits"].items():
        base = _measure_address_space() if name == "AS" else 0
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (base + amount, base + amount))
    if request["uid"] is not None:
        os.setgroups([])
        os.setgid(request["uid"])
        os.setuid(request["uid"])
    faults = None
    if request["faults"] is not None:
        from tests.torture.faults import Faults

        given = dict(request["faults"])
        if "code" in given:
            given["code"] = getattr(errno, given["code"])
        faults = Faults(**given).install()

    from cli import main

    sys.argv = ["primaps-pipe", *request["arguments"]]
    code: Any = 0
    try:
        main(request["arguments"], prog_name="primaps-pipe")
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    if faults is not None:
        faults.mode = "count" if faults.mode == "error" else faults.mode
        faults.point("exit", faults.root)
        files["points"].write_text(str(faults.count))
    if request["learn"]:
        files["modules"].write_text("\n".join(sys.modules))
    return int(code or 0)


def _attend(child: int, request: dict[str, Any], start: float) -> tuple[int, bool]:
    """Send the signals when they are due, and wait."""
    hung = False
    due = [*request["signals"], (request["limit_s"], signal.SIGKILL, "group")]
    descriptor = os.pidfd_open(child)
    try:
        for when, number, whom in due:
            wait = max(0.0, start + when - time.monotonic())
            if select.select([descriptor], [], [], wait)[0]:
                break
            hung = when == request["limit_s"]
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if whom == "group" else os.kill)(child, number)
    finally:
        os.close(descriptor)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), hung


def list_session(session: int, patience_s: float = 5.0) -> dict[int, str]:
    """List the processes that are left of a session, which may take a moment to end."""
    limit = time.monotonic() + patience_s
    while True:
        found = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            with contextlib.suppress(OSError, IndexError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(folder.name)] = command.decode(errors="replace")
        if not found or time.monotonic() > limit:
            return found
        time.sleep(0.05)


def _measure_address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _learn(names: Sequence[str]) -> None:
    """Import what a child has imported; nothing of it computes before it is called."""
    for name in names:
        if name not in sys.modules and name != "__main__":
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    if threading.active_count() > 1:
        raise RuntimeError(f"an import has started threads: {threading.enumerate()}")


if __name__ == "__main__":
    _serve()
