"""The stages on a store that fails: the same bytes, or one sentence and a run that goes on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from pipeline.storage.locks import LEASE_S
from tests.end_to_end.conftest import FAST_EM, invoke, write_scenes
from tests.object_store.flaky import FlakyProxy
from tests.object_store.test_run import Bucket, artefacts, read_tree

__all__ = ["invoke"]

Invoke = Callable[..., Result]
# seconds after which the client gives a request up, and what a hanging one takes
TIMEOUT_S, HANG_S = 0.6, 1.0
SMALL = ("--backbone", "handcrafted", "--size", 64, "--shard-size", 4, "--no-progress")
# the shares of the requests that fail, by how the store behaves
WEATHERS = {
    "errors": {"error": 0.08, "slowdown": 0.08, "applied": 0.06},
    "connections": {"lost": 0.08, "cut": 0.08, "drip": 0.03},
    "time-outs": {"hang": 0.015, "late": 0.015, "drip": 0.02, "error": 0.03},
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scenes with labels: two shards."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 4, width=100, height=80)
    return folder


def list_commands(run: object, root: object) -> list[tuple[object, ...]]:
    """Return the four commands on the scenes below a root."""
    source = ("--dataset", "folder", "--root", f"{root}/photographs", "--labels", f"{root}/labels")
    return [
        ("extract", run, *source, *SMALL),
        ("masks", run, "--no-progress"),
        ("em", run, "--classes", 3, *FAST_EM, "--no-progress"),
        ("evaluate", run, "--no-progress"),
    ]


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, invoke: Invoke, scenes: Path
) -> dict[str, bytes]:
    """The artefacts of a run on disk."""
    run = tmp_path_factory.mktemp("runs") / "run"
    for command in list_commands(run, scenes):
        invoke(*command)
    return artefacts(read_tree(run))


@pytest.fixture
def store(bucket: str, object_store: str, scenes: Path) -> Bucket:
    """A bucket that holds the scenes, asked past the proxy."""
    import boto3

    store = Bucket(bucket.removeprefix("s3://"), boto3.client("s3", endpoint_url=object_store))
    for path in sorted(scenes.rglob("*.png")):
        store.put(f"data/{path.relative_to(scenes).as_posix()}", path.read_bytes())
    return store


@pytest.fixture
def failing(flaky: FlakyProxy, monkeypatch: pytest.MonkeyPatch) -> FlakyProxy:
    """The way to the store, and a client that gives a request up soon and asks again soon."""
    from botocore.retries.standard import ExponentialBackoff

    monkeypatch.setenv("PRIMAPS_S3_TIMEOUT", str(TIMEOUT_S))
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: 0.02)
    flaky.hang_s = HANG_S
    flaky.drip_s = 0.3
    return flaky


def is_one_sentence(result: Result) -> bool:
    """Whether a command ended with exit code 1 and nothing but a message at its end."""
    last = result.output.rstrip("\n").rpartition("\n")[2]
    return (
        result.exit_code == 1
        and isinstance(result.exception, SystemExit)
        and "Traceback" not in result.output
        and re.match(r"(Error: )?\S.*\.$", last) is not None
    )


def call_until_done(invoke: Invoke, command: tuple[object, ...], most: int) -> int:
    """Call a command again until it has ended well; return how often it was called."""
    for number in range(1, most + 1):
        result = invoke(*command, code=None)
        if result.exit_code == 0:
            return number
        assert is_one_sentence(result), result.output
    raise AssertionError(f"still not done after {most} calls: {result.output}")


@pytest.mark.parametrize(
    "weather",
    [
        "errors",
        pytest.param("connections", marks=pytest.mark.slow),
        pytest.param("time-outs", marks=pytest.mark.slow),
    ],
)
def test_a_run_through_faults_ends_with_the_same_bytes(
    invoke: Invoke,
    undisturbed: dict[str, bytes],
    store: Bucket,
    failing: FlakyProxy,
    weather: str,
) -> None:
    failing.fail(WEATHERS[weather], seed=1)
    for command in list_commands(f"{store.url}/run", f"{store.url}/data"):
        call_until_done(invoke, command, 4)
    failing.calm()
    ours = store.read("run")
    assert not [name for name in ours if "/locks/" in name]
    assert artefacts(ours).keys() == undisturbed.keys()
    assert [name for name, content in artefacts(ours).items() if content != undisturbed[name]] == []
    assert failing.total > 10
    assert set(failing.injected) == set(WEATHERS[weather])


@pytest.mark.parametrize("fault", ["error", pytest.param("lost", marks=pytest.mark.slow)])
def test_a_store_that_goes_down_stops_the_run_with_one_sentence_and_it_goes_on(
    invoke: Invoke,
    undisturbed: dict[str, bytes],
    store: Bucket,
    failing: FlakyProxy,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    """Each stage loses its store in the middle, for good; the next call finds it again."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    failing.patience = 10**6
    calls: Counter[str] = Counter()
    for command in list_commands(f"{store.url}/run", f"{store.url}/data"):
        sound = sum(failing.requests.values())
        healthy = 30 if command[0] != "em" else 12
        left = [healthy]

        def concerns(method: str, path: str, left: list[int] = left) -> bool:
            left[0] -= 1
            return left[0] < 0

        failing.fail({fault: 1.0}, concerns=concerns)
        result = invoke(*command, code=None)
        assert is_one_sentence(result), result.output
        failing.calm()
        assert sum(failing.requests.values()) > sound + healthy
        calls[str(command[0])] = call_until_done(invoke, command, 1)
    ours = artefacts(store.read("run"))
    assert ours.keys() == undisturbed.keys()
    assert [name for name, content in ours.items() if content != undisturbed[name]] == []


