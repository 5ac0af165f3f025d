"""Clusters of worker processes: made here, or somebody else's; and how long to wait for them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.compute.devices import resolve_device
from pipeline.compute.signals import defer_signals
from pipeline.errors import RunError, UsageError, WorkerLostError

if TYPE_CHECKING:
    from distributed import Client, Future

Tell = Callable[[dict[str, Any]], None]

CONNECT_S = 5.0
# How often a cluster is asked whether it has workers, while nothing else happens.
LOOK_S = 5.0
# A queue of jobs may take long to start workers; after so long nobody is coming.
WORKERLESS_S = 900.0
# Dead processes of our own are replaced within seconds, but for one that dies while it starts.
RENEW_S = 20.0
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


@contextmanager
def open_local(workers: int, device: str, *, failures: int) -> Iterator[Client]:
    """Start worker processes on this machine; they end with this process, however it ends."""
    import dask
    from distributed import Client

    threads = str(share_cores(workers))
    config: dict[str, Any] = {
        **{f"distributed.nanny.pre-spawn-environ.{name}": threads for name in _THREADS},
        "distributed.scheduler.allowed-failures": failures,
    }
    with ExitStack() as stack:
        # a nanny puts what its worker is told into the environment of this process, too
        stack.enter_context(_keep_environment(_THREADS))
        stack.enter_context(dask.config.set(config))
        # half started, a cluster cannot be stopped
        with defer_signals():
            cluster = stack.enter_context(_make_cluster(workers, device))
            client = stack.enter_context(Client(cluster))
        yield client


@contextmanager
def _keep_environment(names: Sequence[str]) -> Iterator[None]:
    """Put some environment variables back as they were."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _make_cluster(workers: int, device: str) -> Any:
    common = {
        "threads_per_worker": 1,
        # any port: another command may have the usual one
        "dashboard_address": "127.0.0.1:0",
        "silence_logs": "CRITICAL",
    }
    gpus = choose_gpus(workers, device)
    if gpus:
        return _load_cuda_cluster()(CUDA_VISIBLE_DEVICES=gpus, **common)
    from distributed import LocalCluster

    return LocalCluster(n_workers=workers, processes=True, memory_limit=0, **common)


def choose_gpus(workers: int, device: str) -> list[int]:
    """Choose one GPU for every worker; none where the work runs on the processor."""
    if resolve_device(device).type != "cuda":
        return []
    if ":" in device:
        raise UsageError(
            f"--device {device} names one GPU, and --workers gives every worker one of its own; "
            "use --device cuda."
        )
    import torch

    gpus = torch.cuda.device_count()
    if workers > gpus:
        raise UsageError(
            f"--workers {workers}: this machine has {gpus} GPU{'s' * (gpus != 1)}, one per worker; "
            f"use --workers {gpus}, or --device cpu."
        )
    return list(range(workers))


def _load_cuda_cluster() -> Any:
    try:
        from dask_cuda import LocalCUDACluster
    except ImportError:
        raise UsageError(
            "--workers on GPUs needs dask-cuda; install `primaps-pipe[cuda]`, use --device cpu, "
            "or leave --workers out."
        ) from None
    return LocalCUDACluster


@contextmanager
def open_remote(address: str) -> Iterator[Client]:
    """Connect to a running scheduler."""
    from distributed import Client

    _check_scheduler(address)
    with Client(address) as client:
        yield client


def _check_scheduler(address: str) -> None:
    """Knock first: a `Client` that never connected holds the process up for long at its end."""
    import asyncio

    from distributed.comm import connect
    from distributed.security import Security

    async def knock() -> None:
        arguments = Security().get_connection_args("client")
        comm = await connect(address, timeout=CONNECT_S, **arguments)
        await comm.close()

    try:
        asyncio.run(knock())
    except (OSError, TimeoutError, ValueError) as error:
        raise UsageError(
            f"no dask scheduler answers at {address} ({error}); "
            "start one with `dask scheduler`, or use --workers."
        ) from error


