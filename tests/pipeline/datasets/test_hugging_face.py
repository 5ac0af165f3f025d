"""Datasets of the Hugging Face library, unpacked from what the library itself writes."""

from __future__ import annotations

import io
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets import get_dataset, open_kept
from pipeline.datasets.base import Dataset
from pipeline.datasets.definition import png_palette
from pipeline.datasets.hugging_face import name_row, sniff_suffix
from pipeline.errors import DatasetError, UsageError
from pipeline.images.decoding import read_rgb
from pipeline.storage.files import fetch_nothing

IDS = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)
COLOURS = [(1, 2, 3), (200, 0, 0), (0, 200, 0)]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the library off the network, and its caches and ours in a folder of the test."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PRIMAPS_CACHE_DIR", str(tmp_path / "cache"))
    pytest.importorskip("datasets").disable_progress_bars()


def encode(pixels: np.ndarray, format: str = "PNG", *, palette: bool = False) -> bytes:
    image = Image.fromarray(pixels)
    if palette:
        image = Image.fromarray(pixels, mode="P")
        image.putpalette(png_palette(COLOURS))
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def photograph(number: int) -> np.ndarray:
    return np.full((2, 3, 3), 10 * number, np.uint8)


def make(count: int, *, palette: bool = False, start: int = 0) -> Any:
    """Make a dataset of images and label maps as pictures."""
    import datasets

    numbers = range(start, start + count)
    return datasets.Dataset.from_dict(
        {
            "image": [
                {"bytes": encode(photograph(n)), "path": f"../x/phöto {n}.png"} for n in numbers
            ],
            "label": [{"bytes": encode(IDS, palette=palette), "path": None} for _ in numbers],
        },
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Image()}),
    )


def unpack(dataset: Dataset) -> tuple[Path, list[str]]:
    said: list[str] = []
    root = dataset.find_root(None)
    dataset.fetch(root, said.append)
    return root, said


def test_a_dry_run_unpacks_nothing(tmp_path: Path) -> None:
    make(2).save_to_disk(tmp_path / "set")
    dataset = get_dataset(f"huggingface:{tmp_path / 'set'}")
    root = dataset.find_root(tmp_path / "images")
    with fetch_nothing(), pytest.raises(DatasetError, match="a dry run unpacks nothing"):
        dataset.fetch(root, print)
    assert not (tmp_path / "images").exists()


def test_what_save_to_disk_writes(tmp_path: Path) -> None:
    import datasets

    folder = tmp_path / "my set"
    parts = {"train": make(20, palette=True), "validation": make(1, start=5)}
    datasets.DatasetDict(parts).save_to_disk(folder)
    (folder / "id2label.json").write_text(json.dumps({"0": "sky", "1": "road", "2": "tree"}))
    name = f"huggingface:{folder}"
    dataset = get_dataset(name)
    assert dataset.default_splits == ("train", "validation")
    assert dataset.class_names() == ("sky", "road", "tree")
    assert dataset.palette == tuple(COLOURS)

    root, said = unpack(dataset)
    assert tmp_path / "cache" / "datasets" in root.parents and str(root) in said[0]
    assert said[1] == f"{name}: 21 images"
    assert [path.name for path in root.parent.iterdir()] == [root.name], "no half of it is left"
    samples = dataset.list_samples(root, ["train", "validation"])
    assert [s.id for s in samples[:2]] == ["000000-ph_to_0", "000001-ph_to_1"]
    assert [s.split for s in samples].count("train") == 20 and len(samples) == 21
    assert samples[3].image == "images/train/000003-ph_to_3.png"
    assert read_rgb(root / samples[3].image)[0, 0].tolist() == [30, 30, 30]
    label = root / (samples[3].label or "")
    assert label and dataset.read_label(label).tolist() == IDS.tolist()

    unpacked_again = unpack(dataset)
    assert unpacked_again == (root, []), "once is enough"
    kept = open_kept(name, json.loads(json.dumps(dataset.content)))
    assert kept.list_samples(root, ["train"]) == samples[:20]
    assert kept.palette == dataset.palette
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.find_root(None) == root


def test_other_files_are_another_folder(tmp_path: Path) -> None:
    make(2).save_to_disk(tmp_path / "set")
    first = get_dataset(f"huggingface:{tmp_path / 'set'}")
    assert first.default_splits == ("train",)
    root = first.find_root(None)
    make(3).save_to_disk(tmp_path / "set")
    second = get_dataset(f"huggingface:{tmp_path / 'set'}")
    assert second.find_root(None) != root
    # what a run remembers as its root is the folder of an earlier time
    assert second.find_root(tmp_path / "big disk" / root.name).parent == tmp_path / "big disk"
    assert second.find_root(tmp_path / "big disk").parent == tmp_path / "big disk"


