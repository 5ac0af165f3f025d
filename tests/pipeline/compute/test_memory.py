"""Batches that shrink where memory is short.

Short memory gives one sentence, and whatever else goes wrong stays what it is.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.compute import memory
from pipeline.compute.memory import (
    compute_halving,
    explain_shortage,
    fit_batch,
    is_memory_short,
    measure_free,
)
from pipeline.errors import MemoryShortError, UsageError

ERRORS = [
    MemoryError(),
    np._core._exceptions._ArrayMemoryError((2**40,), np.dtype(float)),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    monkeypatch.setattr(memory, "announce", lambda **event: events.append(event))
    return events


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_every_allocator_is_understood(error: Exception) -> None:
    assert is_memory_short(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory")])
def test_no_other_error_is(error: Exception, said: list[dict[str, Any]]) -> None:
    def fail(_: object) -> None:
        raise error

    assert not is_memory_short(error)
    with pytest.raises(type(error)):
        compute_halving(fail, range(4), 4, what="things")
    assert not said


@settings(deadline=None)
@given(
    count=st.integers(0, 40),
    batch=st.integers(1, 50),
    failures=st.sets(st.integers(1, 12), max_size=4),
)
def test_the_results_do_not_depend_on_failures(count: int, batch: int, failures: set[int]) -> None:
    calls = []

    def compute(part: Sequence[int]) -> list[int]:
        calls.append(len(part))
        if len(calls) in failures and len(part) > 1:
            raise MemoryError
        return [number**2 for number in part]

    # to collect garbage takes a tenth of a second, and there is none
    with mock.patch("gc.collect"):
        parts = compute_halving(compute, range(count), batch, what="numbers")
    assert [value for part in parts for value in part] == [n**2 for n in range(count)]
    assert all(later <= earlier for earlier, later in pairwise(calls))


def test_each_halving_is_said_once(said: list[dict[str, Any]]) -> None:
    def compute(part: np.ndarray) -> np.ndarray:
        if len(part) > 2:
            raise MemoryError
        return part * 2

    parts = compute_halving(compute, np.arange(100), 16, what="windows")
    assert np.array_equal(np.concatenate(parts), 2 * np.arange(100))
    assert [event["warn"].split("with ")[1] for event in said] == [
        "8 at a time.",
        "4 at a time.",
        "2 at a time.",
    ]


def test_one_that_does_not_fit_says_what_it_needs(said: list[dict[str, Any]]) -> None:
    def compute(_: object) -> None:
        raise MemoryError("Unable to allocate 7.00 TiB")

    with pytest.raises(MemoryShortError, match=r"not even one .* 7.00 TiB, \d+ bytes are free"):
        compute_halving(compute, range(4), 4, what="windows")
    with pytest.raises(MemoryShortError, match=r"about 123 bytes needed"):
        compute_halving(compute, range(4), 4, what="windows", each=123)


def test_a_batch_fits_into_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "measure_free", lambda _: 1000)
    assert fit_batch(16, 31) == 16
    assert fit_batch(16, 32) == 8
    assert fit_batch(16, 10**9) == 1
    monkeypatch.setattr(memory, "measure_free", lambda _: None)
    assert fit_batch(16, 10**9) == 16


def write_system(root: Path, **files: str) -> None:
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_the_least_limit_counts(tmp_path: Path) -> None:
    assert measure_free(root=tmp_path) is None
    write_system(tmp_path, proc__meminfo="MemTotal: 9 kB\nMemAvailable:    8 kB\n")
    assert measure_free(root=tmp_path) == 8192
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1000\n")
    assert measure_free(root=tmp_path) == 8192
    (group / "memory.max").write_text("5000\n")
    assert measure_free(root=tmp_path) == 4000
    (group / "memory").mkdir()
    (group / "memory/memory.limit_in_bytes").write_text("900\n")
    (group / "memory/memory.usage_in_bytes").write_text("1000\n")
    assert measure_free(root=tmp_path) == 0


def test_this_machine_tells() -> None:
    free = measure_free()
    assert free is not None
    assert 0 < free < 2**60


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_real_allocator_that_fails_halves_the_batch(kind: str) -> None:
    """With an address space of 300 MB more than is used, a gigabyte goes in smaller parts."""
    allocate = {
        "numpy": "np.ones(len(part) * 2**26, np.uint8)",
        "torch": "torch.ones(len(part) * 2**26, dtype=torch.uint8).numpy()",
    }[kind]
    code = f"""
