"""Sharded arrays: readable by xarray, kept where they fit, checked when read.

The metadata of groups and arrays, while others write and remove some.

Rows read from shard files: as zarr reads them, checked, and left to zarr where they differ.
"""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec

from pipeline.errors import DamageError, RunError
from pipeline.storage import arrays as store_module
from pipeline.storage import files
from pipeline.storage.arrays import (
    ArraySpec,
    consolidate,
    find_damaged,
    find_layout,
    is_consolidated,
    is_damaged,
    list_nodes,
    open_arrays,
    prepare_arrays,
    read_group,
    read_rows,
    take_rows,
    write_group,
    write_shard,
)
from pipeline.storage.files import note_writes

FEATURES = ArraySpec(
    (2, 3), ("window", "row", "channel"), "float16", compress=False, attributes={"units": "1"}
)
IDS = ArraySpec((4,), ("window", "y"), "uint8", compress=True, fill=255)
SPECS = {"features": FEATURES, "ids": IDS}
LENGTH, SHARD = 10, 4


def prepare(store: Path, length: int = LENGTH, **changes: Any) -> None:
    specs = {"features": replace(FEATURES, **changes), "ids": IDS}
    prepare_arrays(store, specs, length, SHARD, {"backbone": "none"})


def rows(shard: int, length: int = LENGTH) -> np.ndarray:
    return np.arange(shard * SHARD, min((shard + 1) * SHARD, length)) + 1


def fill(store: Path, shards: tuple[int, ...] = (0, 1, 2), length: int = LENGTH) -> None:
    for shard in shards:
        numbers = rows(shard, length)
        features = np.broadcast_to(numbers[:, None, None], (len(numbers), 2, 3))
        ids = np.broadcast_to(numbers[:, None], (len(numbers), 4))
        blocks = {"features": features.astype(np.float16), "ids": ids.astype(np.uint8)}
        write_shard(store, blocks, shard, SHARD)


def first_column(store: Path, name: str = "features") -> list[float]:
    array = np.asarray(open_arrays(store, [name])[name][...])
    return array.reshape(len(array), -1)[:, 0].tolist()


def shard_files(array: Path) -> list[Path]:
    return sorted(p for p in (array / "c").rglob("*") if p.is_file())


