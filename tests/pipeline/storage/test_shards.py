"""Rows read from shard files: as zarr reads them, checked, and left to zarr where they differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec

from pipeline.errors import DamageError, RunError
from pipeline.storage import arrays as module
from pipeline.storage.arrays import find_damaged, find_layout, read_rows, read_shards

LENGTH, SHARD = 22, 8
CODECS: dict[str, list[Any]] = {
    "plain": [Crc32cCodec()],
    "blosc": [BloscCodec(cname="lz4hc", clevel=5), Crc32cCodec()],
}


def make_array(path: Path, codec: str = "plain", chunk: int = 1, **changes: Any) -> zarr.Array:
    arguments = {
        "shape": (LENGTH, 3, 5),
        "chunks": (chunk, 3, 5),
        "shards": (SHARD, 3, 5),
        "dtype": "float16",
        "compressors": CODECS[codec],
        "fill_value": 7,
        "config": {"write_empty_chunks": True},
    }
    return zarr.create_array(path, **(arguments | changes))


def draw_values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(LENGTH, 3, 5)).astype(np.float16)


def shard_file(path: Path, shard: int) -> Path:
    return path / "c" / str(shard) / "0" / "0"


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], zarr.Array]:
    folder = tmp_path_factory.mktemp("arrays")
    made = {}
    for codec in CODECS:
        for chunk in (1, 2, 8):
            made[codec, chunk] = make_array(folder / f"{codec}{chunk}", codec, chunk)
            made[codec, chunk][:] = draw_values()
    return made


@given(
    codec=st.sampled_from(sorted(CODECS)),
    chunk=st.sampled_from((1, 2, 8)),
    ends=st.tuples(st.integers(0, LENGTH), st.integers(0, LENGTH)).map(sorted),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_rows_are_those_that_zarr_reads(
    arrays: dict[tuple[str, int], zarr.Array], codec: str, chunk: int, ends: list[int]
) -> None:
    array = arrays[codec, chunk]
    layout = find_layout(array)
    assert layout is not None
    rows = np.empty((ends[1] - ends[0], 3, 5), np.float16)
    read_shards(array, layout, *ends, rows)
    np.testing.assert_array_equal(rows, array[ends[0] : ends[1]])
    np.testing.assert_array_equal(rows, draw_values()[ends[0] : ends[1]])


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_rows_go_into_the_array_given(arrays: dict[Any, zarr.Array], codec: str) -> None:
    out = np.zeros((6, 3, 5), np.float16)
    assert read_rows(arrays[codec, 2], 5, 9, out[1:5]) is not None
    np.testing.assert_array_equal(out[1:5], draw_values()[5:9])
    assert not out[[0, 5]].any()
    wide = np.zeros((4, 3, 10), np.float16)
    read_rows(arrays[codec, 2], 5, 9, wide[:, :, ::2])
    np.testing.assert_array_equal(wide[:, :, ::2], draw_values()[5:9])
    assert not wide[:, :, 1::2].any()


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_what_is_not_written_is_refused_and_not_read_as_the_fill(
    tmp_path: Path, codec: str
) -> None:
    array = make_array(tmp_path / "a", codec, 2, config={"write_empty_chunks": False})
    block = draw_values()[8:16]
    block[2:6] = 7
    array[8:16] = block
    np.testing.assert_array_equal(read_rows(array, 8, 10), block[:2])
    with pytest.raises(DamageError, match="c/0/0/0 is gone or was never written"):
        read_rows(array, 0, 8)
    with pytest.raises(DamageError, match="chunk 1 was never written"):
        read_rows(array, 10, 13)


@pytest.mark.parametrize("codec", sorted(CODECS))
@pytest.mark.parametrize("at", [0, 40, -1, -5])
def test_a_flipped_byte_is_seen(tmp_path: Path, codec: str, at: int) -> None:
    array = make_array(tmp_path / "a", codec, 2)
    array[:] = draw_values()
    assert len(read_rows(array, 8, 16)) == 8
    flip(shard_file(tmp_path / "a", 1), at)
    with pytest.raises(RunError, match=r"rows 8 to 16 of .* are damaged \(.*checksum"):
        read_rows(array, 8, 16)
    assert len(read_rows(array, 0, 8)) == 8
    # what is written anew is read anew
    shard_file(tmp_path / "a", 1).unlink()
    array[8:16] = draw_values()[8:16]
    np.testing.assert_array_equal(read_rows(array, 8, 16), draw_values()[8:16])


@pytest.mark.parametrize("left", [0, 3, 60])
def test_a_file_cut_short_is_seen(tmp_path: Path, left: int) -> None:
    array = make_array(tmp_path / "a")
    array[:] = draw_values()
    file = shard_file(tmp_path / "a", 0)
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(RunError, match="damaged"):
        read_rows(array, 0, 4)


def test_a_checksum_is_verified_once(
    arrays: dict[Any, zarr.Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(module, "_compare", lambda content, checksum, what: seen.append(what))
    module._read_index.cache_clear()
    for _ in range(2):
        read_rows(arrays["plain", 1], 0, 3)
    assert len(seen) == 4, "the index, and three chunks"
    read_rows(arrays["plain", 1], 2, 4)
    assert len(seen) == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"compressors": [ZstdCodec(level=1), Crc32cCodec()]},
        {"compressors": None},
        {"serializer": BytesCodec(endian="big")},
        {"shards": None},
        {"chunks": (1, 3, 1)},
        {"shards": (SHARD, 3, 10)},
        {"chunk_key_encoding": {"name": "v2", "separator": "."}},
    ],
)
def test_other_layouts_are_left_to_zarr(tmp_path: Path, changes: dict[str, Any]) -> None:
    array = make_array(tmp_path / "a", **changes)
    array[:] = draw_values()
    assert find_layout(array) is None
    np.testing.assert_array_equal(read_rows(array, 3, 17), draw_values()[3:17])


def test_a_store_in_memory_is_left_to_zarr() -> None:
    array = make_array(zarr.storage.MemoryStore())  # type: ignore[arg-type]
    array[:] = draw_values()
    assert find_layout(array) is None
    np.testing.assert_array_equal(read_rows(array, 3, 17), draw_values()[3:17])


@pytest.mark.parametrize("codec", CODECS)
def test_the_damaged_chunks_of_a_shard_are_found(tmp_path: Path, codec: str) -> None:
    array = make_array(tmp_path / "a", codec, chunk=2)
    array[:] = draw_values()
    content = shard_file(tmp_path / "a", 1).read_bytes()
    chunks = SHARD // 2
    index = np.frombuffer(content[-(16 * chunks + 4) : -4], "<u8").reshape(chunks, 2)

    def damage(at: int) -> bytes:
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

    for number, (offset, size) in enumerate(index.tolist()):
        assert find_damaged(damage(offset), chunks) == [number]
        # the checksum is a part of the chunk
        assert find_damaged(damage(offset + size - 1), chunks) == [number]
    everything = list(range(chunks))
    assert find_damaged(damage(len(content) - 1), chunks) == everything
    assert find_damaged(content[:-1], chunks) == everything
    assert find_damaged(b"", chunks) == everything
    # nothing is damaged that the shard itself could tell: the record says that something is
    assert find_damaged(content, chunks) == everything