def share_cores(workers: int) -> int:
    """Return how many threads each of so many processes may use on this machine."""
    from dask.system import CPU_COUNT

    own = max(1, CPU_COUNT // max(workers, 1))
    told = os.environ.get("OMP_NUM_THREADS", "")
    return min(own, int(told)) if told.isdigit() and int(told) else own


def count_neighbours(client: Client) -> dict[str, int]:
    """Count the tasks that all workers of each host compute at once, by the host's address."""
    crowd: dict[str, int] = {}
    for worker in client.scheduler_info(n_workers=-1)["workers"].values():
        crowd[worker["host"]] = crowd.get(worker["host"], 0) + worker["nthreads"]
    return crowd


def limit_threads(crowd: Mapping[str, int]) -> None:
    """Limit the numerical libraries of a worker to its share of the host's cores; called there.

    A worker that was told its share in ``OMP_NUM_THREADS``, as those started here and by ``dask
    worker`` are, keeps to it.
    """
    told = os.environ.get("OMP_NUM_THREADS", "")
    if not (told.isdigit() and int(told)):
        from distributed import get_worker
        from threadpoolctl import threadpool_limits

        worker = get_worker()
        host = worker.address.partition("://")[2].rpartition(":")[0]
        told = str(share_cores(max(crowd.get(host, 0), worker.state.nthreads)))
        os.environ.update(dict.fromkeys(_THREADS, told))
        # too late for the environment alone: the libraries are loaded
        threadpool_limits(int(told))
    torch = sys.modules.get("torch")
    if torch is not None:
        # every thread has a limit of its own
        torch.set_num_threads(int(told))


class Patience:
    """Notices that a cluster has had no worker for too long."""

    def __init__(self, client: Client, tell: Tell) -> None:
        self._client, self._tell = client, tell
        self._looked = self._seen = time.monotonic()
        self._told = False

    def look(self) -> None:
        """Ask for the workers, where that was not done a moment ago."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        if self._client.nthreads():
            self._seen, self._told = now, False
            return
        if self._client.cluster is not None:
            self._renew(self._client.cluster, now)
            return
        address = getattr(self._client.scheduler, "address", "?")
        if not self._told:
            self._tell({"warn": f"the dask scheduler at {address} has no workers; waiting."})
            self._told = True
        if now - self._seen > WORKERLESS_S:
            raise RunError(
                f"the dask scheduler at {address} has had no worker for "
                f"{WORKERLESS_S / 60:g} minutes; start some with `dask worker {address}`, and run "
                "the command again to go on."
            )

    def _renew(self, cluster: Any, now: float) -> None:
        if now - self._seen > RENEW_S:
            workers = len(cluster.worker_spec)
            cluster.scale(0)
            cluster.scale(workers)
            self._seen = now


def compute_each(
    client: Client, submit: Callable[[int], Future], calls: int, tell: Tell
) -> Iterator[tuple[int, Future]]:
    """Submit calls, no more of them at once than there are threads, and give them as they end.

    A call that waits in a worker's queue would be lost, and blamed, with that worker.
    """
    from distributed import as_completed

    ends = as_completed()
    patience = Patience(client, tell)
    indices: dict[Any, int] = {}
    following = 0
    while following < calls or not ends.is_empty():
        if following < calls and len(indices) < max(1, sum(client.nthreads().values())):
            future = submit(following)
            indices[future.key] = following
            ends.add(future)
            following += 1
        elif ends.has_ready():
            future = next(ends)
            check_connection(future)
            yield indices.pop(future.key), future
        else:
            time.sleep(0.01)
            patience.look()


def await_all(client: Client, futures: Sequence[Future], tell: Tell) -> None:
    """Wait until futures have ended, however they end."""
    from distributed import wait

    patience = Patience(client, tell)
    left = list(futures)
    while left:
        try:
            wait(left, timeout=LOOK_S)
        except TimeoutError:
            patience.look()
        # what ended at a worker that died since is being computed again
        left = [future for future in left if future.status in ("pending", "lost")]
    for future in futures:
        check_connection(future)


def check_connection(future: Future) -> None:
    """Refuse a future that nobody is computing any more."""
    if future.status == "cancelled":
        raise RunError(
            "the connection to the dask scheduler is lost; run the command again to go on."
        )


def describe_loss(what: str, error: Any) -> WorkerLostError:
    """Turn the ``KilledWorker`` of a task that was computed again alone into a sentence."""
    times = "twice" if error.allowed_failures == 0 else f"{error.allowed_failures + 2} times"
    return WorkerLostError(
        f"the worker process that computed {what} was killed {times}, the last time with nothing "
        "else to do (out of memory?); give it more memory, or smaller batches or images, and run "
        "the command again."
    )