def times(store: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    prepare(tmp_path / "a.zarr")
    return tmp_path / "a.zarr"


def test_xarray_shows_it_as_it_is(store: Path) -> None:
    xarray = pytest.importorskip("xarray")
    fill(store)
    with xarray.open_zarr(store) as dataset:
        assert dict(dataset.sizes) == {"window": 10, "row": 2, "channel": 3, "y": 4}
        assert dataset.features.dims == ("window", "row", "channel")
        assert dataset.features.dtype == np.float16
        assert dataset.features.attrs["units"] == "1"
        assert dict(dataset.attrs) == {"backbone": "none", "checksum": dataset.attrs["checksum"]}
        assert dataset.features[:, 0, 0].values.tolist() == list(range(1, 11))


def test_one_file_per_shard(store: Path) -> None:
    fill(store)
    for name in SPECS:
        assert len(shard_files(store / name)) == 3
    array = open_arrays(store, ["features"])["features"]
    assert (array.shards, array.chunks) == ((4, 2, 3), (1, 2, 3))


def test_a_shard_of_nothing_but_fill_is_a_file_too(store: Path) -> None:
    blocks = {"features": np.zeros((4, 2, 3), np.float16), "ids": np.full((4, 4), 255, np.uint8)}
    with note_writes() as written:
        write_shard(store, blocks, 0, SHARD)
    files = [store / "features/c/0/0/0", store / "ids/c/0/0"]
    assert [(w.path, w.bytes) for w in written] == [(f, f.stat().st_size) for f in files]
    assert first_column(store) == [0] * 10


def test_rows_are_taken_from_anywhere(store: Path) -> None:
    fill(store)
    array = open_arrays(store, ["features"])["features"]
    numbers = np.array([9, 0, 4, 3, 3, 8], np.int64)
    taken = np.empty((len(numbers), *array.shape[1:]), array.dtype)
    take_rows(array, numbers, taken)
    np.testing.assert_array_equal(taken, np.asarray(array[...])[numbers])


def test_rows_of_a_lost_shard_are_refused(store: Path) -> None:
    fill(store, (0, 2))
    array = open_arrays(store, ["ids"])["ids"]
    taken = np.zeros((2, *array.shape[1:]), array.dtype)
    take_rows(array, np.array([9, 1]), taken)
    assert taken[:, 0].tolist() == [10, 2]
    with pytest.raises(DamageError, match=r"ids/c/1/0 is gone or was never written"):
        take_rows(array, np.array([7, 1]), taken)


def test_a_damaged_row_that_is_taken_is_named(store: Path) -> None:
    fill(store)
    file = shard_files(store / "features")[0]
    content = bytearray(file.read_bytes())
    content[3] ^= 255
    file.write_bytes(content)
    array = open_arrays(store, ["features"])["features"]
    taken = np.empty((SHARD, *array.shape[1:]), array.dtype)
    with pytest.raises(RunError, match="are damaged"):
        take_rows(array, np.arange(SHARD), taken)


def test_what_is_not_written_reads_as_the_fill(store: Path) -> None:
    fill(store, (1,))
    assert first_column(store) == [0] * 4 + [5, 6, 7, 8] + [0] * 2
    assert first_column(store, "ids") == [255] * 4 + [5, 6, 7, 8] + [255] * 2


def test_preparing_twice_touches_no_file(store: Path) -> None:
    fill(store)
    before = times(store)
    prepare(store)
    assert times(store) == before


def test_attributes_alone_may_change(store: Path) -> None:
    fill(store)
    before = times(store)
    prepare(store, attributes={"units": "m"})
    group = zarr.open_group(store, mode="r")
    assert group["features"].attrs["units"] == "m"
    changed = {Path(p).relative_to(store) for p, time in times(store).items() if time != before[p]}
    assert changed == {Path("zarr.json"), Path("features/zarr.json")}
    assert first_column(store) == list(range(1, 11))


def test_growing_keeps_the_shards(store: Path) -> None:
    fill(store)
    files = {p: p.stat().st_mtime_ns for p in shard_files(store / "features")}
    prepare(store, length=15)
    assert first_column(store) == [*range(1, 11), 0, 0, 0, 0, 0]
    assert {p: p.stat().st_mtime_ns for p in shard_files(store / "features")} == files
    assert zarr.open_group(store, mode="r")["features"].shape == (15, 2, 3)
    fill(store, (2, 3), 15)
    assert first_column(store) == list(range(1, 16))


def test_shrinking_removes_whole_shards(store: Path) -> None:
    fill(store)
    prepare(store, length=6)
    assert first_column(store) == [1, 2, 3, 4, 5, 6]
    assert len(shard_files(store / "features")) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (2, 5)},
        {"dtype": "float32"},
        {"dims": ("window", "row", "band")},
        {"fill": 7},
    ],
)
def test_another_spec_makes_the_array_anew(store: Path, change: dict[str, Any]) -> None:
    fill(store)
    prepare(store, **change)
    assert first_column(store) == [change.get("fill", 0)] * 10
    assert first_column(store, "ids") == list(range(1, 11))
    array = zarr.open_group(store, mode="r")["features"]
    assert isinstance(array, zarr.Array)
    assert array.shape[1:] == change.get("shape", (2, 3))


def test_another_shard_size_makes_all_arrays_anew(store: Path) -> None:
    fill(store)
    prepare_arrays(store, SPECS, LENGTH, 5, {})
    assert first_column(store) == [0] * 10
    assert first_column(store, "ids") == [255] * 10


@pytest.mark.parametrize("length", [LENGTH, 15])
def test_killed_before_it_consolidated_it_does_so_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    store = tmp_path / "a.zarr"
    if length != LENGTH:
        prepare(store)
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "consolidate", die)
        with pytest.raises(KeyboardInterrupt):
            prepare(store, length)
    prepare(store, length)
    consolidated = zarr.open_consolidated(store)
    assert sorted(consolidated.array_keys()) == ["features", "ids"]
    assert consolidated["features"].shape == (length, 2, 3)


@pytest.mark.parametrize("name", ["features", "ids"])
@pytest.mark.parametrize("where", [0, 3])
def test_a_flipped_byte_is_seen(store: Path, name: str, where: int) -> None:
    fill(store)
    file = shard_files(store / name)[1]
    content = bytearray(file.read_bytes())
    content[where] ^= 1
    file.write_bytes(content)
    array = open_arrays(store, [name])[name]
    assert np.asarray(array[0:4]).ravel()[0] == 1
    with pytest.raises(ValueError, match="checksum"):
        array[4:8]