def test_parquet_files_and_tables_of_ids(tmp_path: Path) -> None:
    import datasets

    names = ["grass", "apple", "stone"]
    kind = datasets.Sequence(datasets.Sequence(datasets.ClassLabel(names=names)))
    rows = make(3).remove_columns("label")
    tables = [[[0, 1, 2], [2, -1, 0]], None, [[1, 1, 1], [1, 1, 1]]]
    rows = rows.add_column("scene", ["a", "b", "c"])
    features = datasets.Features({**rows.features, "mask": kind})
    rows = datasets.Dataset.from_dict(
        {"image": rows.with_format("arrow")["image"].to_pylist(), "scene": rows["scene"][:]}
        | {"mask": tables},
        features=features,
    )
    (tmp_path / "data").mkdir()
    rows.select([0, 1]).to_parquet(tmp_path / "data" / "train-00000-of-00002.parquet")
    rows.select([2]).to_parquet(tmp_path / "data" / "train-00001-of-00002.parquet")
    rows.select([0]).to_parquet(tmp_path / "data" / "test-00000-of-00001-0a1b2c.parquet")
    (tmp_path / "my_set.py").write_text("raise SystemExit('this must not be run')")
    (tmp_path / "README.md").write_text("---\n---\n")
    dataset = get_dataset(f"huggingface:{tmp_path}")
    assert dataset.class_names() == tuple(names)
    assert dataset.default_splits == ("train", "test")
    root, _ = unpack(dataset)
    samples = dataset.list_samples(root, ["train", "test"])
    assert [(s.split, s.id[:6]) for s in samples] == [
        *[("train", "000000"), ("train", "000001"), ("train", "000002"), ("test", "000000")],
    ]
    assert samples[1].label is None
    path = root / (samples[0].label or "")
    assert path and dataset.read_label(path).tolist() == [[0, 1, 2], [2, 255, 0]]


def test_parquet_of_other_libraries_without_names(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    picture = {"bytes": encode(photograph(1), "JPEG"), "path": None}
    ids = {"bytes": encode(IDS), "path": None}
    rows = {"img": [picture, None, {"bytes": None, "path": "/etc/passwd"}], "gt": [ids, ids, ids]}
    (tmp_path / "val").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "val" / "0000.parquet")
    dataset = get_dataset(f"huggingface:{tmp_path}")
    assert dataset.class_names() == () and dataset.default_splits == ("val",)
    root, said = unpack(dataset)
    assert said[1].endswith(": 1 image, 2 rows without one")
    (sample,) = dataset.list_samples(root, ["val"])
    assert sample.image == "images/val/000000.jpg"


def test_columns_that_are_not_clear(tmp_path: Path) -> None:
    import datasets

    rows = make(1).rename_columns({"image": "left", "label": "right"})
    rows.save_to_disk(tmp_path / "set")
    with pytest.raises(DatasetError, match=r"columns left, right: it must be clear"):
        get_dataset(f"huggingface:{tmp_path / 'set'}")
    rows.rename_column("left", "label").save_to_disk(tmp_path / "half")
    dataset = get_dataset(f"huggingface:{tmp_path / 'half'}")
    root, _ = unpack(dataset)
    (sample,) = dataset.list_samples(root, ["train"])
    assert sample.label
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "t")
    with pytest.raises(DatasetError, match="it must be clear which one holds"):
        get_dataset(f"huggingface:{tmp_path / 't'}")


def test_folders_that_hold_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no folder of a dataset at"):
        get_dataset(f"huggingface:{tmp_path / 'none'}")
    with pytest.raises(DatasetError, match="neither what save_to_disk writes nor parquet"):
        get_dataset(f"huggingface:{tmp_path}")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DatasetError, match="no dataset that can be read"):
        get_dataset(f"huggingface:{tmp_path}")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["../../x"]}')
    with pytest.raises(DatasetError):
        get_dataset(f"huggingface:{tmp_path}")


def test_rows_without_bytes_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {"image": [{"bytes": None, "path": "/etc/passwd"}]}
    kind = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))])
    pq.write_table(pa.table(rows, schema=kind), tmp_path / "train.parquet")
    dataset = get_dataset(f"huggingface:{tmp_path}")
    with pytest.raises(DatasetError, match=r"no row of .* holds the bytes"):
        unpack(dataset)
    assert list((tmp_path / "cache" / "datasets").iterdir()) == []


def test_a_label_that_is_no_table_is_refused(tmp_path: Path) -> None:
    import datasets

    kind = datasets.Sequence(datasets.Sequence(datasets.Value("float32")))
    rows = make(1).remove_columns("label").add_column("label", [[[0.5]]], feature=kind)
    rows.save_to_disk(tmp_path / "set")
    dataset = get_dataset(f"huggingface:{tmp_path / 'set'}")
    with pytest.raises(DatasetError, match="row 0 of train: its label map is no table of ids"):
        unpack(dataset)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"pip install 'primaps-pipe\[huggingface\]'"):
        get_dataset(f"huggingface:{tmp_path}")


def test_names_of_files() -> None:
    assert name_row(7, "a/../../b c.ü.jpg") == "000007-b_c"
    assert name_row(7, "..") == name_row(7, None) == "000007"
    assert name_row(1234567, "x" * 99) == "1234567-" + "x" * 64
    assert [sniff_suffix(data) for data in (b"\xff\xd8\xff\xe0", b"GIF89a", b"", b"MM\0*")] == [
        *(".jpg", ".gif", ".bin", ".tif"),
    ]
