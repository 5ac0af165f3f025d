"""Paths of a store answer as those of a disk do, datasets list the same, copies are not stale."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.datasets import get_dataset
from pipeline.errors import DatasetError, PipelineError, RunError
from pipeline.images.decoding import probe_image, read_label
from pipeline.storage.arrays import (
    ArraySpec,
    open_arrays,
    prepare_arrays,
    read_rows,
    take_rows,
    write_shard,
)
from pipeline.storage.files import read_json, remove_file, remove_tree, write_bytes
from pipeline.storage.places import find_files, measure, parse_place
from tests.pipeline.datasets.layout import write_image, write_label, write_mat

CURATED = "Coco164kFull_Stuff_Coarse_7.txt"
NAMES = ["a.json", "b/c.json", "b/d/é [1]*?.png", "b.txt", "b d/\u0301.json", "z/y/x/w.png"]


@pytest.fixture
def both(bucket: str, tmp_path: Path) -> tuple[Path, Path]:
    """The same files on disk and in a store."""
    places = (tmp_path / "top", parse_place(f"{bucket}/top"))
    for place in places:
        for number, name in enumerate(NAMES):
            write_bytes(place / name, bytes(number))
    return places


def relative(paths: Iterator[Path], top: Path) -> list[str]:
    """Name paths by what is below the top, sorted."""
    return sorted(path.relative_to(top).as_posix() for path in paths)


def test_a_store_lists_as_a_disk_does(both: tuple[Path, Path]) -> None:
    local, remote = both
    assert relative(find_files(remote), remote) == relative(find_files(local), local)
    for pattern in ("*", "b*", "*/c.json", "*/*/*.png", "b/*", "b/c.json", "b", "nothing", "x/*"):
        assert relative(remote.glob(pattern), remote) == relative(local.glob(pattern), local)
    assert relative(remote.rglob("*.png"), remote) == relative(local.rglob("*.png"), local)
    assert relative(remote.iterdir(), remote) == relative(local.iterdir(), local)
    for name in [*NAMES, "b", "b/d", "c", "z/y", "", "a.json/b", "a.jso", "b/d/e"]:
        ours, theirs = remote / name, local / name
        assert ours.exists() == theirs.exists(), name
        assert ours.is_file() == theirs.is_file(), name
        assert ours.is_dir() == theirs.is_dir(), name
        assert measure(ours) == measure(theirs), name
    assert remote.stat().st_mode == 0o040000


def test_a_store_reads_and_removes_as_a_disk_does(both: tuple[Path, Path]) -> None:
    for place in both:
        file = place / "b" / "c.json"
        assert file.read_bytes() == b"\0"
        write_bytes(file, '{"a": "é"}\r\n'.encode())
        assert read_json(file) == {"a": "é"}
        assert file.read_text(encoding="utf-8") == '{"a": "é"}\n'
        assert file.stat().st_size == 13
        remove_file(file)
        remove_file(file)
        assert read_json(file) is None
        with pytest.raises(FileNotFoundError):
            file.unlink()
        with pytest.raises(FileNotFoundError):
            file.stat()
        with pytest.raises(FileNotFoundError):
            file.read_bytes()
        remove_tree(place / "b")
        remove_tree(place / "b")
        assert not (place / "b").exists()
        assert (place / "b.txt").exists()
        assert (place / "b d").exists()


def test_more_objects_than_one_answer_lists(
    both: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.storage.s3 import FileSystem

    asked: list[str] = []

    async def call(store: FileSystem, method: str, *args: Any, **kwargs: Any) -> Any:
        asked.append(method)
        more = {"MaxKeys": 2} if method == "list_objects_v2" else {}
        return await original(store, method, *args, **{**kwargs, **more})

    original = FileSystem._call_s3
    monkeypatch.setattr(FileSystem, "_call_s3", call)
    local, remote = both
    assert relative(find_files(remote), remote) == relative(find_files(local), local)
    assert len(asked) == 3
    assert relative(remote.iterdir(), remote) == relative(local.iterdir(), local)
    remove_tree(remote)
    assert list(remote.iterdir()) == []


def write_layouts(top: Path) -> dict[str, tuple[str, ...]]:
    """Write a small dataset of every layout; return their splits."""
    for name in ("train/b 1.png", "train/a.png", "train/.hidden.png", "test/c.png"):
        write_image(top / "camvid" / name)
    write_label(top / "camvid" / "trainannot" / "a.png", [[0, 11]])
    for name in ("aachen/x_leftImg8bit.png", "bonn/y_leftImg8bit.png"):
        write_image(top / "cityscapes" / "leftImg8bit" / "train" / name)
    labels = top / "cityscapes" / "gtFine" / "train" / "bonn"
    write_label(labels / "y_gtFine_labelIds.png", [[7]])
    for number in range(3):
        write_image(top / "cocostuff" / "images" / "train2017" / f"{number}.jpg")
        write_label(top / "cocostuff" / "annotations" / "train2017" / f"{number}.png", [[number]])
    curated = top / "cocostuff" / "curated" / "train2017" / CURATED
    curated.parent.mkdir(parents=True)
    curated.write_text("2\n0\n7\n")
    for tile in ("0_0", "1_0"):
        write_mat(top / "potsdam" / "imgs" / f"{tile}.mat", "img", np.zeros((3, 2, 4), np.uint8))
    write_mat(top / "potsdam" / "gt" / "1_0.mat", "gt", np.zeros((3, 2), np.uint8))
    (top / "potsdam" / "labelled_train.txt").write_text("1_0\n0_0\n")
    for name in ("a.png", "a.jpg", "x/é [b].png", "x/n.txt", ".h/i.png", "run/labels/j.png"):
        write_image(top / "folder" / name) if name[-3:] != "txt" else None
    (top / "folder" / "run" / "run.yaml").touch()
    (top / "folder" / "run" / "state").mkdir()
    (top / "folder" / "run" / "state" / "k").write_text("k")
    (top / "folder" / "x" / "n.txt").write_text("")
    return {
        "camvid": ("train", "test"),
        "cityscapes": ("train",),
        "cocostuff": ("train",),
        "potsdam": ("train",),
        "folder": ("all", "x"),
    }


def copy_tree(source: Path, target: Path) -> None:
    """Copy all files below a folder."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            (target / path.relative_to(source).as_posix()).write_bytes(path.read_bytes())