def test_a_block_must_fill_its_shard(store: Path) -> None:
    block = np.zeros((3, 4), np.uint8)
    with pytest.raises(ValueError, match="ids: shard 2 has 2 rows, got 3"):
        write_shard(store, {"ids": block}, 2, SHARD)
    with pytest.raises(ValueError, match="ids: shard 0 has 4 rows, got 3"):
        write_shard(store, {"ids": block}, 0, SHARD)


def test_a_full_disk_gives_one_sentence(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(RunError, match=r"ids/c/0/0 \(\d+ bytes\): No space left on device; free"):
        write_shard(store, {"ids": np.ones((4, 4), np.uint8)}, 0, SHARD)


def test_a_store_below_a_file_gives_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match=r"^cannot write "):
        prepare(tmp_path / "file" / "a.zarr")
    with pytest.raises(RunError, match=r"^cannot write "):
        write_group(tmp_path / "file" / "a.zarr", "fit", {}, {})


def test_missing_arrays_give_one_sentence(store: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"lacks ids, depth .*; run the stage that writes it again"):
        open_arrays(store, ["ids", "depth"])
    with pytest.raises(RunError, match="lacks ids"):
        open_arrays(tmp_path / "none.zarr", ["ids"])
    assert not (tmp_path / "none.zarr").exists()


def test_groups_are_read_back(tmp_path: Path) -> None:
    store = tmp_path / "em.zarr"
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_group(store, "old", {"gone": (weight, ("a", "b"))}, {"seed": 1})
    arrays = {"weight": (weight, ("class", "channel")), "step": (np.array(3), ())}
    write_group(store, "k12", {"gone": (weight, ("a", "b"))}, {"gone": 1})
    write_group(store, "k12", arrays, {"splits": ["train"], "loss": 0.5})
    loaded, attributes = read_group(store, "k12")
    assert attributes == {"splits": ["train"], "loss": 0.5}
    assert sorted(loaded) == ["step", "weight"]
    np.testing.assert_array_equal(loaded["weight"], weight, strict=True)
    assert loaded["step"] == 3
    assert sorted(read_group(store, "old")[0]) == ["gone"]