import resource, sys
import numpy as np, torch
from pathlib import Path
from pipeline.compute import memory
said = []
memory.announce = lambda **event: said.append(event["warn"])
torch.ones(9).sum()
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 300 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
assert memory.measure_free() < 301 * 2**20
parts = memory.compute_halving(
    lambda part: int({allocate}.sum()), range(16), 16, what="parts")
assert sum(parts) == 16 * 2**26, parts
assert len(said) >= 2, said
print(said[-1])
# threads of the libraries take some of it, more on a busy machine
assert 1 <= memory.fit_batch(16, 2**26) <= 2
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "memory is short" in done.stdout


def test_no_limit_is_no_limit() -> None:
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        pytest.skip("this process has a limit")
    assert memory._read_address_space(Path("/")) is None


@pytest.mark.parametrize("version", [1, 2])
def test_the_own_group_and_those_above_it_count(tmp_path: Path, version: int) -> None:
    line, mount, limit, used = {
        1: (
            "4:cpu,memory:/a/b\n0::/a\n",
            "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
        ),
        2: ("1:name=systemd:/c\n0::/a/b\n", "", "memory.max", "memory.current"),
    }[version]
    top = tmp_path / "sys/fs/cgroup" / mount
    (top / "a/b").mkdir(parents=True)
    write_system(tmp_path, proc__self__cgroup=line)
    for group, most in (("", 9000), ("a", 5000), ("a/b", 7000)):
        (top / group / limit).write_text(f"{most}\n")
        (top / group / used).write_text("1000\n")
    assert measure_free(root=tmp_path) == 4000
    (top / "a/b" / limit).write_text("3000\n")
    assert measure_free(root=tmp_path) == 2000
    (tmp_path / "proc/self/cgroup").write_text(line.replace("/a/b", "/../a"))
    assert measure_free(root=tmp_path) == 8000


@pytest.mark.parametrize(
    ("limit", "used", "cache"),
    [
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_page_cache_is_free(tmp_path: Path, limit: str, used: str, cache: str) -> None:
    top = tmp_path / "sys/fs/cgroup"
    (top / limit).parent.mkdir(parents=True)
    (top / limit).write_text("9000\n")
    (top / used).write_text("8500\n")
    assert measure_free(root=tmp_path) == 500
    (top / limit).with_name("memory.stat").write_text(f"anon 500\nactive_file 9\n{cache} 6000\n")
    assert measure_free(root=tmp_path) == 6500


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate "
                "memory: you tried to allocate 52428800 bytes. Error code 12 (Cannot allocate "
                "memory)"
            ),
            " (52428800 bytes were asked for)",
        ),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total"),
            " (20.00 MiB were asked for)",
        ),
        (
            MemoryError("Unable to allocate 1.5 GiB for an array with shape (9,)"),
            " (1.5 GiB were asked for)",
        ),
        (MemoryError(), ""),
    ],
)
def test_what_was_asked_for_is_said(error: Exception, asked: str) -> None:
    with pytest.raises(MemoryShortError) as caught, explain_shortage("em"):
        raise error
    text = str(caught.value)
    assert text.startswith(f"em: memory is short{asked}; run the command again on a machine")
    assert "smaller --size" in text
    assert "--batch-size" in text
    assert "\n" not in text


@pytest.mark.parametrize("error", [RuntimeError("shapes"), UsageError("--classes 3")])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), explain_shortage("em"):
        raise error


def test_a_function_gives_what_it_gives() -> None:
    assert explain_shortage("em")(max)(1, 2) == 2