def test_datasets_list_the_same_in_a_store(bucket: str, tmp_path: Path) -> None:
    splits = write_layouts(tmp_path)
    write_label(tmp_path / "ids" / "x" / "é [b].png", [[3, 255]])
    (tmp_path / "ids" / "classes.txt").write_text("\ufeffa\n\nc\n", encoding="utf-8")
    top = parse_place(f"{bucket}/data")
    copy_tree(tmp_path, top)
    for name, wanted in splits.items():
        dataset = get_dataset(name)
        expected = dataset.list_samples(tmp_path / name, wanted)
        assert dataset.list_samples(top / name, wanted) == expected
        assert len(expected) >= 2
        for sample in expected:
            ours = probe_image(top / name / sample.image)
            theirs = probe_image(tmp_path / name / sample.image)
            assert (ours.width, ours.height, ours.digest) == (
                4,
                3,
                theirs.digest,
            ) or name == "potsdam"
            if sample.label is not None:
                ids = dataset.read_label(top / name / sample.label)
                assert np.array_equal(ids, dataset.read_label(tmp_path / name / sample.label))
    folder = get_dataset("folder")
    (sample,) = folder.list_samples(top / "folder", ["x"], top / "ids")
    assert sample.label == "x/é [b].png"
    assert read_label(top / "ids" / sample.label).tolist() == [[3, 255]]
    assert folder.class_names(top / "ids") == ("a", "class 1", "c")


def test_wrong_roots_in_a_store(bucket: str) -> None:
    top = parse_place(f"{bucket}/data")
    (top / "empty" / "n.txt").write_bytes(b"")
    for name in splits_of_nothing():
        with pytest.raises(DatasetError, match="nothing at s3://"):
            get_dataset(name).list_samples(top / "gone", ["train"])
        with pytest.raises(DatasetError):
            get_dataset(name).list_samples(top / "empty", ["train"])
    with pytest.raises(PipelineError, match="there is no bucket"):
        get_dataset("folder").list_samples(parse_place("s3://no-such-bucket-here/x"), ["all"])


def splits_of_nothing() -> tuple[str, ...]:
    """Name the datasets that have a split called train, and folders, which may."""
    return ("camvid", "cityscapes", "cocostuff", "potsdam", "folder")


def test_objects_whose_names_are_no_paths_are_left_out_with_a_reason(bucket: str) -> None:
    import boto3

    client = boto3.client("s3")
    name = bucket.removeprefix("s3://")
    for key in ("d/a.png", "d//b.png", "d/../../c.png", "d/./e.png", "d/folder/", "d/x//n.txt"):
        client.put_object(Bucket=name, Key=key, Body=b"x")
    samples = get_dataset("folder").list_samples(parse_place(f"{bucket}/d"), ["all"])
    assert sorted((s.image, s.reason is None) for s in samples) == [
        ("a.png", True),
        ("b.png", False),
        ("c.png", False),
        ("e.png", False),
    ]