def test_groups_open_in_xarray(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    weight = np.ones((2, 3), np.float32)
    write_group(tmp_path / "em.zarr", "k12", {"w": (weight, ("class", "channel"))}, {})
    consolidate(tmp_path / "em.zarr")
    with xarray.open_zarr(tmp_path / "em.zarr", group="k12") as dataset:
        assert dataset.w.dims == ("class", "channel")


def test_a_missing_group_gives_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no group 'k12'; run the stage that writes it\.$"):
        read_group(tmp_path / "em.zarr", "k12")


def test_damaged_metadata_is_refused_and_made_again(store: Path) -> None:
    fill(store)
    file = store / "features" / "zarr.json"
    whole = file.read_bytes()
    for bit in range(0, 8 * len(whole), 61):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        try:
            # white space may be other white space
            assert first_column(store) == list(range(1, 11))
        except DamageError as error:
            assert "is not as it was written" in str(error)
    file.write_bytes(b"{")
    prepare(store)
    assert file.read_bytes() == whole
    assert first_column(store) == list(range(1, 11))


def test_a_group_of_zeros_that_has_lost_a_chunk_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "em.zarr"
    write_group(store, "k12", {"w": (np.zeros((2, 3), np.float32), ("a", "b"))}, {})
    assert not read_group(store, "k12")[0]["w"].any()
    (store / "k12" / "w" / "c" / "0" / "0").unlink()
    with pytest.raises(DamageError, match="w has lost a chunk"):
        read_group(store, "k12")


def test_a_damaged_group_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "em.zarr"
    write_group(store, "k12", {"w": (np.ones((2, 3), np.float32), ("a", "b"))}, {"seed": 1})
    for name in ("zarr.json", "w/zarr.json", "w/c/0/0"):
        file = store / "k12" / name
        whole = file.read_bytes()
        file.write_bytes(whole[:8] + bytes([whole[8] ^ 1]) + whole[9:])
        with pytest.raises(DamageError):
            read_group(store, "k12")
        file.write_bytes(whole)
    assert read_group(store, "k12")[1] == {"seed": 1}


def test_a_store_knows_whether_its_metadata_is_that_of_its_members(store: Path) -> None:
    assert is_consolidated(store)
    whole = (store / "zarr.json").read_bytes()
    (store / "zarr.json").write_bytes(whole.replace(b"none", b"nine"))
    assert not is_consolidated(store)
    (store / "zarr.json").write_bytes(whole)
    prepare_arrays(store, {"ids": replace(IDS, attributes={"units": "1"})}, LENGTH, SHARD, {})
    assert is_consolidated(store)
    (store / "features" / "zarr.json").unlink()
    assert not is_consolidated(store)


@pytest.fixture
def store_metadata(tmp_path: Path) -> Path:
    """A store of two groups, each with an array."""
    for name in ("k12", "k20"):
        arrays = {"w": (np.ones((2, 3), np.float32), ("a", "b"))}
        write_group(tmp_path / "em.zarr", name, arrays, {})
    return tmp_path / "em.zarr"


def test_nodes_with_their_metadata(store_metadata: Path) -> None:
    nodes = list_nodes(store_metadata)
    assert list(nodes) == ["k12", "k12/w", "k20", "k20/w"]
    assert nodes["k20/w"] == (store_metadata / "k20/w/zarr.json").read_bytes()
    assert list_nodes(store_metadata / "none") == list_nodes(store_metadata / "k12/zarr.json") == {}


@pytest.mark.parametrize("last", ["k20/zarr.json", "k20/w/zarr.json"])
def test_a_group_that_is_removed_meanwhile(
    store_metadata: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    read = Path.read_bytes

    def read_and_remove(path: Path) -> bytes:
        content = read(path)
        if path == store_metadata / last:
            shutil.rmtree(store_metadata / "k20")
        return content

    monkeypatch.setattr(Path, "read_bytes", read_and_remove)
    consolidate(store_metadata)
    held = json.loads(read(store_metadata / "zarr.json"))["consolidated_metadata"]["metadata"]
    assert {"k12", "k12/w"} <= held.keys()
    monkeypatch.undo()
    consolidate(store_metadata)
    assert is_consolidated(store_metadata)


def test_damaged_is_neither_gone_nor_out_of_date(store_metadata: Path) -> None:
    assert not is_damaged(store_metadata)
    consolidate(store_metadata)
    shutil.rmtree(store_metadata / "k20")
    assert not is_damaged(store_metadata)
    (store_metadata / "zarr.json").write_bytes(b"{")
    assert is_damaged(store_metadata)


LENGTH_shards, SHARD_shards = 22, 8
CODECS: dict[str, list[Any]] = {
    "plain": [Crc32cCodec()],
    "blosc": [BloscCodec(cname="lz4hc", clevel=5), Crc32cCodec()],
}


def make_array(path: Path, codec: str = "plain", chunk: int = 1, **changes: Any) -> zarr.Array:
    arguments = {
        "shape": (LENGTH_shards, 3, 5),
        "chunks": (chunk, 3, 5),
        "shards": (SHARD_shards, 3, 5),
        "dtype": "float16",
        "compressors": CODECS[codec],
        "fill_value": 7,
        "config": {"write_empty_chunks": True},
    }
    return zarr.create_array(path, **(arguments | changes))


def draw_values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(LENGTH_shards, 3, 5)).astype(np.float16)


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
    ends=st.tuples(st.integers(0, LENGTH_shards), st.integers(0, LENGTH_shards)).map(sorted),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_rows_are_those_that_zarr_reads(
    arrays: dict[tuple[str, int], zarr.Array], codec: str, chunk: int, ends: list[int]
) -> None:
    array = arrays[codec, chunk]
    assert find_layout(array) is not None
    rows = read_rows(array, *ends)
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
def test_a_flipped_byte_is_seen_shards(tmp_path: Path, codec: str, at: int) -> None:
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
    monkeypatch.setattr(store_module, "_compare", lambda content, checksum, what: seen.append(what))
    store_module._read_index.cache_clear()
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
        {"shards": (SHARD_shards, 3, 10)},
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
    chunks = SHARD_shards // 2
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
