"""How features and masks are best stored: chunks and codecs, written and read in the run's ways.

Run as ``python -m benchmarks.storage [--json FILE]``. Rates are bytes of the values per second, the
files in the page cache; each is the best of several runs, and every reading is set beside a
``numpy.memmap`` of the same values, copied into memory, in turn with it. The checksums were checked
before: a process does so at its first reading of a file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
import zarr
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec, ZstdCodec

from benchmarks.comparison import race
from benchmarks.masks import METHOD, draw_features
from benchmarks.samples import GRID, PHOTOGRAPHS
from pipeline.run.frames import BatchStream
from pipeline.storage.arrays import read_rows
from stages.masks.proposals import propose_masks, score_proposals

SHARD = 64
SHARDS = 4
SIZE = 322
CHUNKS = (1, 8, 16, SHARD)
CODECS: dict[str, list[Any]] = {
    "none": [],
    "zstd 3": [ZstdCodec(level=3)],
    "blosc lz4, bytes": [BloscCodec(cname="lz4", clevel=5, shuffle=BloscShuffle.shuffle)],
    "blosc lz4hc, bytes": [BloscCodec(cname="lz4hc", clevel=5, shuffle=BloscShuffle.shuffle)],
    "blosc zstd, bytes": [BloscCodec(cname="zstd", clevel=3, shuffle=BloscShuffle.shuffle)],
    "blosc zstd, bits": [BloscCodec(cname="zstd", clevel=3, shuffle=BloscShuffle.bitshuffle)],
}
# Windows that are read one by one, all over the array.
PICKED = tuple(37 * index % (SHARD * SHARDS) for index in range(16))


@dataclass(frozen=True)
class Measurement:
    """How one layout did.

    Attributes
    ----------
    array, codec : str
        What was stored, and how it was compressed.
    chunk : int
        Windows per chunk.
    size : float
        Bytes on disk over bytes of the values.
    write : float
        Bytes per second of one shard, until the disk has it.
    read, stream, plain : float
        Bytes per second: whole shards by ``read_rows``; the batches of a shuffled epoch of the EM;
        whole shards by zarr alone.
    read_share, stream_share : float
        The first two over the rate of ``numpy.memmap`` in the same task: the rows of whole shards
        copied into memory, and the same shuffled batches.
    window : float
        Seconds to read one window.
    """

    array: str
    codec: str
    chunk: int
    size: float
    write: float
    read: float
    stream: float
    plain: float
    read_share: float
    stream_share: float
    window: float


def draw_arrays() -> dict[str, NDArray[Any]]:
    """Make features and proposal ids of all photographs, again and again in turned copies.

    Returns
    -------
    dict
        ``features``: float16 [window, row, column, channel]; ``proposals``: uint8 [window, y, x].
    """
    features: list[NDArray[Any]] = []
    ids: list[NDArray[Any]] = []
    for name in PHOTOGRAPHS:
        grid = draw_features(name, GRID)
        scores = score_proposals(propose_masks(grid[None], **METHOD), gain=10)
        large = F.interpolate(scores, (SIZE, SIZE), mode="bilinear", align_corners=False)
        labels = large.argmax(dim=1)[0].to(torch.uint8)
        for turn in range(8):
            # four turns of the photograph and of its mirror image
            noise = torch.randn(grid.shape, generator=torch.Generator().manual_seed(len(features)))
            # no two windows share a feature to the bit, which some codecs would find
            features.append((_turn(grid, turn) + 0.05 * noise).half().numpy())
            ids.append(_turn(labels, turn).numpy())
    windows = np.arange(SHARD * SHARDS) % len(features)
    return {"features": np.stack(features)[windows], "proposals": np.stack(ids)[windows]}


def _turn(grid: torch.Tensor, turn: int) -> torch.Tensor:
    return torch.rot90(grid.flip(1) if turn >= 4 else grid, turn % 4)


def measure_layouts(folder: Path, repeats: int) -> Iterator[Measurement]:
    """Write and read both arrays in every layout, one after the other.

    Parameters
    ----------
    folder : Path
        An empty one.
    repeats : int
        Runs of each kind; the best counts.

    Yields
    ------
    Measurement
    """
    for name, values in draw_arrays().items():
        file = folder / "plain"
        values.tofile(file)
        plain = np.memmap(file, values.dtype, "r", shape=values.shape)
        for codec, compressors in CODECS.items():
            for chunk in CHUNKS:
                array = _create(folder / f"{name}-{codec}-{chunk}", values, chunk, compressors)
                write = _best(partial(_write_shard, array, values), repeats)
                array[:] = values
                assert np.array_equal(read_rows(array, 0, len(values)), values)
                read, memory, _, _ = race(
                    partial(_read_shards, partial(read_rows, array)),
                    partial(_read_shards, partial(_copy_rows, plain)),
                    repeats,
                )
                stream, gather, _, _ = race(
                    partial(_read_epoch, array), partial(_read_epoch, plain), repeats
                )
                whole = _best(partial(_read_shards, partial(_slice, array)), repeats)
                window = _best(partial(_read_windows, array), repeats) / len(PICKED)
                stored = sum(each.stat().st_size for each in _files(array))
                yield Measurement(
                    array=name,
                    codec=codec,
                    chunk=chunk,
                    size=stored / values.nbytes,
                    write=values[:SHARD].nbytes / write,
                    read=values.nbytes / read,
                    stream=values.nbytes / stream,
                    plain=values.nbytes / whole,
                    read_share=memory / read,
                    stream_share=gather / stream,
                    window=window,
                )


def _create(path: Path, values: NDArray[Any], chunk: int, compressors: list[Any]) -> zarr.Array:
    return zarr.create_array(
        path,
        shape=values.shape,
        chunks=(chunk, *values.shape[1:]),
        shards=(SHARD, *values.shape[1:]),
        dtype=values.dtype,
        compressors=[*compressors, Crc32cCodec()],
    )


def _files(array: zarr.Array) -> list[Path]:
    folder = Path(str(array.store_path).removeprefix("file://")) / "c"
    return [path for path in folder.rglob("*") if path.is_file()]


def _write_shard(array: zarr.Array, values: NDArray[Any]) -> None:
    for path in _files(array):
        path.unlink()
    array[:SHARD] = values[:SHARD]
    with _files(array)[0].open("rb") as file:
        os.fsync(file.fileno())


def _read_shards(read: Callable[[int, int], NDArray[Any]]) -> None:
    for shard in range(SHARDS):
        read(shard * SHARD, (shard + 1) * SHARD)


def _slice(array: zarr.Array, start: int, stop: int) -> NDArray[Any]:
    return np.asarray(array[start:stop])


def _copy_rows(plain: NDArray[Any], start: int, stop: int) -> NDArray[Any]:
    return np.array(plain[start:stop])


def _read_windows(array: zarr.Array) -> None:
    for window in PICKED:
        read_rows(array, window, window + 1)


def _read_epoch(array: Any) -> None:
    # the same batches in the same way: a map of the file is read by slicing, as an array is
    stream = BatchStream({"values": array}, np.arange(array.shape[0]), batch=32)
    for batch in stream.read_epoch(0):
        assert len(batch.windows)


def _best(function: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = perf_counter()
        function()
        times.append(perf_counter() - start)
    return min(times)


@click.command()
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(1), help="Best of N.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write all figures here.")
def main(repeats: int, target: Path | None) -> None:
    """Write and read the arrays of a run in many layouts, and print what each costs."""
    with TemporaryDirectory() as folder:
        measurements = list(measure_layouts(Path(folder), repeats))
    table = Table(title=f"shards of {SHARD} windows; GB/s, and share of numpy.memmap's rate")
    headings = (
        "",
        "codec",
        "windows\na chunk",
        "size, %",
        "write",
        "read",
        "of memmap\n%",
        "EM epoch",
        "of memmap\n%",
        "zarr alone",
        "one window\nms",
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for each in measurements:
        table.add_row(
            each.array,
            each.codec,
            str(each.chunk),
            f"{100 * each.size:.1f}",
            f"{each.write / 1e9:.2f}",
            f"{each.read / 1e9:.2f}",
            f"{100 * each.read_share:.0f}",
            f"{each.stream / 1e9:.2f}",
            f"{100 * each.stream_share:.0f}",
            f"{each.plain / 1e9:.2f}",
            f"{1000 * each.window:.3f}",
        )
    Console(width=None if Console().is_terminal else 130).print(table)
    if target is not None:
        target.write_text(json.dumps([asdict(each) for each in measurements], indent=2) + "\n")


if __name__ == "__main__":
    main()