@pytest.fixture
def array(bucket: str) -> Path:
    """An array of three shards of two rows in a store; the row is its number."""
    store = parse_place(f"{bucket}/a.zarr")
    spec = ArraySpec((2, 3), ("row", "y", "x"), "float32", compress=False)
    prepare_arrays(store, {"clean": spec}, 5, 2, {})
    for shard in range(3):
        fill(store, shard, 0)
    return store


def fill(store: Path, shard: int, more: int) -> None:
    """Write a shard of the array."""
    rows = np.arange(2 * shard, min(2 * shard + 2, 5), dtype=np.float32) + more
    write_shard(store, {"clean": np.tile(rows[:, None, None], (1, 2, 3))}, shard, 2)


def take(array: Any, *numbers: int) -> list[float]:
    """Take rows and return a value of each."""
    out = np.empty((len(numbers), 2, 3), np.float32)
    take_rows(array, np.array(numbers), out)
    return [float(row[1, 2]) for row in out]


def test_each_shard_is_fetched_once(array: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.storage.s3 import S3Store

    fetched: list[str] = []

    def read(store: S3Store, path: Any, most: int) -> Any:
        fetched.append(path.relative_to(array).as_posix())
        return original(store, path, most)

    clean = open_arrays(array, ["clean"])["clean"]
    original = S3Store.get
    monkeypatch.setattr(S3Store, "get", read)
    for _ in range(3):
        assert take(clean, 4, 0, 3) == [4, 0, 3]
        assert read_rows(clean, 1, 5)[:, 0, 0].tolist() == [1, 2, 3, 4]
    assert sorted(fetched) == [f"clean/c/{shard}/0/0" for shard in range(3)]


def test_an_array_larger_than_the_disk_is_read_row_by_row(
    array: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.storage import arrays

    monkeypatch.setattr(arrays, "current_spool", lambda: arrays.Spool(Path("nowhere"), limit=100))
    clean = open_arrays(array, ["clean"])["clean"]
    monkeypatch.setattr("pipeline.storage.s3.S3Store.get", None)
    assert take(clean, 4, 0, 3) == [4, 0, 3]
    assert read_rows(clean, 1, 5)[:, 0, 0].tolist() == [1, 2, 3, 4]


def test_a_shard_written_anew_is_fetched_anew(array: Path) -> None:
    assert take(open_arrays(array, ["clean"])["clean"], 0, 2, 4) == [0, 2, 4]
    fill(array, 1, 10)
    assert take(open_arrays(array, ["clean"])["clean"], 0, 2, 4) == [0, 12, 4]
    remove_file(array / "clean/c/1/0/0")
    with pytest.raises(RunError, match="c/1/0/0 is gone or was never written"):
        take(open_arrays(array, ["clean"])["clean"], 0, 2, 4)


def test_a_damaged_shard_is_found_through_its_copy(array: Path) -> None:
    file = array / "clean/c/1/0/0"
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunError, match="are damaged"):
        take(open_arrays(array, ["clean"])["clean"], 2)


def test_copies_take_no_more_than_their_share(bucket: str, tmp_path: Path) -> None:
    from pipeline.storage.arrays import KEPT, Spool

    top = parse_place(f"{bucket}/many")
    for number in range(KEPT + 5):
        (top / str(number)).write_bytes(bytes([number]) * 100)
    arrays = Spool(tmp_path, limit=0)

    def read(number: int) -> bytes:
        file, _ = arrays.open(top / str(number % (KEPT + 5)))
        with file:
            return file.read()[:1]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read, range(4 * (KEPT + 5))))
    assert found == [bytes([number % (KEPT + 5)]) for number in range(4 * (KEPT + 5))]
    # threads that were reading at the end may have kept theirs
    assert len(list(tmp_path.iterdir())) <= KEPT + 4
    with pytest.raises(FileNotFoundError):
        arrays.open(top / "gone")


def test_copies_are_gone_with_their_process(array: Path, tmp_path: Path) -> None:
    code = "\n".join(
        [
            "import os, sys",
            "from pipeline.storage.places import parse_place",
            "from pipeline.storage.arrays import open_arrays, read_rows",
            "array = open_arrays(parse_place(sys.argv[1]), ['clean'])['clean']",
            "read_rows(array, 0, 5)",
            "print(len(os.listdir(os.environ['TMPDIR'])), flush=True)",
            "if sys.argv[2] != '0': os.kill(os.getpid(), int(sys.argv[2]))",
        ]
    )
    counts = []
    for signal in ("9", "0"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(array), signal],
            env={**os.environ, "TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        counts.append(done.stdout.strip())
        if signal == "9":
            assert len(list(tmp_path.iterdir())) == 1
    # the second process removed what the first, which was killed, had left, and then its own
    assert counts == ["1", "1"]
    assert list(tmp_path.iterdir()) == []
