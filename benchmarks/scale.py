"""The four stages here, in processes, on a dask cluster, and in an object store: time and bytes.

    python -m benchmarks.scale            prints the table of docs/scale.md
    python -m benchmarks.scale --write    and puts it there

Every cell is a command of its own, start-up included. The object store is moto's S3 server on
loopback (``pip install 'moto[server]'``), so what is seen of it is our requests, not a network.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
from PIL import Image

from benchmarks.quality import replace_table
from benchmarks.samples import PHOTOGRAPHS

STAGES = ("extract", "masks", "em", "evaluate")
SIDE, SHARD = 320, 16
_PAGE = Path(__file__).parent.parent / "docs" / "scale.md"
_KEY = "benchmark"


def write_photographs(folder: Path, count: int) -> None:
    """Write windows cut at random out of the sample photographs."""
    sources = []
    for path in PHOTOGRAPHS.values():
        with Image.open(path) as photograph:
            sources.append(photograph.convert("RGB"))
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        source = sources[number % len(sources)]
        side = int(min(source.size) * generator.uniform(0.6, 1))
        left, top = (int(generator.integers(0, length - side + 1)) for length in source.size)
        window = source.crop((left, top, left + side, top + side)).resize((SIDE, SIDE))
        window.save(folder / f"{number:04}.jpg", quality=92)


@contextmanager
def run_cluster(workers: int) -> Iterator[str]:
    """Run a dask scheduler and its workers as processes of their own; give the address."""
    port = find_port()
    dask = [sys.executable, "-m", "dask"]
    address = f"tcp://127.0.0.1:{port}"
    commands = [[*dask, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]]
    worker = ["worker", address, "--nthreads", "1", "--no-dashboard"]
    commands += [[*dask, *worker] for _ in range(workers)]
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}
    with ExitStack() as stack:
        for command in commands:
            stack.enter_context(run_beside(command, environment))
            wait_for(port)
        yield address


@contextmanager
def run_store(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Run an S3 server; give a prefix in it and the environment that finds it."""
    port = find_port()
    environment = os.environ | {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": _KEY,
        "AWS_SECRET_ACCESS_KEY": _KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with run_beside(server, environment):
        wait_for(port)
        make = "import boto3, sys; boto3.client('s3').create_bucket(Bucket=sys.argv[1])"
        subprocess.run([sys.executable, "-c", make, _KEY], env=environment, check=True)
        yield f"s3://{_KEY}", environment


@contextmanager
def run_beside(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    """Run a command in the background."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def find_port() -> int:
    """Find a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    """Wait until somebody listens.

    Raises
    ------
    click.ClickException
        Nobody does for half a minute.
    """
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise click.ClickException(f"no server answers on port {port}.")


def time_stages(
    run: str, root: Path, options: list[str], environment: dict[str, str]
) -> list[float]:
    """Run the four stages; return the seconds that each command took."""
    own = {
        "extract": [
            *("--dataset", "folder", "--root", str(root), "--backbone", "handcrafted"),
            *("--size", str(SIDE), "--shard-size", str(SHARD)),
        ],
        "em": ["--classes", "12", "--epochs", "20", "--init-steps", "50"],
    }
    seconds = []
    for stage in STAGES:
        command = [sys.executable, "-m", "cli", stage, run, *own.get(stage, []), *options]
        start = time.perf_counter()
        done = subprocess.run(
            [*command, "--no-progress"], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise click.ClickException(f"{stage} on {run} failed: {done.stderr.strip()}")
        seconds.append(time.perf_counter() - start)
    return seconds


def hash_labels(folder: Path) -> str:
    """Return a digest of all label maps and prototypes below a run directory."""
    digest = hashlib.blake2b()
    for part in ("labels", "em.zarr", "masks.zarr", "features.zarr"):
        for path in sorted((folder / part).rglob("*")):
            if path.is_file():
                digest.update(path.relative_to(folder).as_posix().encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def fetch(prefix: str, target: Path, environment: dict[str, str]) -> None:
    """Copy a run out of the object store."""
    code = "import s3fs, sys; s3fs.S3FileSystem().get(sys.argv[1], sys.argv[2], recursive=True)"
    subprocess.run([sys.executable, "-c", code, prefix, str(target)], env=environment, check=True)


def tabulate(rows: dict[str, list[float]]) -> str:
    """Lay the seconds out as a Markdown table."""
    lines = [f"| where | {', s | '.join(STAGES)}, s |", "|---|" + "---|" * len(STAGES)]
    for name, seconds in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{value:.1f}" for value in seconds) + " |")
    return "\n".join(lines)


@click.command()
@click.option("--images", default=96, show_default=True)
@click.option("--workers", default=2, show_default=True)
@click.option("--write", is_flag=True, help="put the table into docs/scale.md")
def main(images: int, workers: int, write: bool) -> None:
    """Time the stages in four places, and compare the bytes."""
    rows: dict[str, list[float]] = {}
    here = dict(os.environ)
    with TemporaryDirectory() as temporary:
        root = Path(temporary, "photographs")
        write_photographs(root, images)
        # compiled loops are compiled once
        time_stages(str(Path(temporary, "warm")), root, [], here)
        shutil.rmtree(Path(temporary, "warm"))
        digests = {}
        for name, options in (("this process", []), ("--workers", ["--workers", str(workers)])):
            run = Path(temporary, "run")
            rows[f"{name} {workers}" if options else name] = time_stages(
                str(run), root, options, here
            )
            digests[name] = hash_labels(run)
            shutil.rmtree(run)
        with run_cluster(workers) as address:
            name = f"--scheduler, {workers} workers"
            rows[name] = time_stages(str(run), root, ["--scheduler", address], here)
            digests[name] = hash_labels(run)
            shutil.rmtree(run)
        with run_store(Path(temporary)) as (prefix, environment):
            name = "this process, RUN in S3 on loopback"
            rows[name] = time_stages(f"{prefix}/run", root, [], environment)
            fetch(f"{prefix}/run", run, environment)
            digests[name] = hash_labels(run)
    table = tabulate(rows)
    click.echo(table)
    if len(set(digests.values())) != 1:
        raise click.ClickException(f"the bytes differ: {digests}")
    click.echo(f"{images} images: the same bytes in all places")
    if write:
        replace_table(_PAGE, table)


if __name__ == "__main__":
    main()