def test_finished_shards_are_not_computed_again_after_an_outage(
    invoke: Invoke, store: Bucket, failing: FlakyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    failing.patience = 10**6
    command = list_commands(f"{store.url}/run", f"{store.url}/data")[0]
    recorded: set[str] = set()

    def concerns(method: str, path: str) -> bool:
        down = bool(recorded)
        if method == "PUT" and path.endswith("/state/extract/shards/000000.json"):
            recorded.add(path)
        return down

    failing.fail({"error": 1.0}, concerns=concerns)
    assert is_one_sentence(invoke(*command, code=None))
    failing.calm()
    assert recorded
    assert "extract: 1 of 2 shards to compute" in invoke(*command).output


def test_a_second_writer_is_refused_until_the_first_is_killed(
    invoke: Invoke, undisturbed: dict[str, bytes], store: Bucket, failing: FlakyProxy
) -> None:
    failing.hang_s = 60.0
    command = list_commands(f"{store.url}/run", f"{store.url}/data")[0]
    stuck = threading.Event()

    def concerns(method: str, path: str) -> bool:
        # its first shard is written, and the record of it never gets through
        if method == "PUT" and path.endswith("/state/extract/shards/000000.json"):
            stuck.set()
        return method == "PUT" and stuck.is_set() and "/locks/" not in path

    failing.fail({"hang": 1.0}, concerns=concerns)
    # a time-out of its own: this process is to hang for as long as it lives
    first = subprocess.Popen(
        [sys.executable, "-m", "cli", *map(str, command)],
        env=os.environ | {"PRIMAPS_S3_TIMEOUT": "60"},
        stderr=subprocess.DEVNULL,
    )
    try:
        assert stuck.wait(60)
        refused = invoke(*command, code=1)
        assert is_one_sentence(refused)
        assert f"is computing extract in {store.url}/run: process {first.pid} on " in refused.output
    finally:
        first.kill()
        first.wait()
    failing.calm()
    begun = time.monotonic()
    invoke(*command)
    # no lease is waited for, since the process is known to have ended
    assert time.monotonic() - begun < LEASE_S / 2
    features = {name: c for name, c in undisturbed.items() if name.startswith("features.zarr/")}
    ours = store.read("run")
    assert [name for name, content in features.items() if ours[name] != content] == []
    assert not [name for name in ours if "/locks/" in name]
