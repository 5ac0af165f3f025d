"""How much memory is free, batches that shrink where it is not enough, and what is said of it.

A batch is how much is computed at once, never what is computed: the functions that are given to
:func:`compute_halving` treat every item by itself, so that a smaller batch gives the same bytes.
"""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.compute.scheduler import announce
from pipeline.errors import MemoryShortError

if TYPE_CHECKING:
    import torch

R = TypeVar("R")

# what torch's allocators say where they raise no type of their own
_PHRASES = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "unable to allocate",
)
# controller as /proc/self/cgroup names it, where its groups lie, and their files: limit, use, and
# how the use is called that is page cache and given back when asked for
_CGROUPS = (
    ("", "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        *("memory", "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        "total_inactive_file",
    ),
)
# the other half is for what is allocated in between, and for other processes
_SHARE = 2


def measure_free(device: str | torch.device = "cpu", root: Path = Path("/")) -> int | None:
    """Measure how many bytes may still be allocated."""
    if str(device).startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        # what torch keeps and does not use is as good as free
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + kept)
    limits = [*_read_groups(root), _read_address_space(root)]
    with suppress(KeyError):
        limits.append(_read_numbers(root / "proc/meminfo")["MemAvailable"] * 1024)
    known = [limit for limit in limits if limit is not None]
    return max(0, min(known)) if known else None


def _read_numbers(file: Path) -> dict[str, int]:
    """Read a file of a name and a number a line; nothing where it is not there."""
    numbers = {}
    with suppress(OSError):
        for line in file.read_text().splitlines():
            name, value, *_ = [*line.split(), "", ""]
            if value.isdecimal():
                numbers[name.removesuffix(":")] = int(value)
    return numbers


def _read_groups(root: Path) -> Iterator[int | None]:
    for controller, mount, limit, used, cache in _CGROUPS:
        for group in _list_groups(root, controller):
            folder = root / mount / group
            # version 2 writes "max" where there is no limit, version 1 a number beyond all memory
            with suppress(OSError, ValueError):
                left = int((folder / limit).read_text()) - int((folder / used).read_text())
                yield left + _read_numbers(folder / "memory.stat").get(cache, 0)


def _list_groups(root: Path, controller: str) -> list[PurePosixPath]:
    """List this process's control group and those above it, relative to where they are mounted."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = [*line.split(":", 2), "", ""][:3]
            # outside the container's own part of the tree nothing can be read
            if controller in controllers.split(",") and ".." not in path.split("/"):
                own = PurePosixPath(path.lstrip("/"))
                return [own, *own.parents]
    return [PurePosixPath()]


def _read_address_space(root: Path) -> int | None:
    try:
        import resource
    except ImportError:
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    with suppress(OSError, ValueError):
        pages = int((root / "proc/self/statm").read_text().split()[0])
        return limit - pages * os.sysconf("SC_PAGE_SIZE")
    return None


def is_memory_short(error: BaseException) -> bool:
    """Whether an error says that memory could not be allocated, on the host or on a device."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    # torch.OutOfMemoryError is a RuntimeError and says so, and so does the processor's allocator
    text = str(error).lower()
    return any(phrase in text for phrase in _PHRASES)


def fit_batch(batch: int, each: int, device: str | torch.device = "cpu") -> int:
    """Halve a batch until it fits into half of what is free; 1 at least."""
    free = measure_free(device)
    while free is not None and batch > 1 and batch * each > free // _SHARE:
        batch //= 2
    return batch


def compute_halving(
    function: Callable[[Any], R],
    items: Sequence[Any] | Any,
    batch: int,
    *,
    what: str,
    each: int = 0,
    device: str | torch.device = "cpu",
) -> list[R]:
    """Apply a function to items in batches; where memory is short, in smaller ones."""
    size = fit_batch(max(1, batch), each, device) if each else max(1, batch)
    results: list[R] = []
    start = 0
    while start < len(items):
        try:
            results.append(function(items[start : start + size]))
        except (MemoryError, RuntimeError) as error:
            if not is_memory_short(error):
                raise
            reason = " ".join(str(error).split()) or "the system gave none"
            size = min(size, len(items) - start)
        else:
            start += size
            continue
        # here, where the error no longer holds the frames that hold the memory
        gc.collect()
        if str(device).startswith("cuda"):
            import torch

            torch.cuda.empty_cache()
        if size == 1:
            raise _describe(what, each, device, reason)
        size //= 2
        announce(warn=f"{what}: memory is short; going on with {size} at a time.")
    return results


def _describe(what: str, each: int, device: str | torch.device, reason: str) -> MemoryShortError:
    free = measure_free(device)
    left = "" if free is None else f", {free} bytes are free"
    need = f" (about {each} bytes needed{left})" if each else f" ({reason}{left})"
    where = "on another device" if str(device).startswith("cuda") else "with fewer --workers"
    return MemoryShortError(
        f"{what}: not even one at a time fits into the memory of {device}{need}; "
        f"free some of it, or run the command again {where}."
    )


# numpy, torch on the processor and torch on CUDA agree on these words
_ASKED = re.compile(r"allocate (\d[\d.]* ?(?:[KMGT]i?B|bytes))")


@contextmanager
def explain_shortage(what: str) -> Iterator[None]:
    """Say in one sentence that memory was short, and what to do; usable as a decorator, too."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_memory_short(error):
            raise
        found = _ASKED.search(str(error))
        asked = f" ({found[1]} were asked for)" if found else ""
        raise MemoryShortError(
            f"{what}: memory is short{asked}; run the command again on a machine or device with "
            "more, or extract with a smaller --size; a smaller --batch-size needs less, too, but "
            "changes the result."
        ) from error
