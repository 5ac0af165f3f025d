"""What this machine can do at most: bytes moved and multiply-adds, measured on one thread."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from threadpoolctl import threadpool_limits


@dataclass(frozen=True)
class Machine:
    """Measured limits of the machine.

    Attributes
    ----------
    bandwidth : float
        Bytes read or written per second by one thread that copies arrays far larger than the
        caches.
    cache_bandwidth : float
        The same for arrays that lie in the second-level cache.
    flops : float
        Floating-point operations per second (a multiply-add counts as two) of one thread in a
        large float32 matrix product.
    threads_flops : float
        The same with all threads.
    """

    bandwidth: float
    cache_bandwidth: float
    flops: float
    threads_flops: float

    def least_seconds(
        self, *, memory: float = 0.0, cache: float = 0.0, operations: float = 0.0
    ) -> float:
        """Return the least time for bytes through memory, bytes through the cache, operations."""
        return max(memory / self.bandwidth, cache / self.cache_bandwidth, operations / self.flops)


def measure_machine() -> Machine:
    """Measure the limits, the best of several tries each; takes about a second."""
    bandwidth = _copy_rate(2**26, 5)
    cache_bandwidth = _copy_rate(2**17, 2000)
    threads_flops = _multiply_rate(1024, 5)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            flops = _multiply_rate(1024, 5)
    finally:
        torch.set_num_threads(threads)
    return Machine(bandwidth, cache_bandwidth, flops, threads_flops)


def _copy_rate(size: int, tries: int) -> float:
    source, target = np.ones(size // 4, np.float32), np.empty(size // 4, np.float32)
    best = float("inf")
    for _ in range(tries):
        start = perf_counter()
        np.copyto(target, source)
        best = min(best, perf_counter() - start)
    return 2 * size / best


def _multiply_rate(side: int, tries: int) -> float:
    first, second = torch.rand(side, side), torch.rand(side, side)
    best = float("inf")
    for _ in range(tries):
        start = perf_counter()
        first @ second
        best = min(best, perf_counter() - start)
    return 2 * side**3 / best
