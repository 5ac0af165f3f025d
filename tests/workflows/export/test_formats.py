"""Every format is read back by whoever reads it, and holds the run's label maps."""

from __future__ import annotations

import ast
import csv
import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets import get_dataset
from pipeline.run.directory import RunDirectory
from pipeline.run.manifest import read_manifest
from tests.scenes import hash_tree
from tests.workflows.export.conftest import QUIET, Export
from workflows.export import cityscapes, coco_panoptic, coco_stuff
from workflows.export.folder import Folder, open_folder
from workflows.export.job import Export as Task
from workflows.export.job import Source, open_source

NAMES = ["class 0", "class 1", "class 2"]
Expected = dict[str, np.ndarray]


def read_index(out: Path) -> dict[str, tuple[Path, Path]]:
    """Read id -> image and label of an export."""
    with (out / "index.csv").open(newline="", encoding="utf-8") as file:
        return {row["id"]: (out / row["image"], out / row["label"]) for row in csv.DictReader(file)}


def read_ids(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def assert_pixels(finished: Path, id_: str, image: Path, *, exact: bool = True) -> None:
    manifest = read_manifest(RunDirectory(finished))
    row = next(row for row in manifest.images if row.id == id_)
    photograph = np.asarray(Image.open(manifest.root / row.path).convert("RGB")).astype(int)
    found = np.asarray(Image.open(image).convert("RGB")).astype(int)
    assert found.shape == photograph.shape
    assert abs(found - photograph).max() == 0 if exact else abs(found - photograph).mean() < 6


def test_mmseg(tmp_path: Path, export: Export, finished: Path, expected: Expected) -> None:
    out = tmp_path / "out"
    lines = export("mmseg", out)
    assert "3 classes of folder" in lines[0]
    assert "9 images of train as mmseg" in lines[1]
    config: dict[str, Any] = {}
    text = (out / "dataset_config.py").read_text()
    calls = {n.func.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)}  # type: ignore[attr-defined]
    assert calls == {"dict"}
    exec(text, config)
    assert config["metainfo"]["classes"] == tuple(NAMES)
    data = config["train_dataset"]
    images = out / data["data_prefix"]["img_path"]
    labels = out / data["data_prefix"]["seg_map_path"]
    names = (out / data["ann_file"]).read_text().split("\n")[:-1]
    # file by file: the list, the images and the label maps are the same, and nothing else is there
    assert {f"{n}{data['img_suffix']}" for n in names} == {
        p.relative_to(images).as_posix() for p in images.rglob("*") if p.is_file()
    }
    assert {f"{n}{data['seg_map_suffix']}" for n in names} == {
        p.relative_to(labels).as_posix() for p in labels.rglob("*") if p.is_file()
    }
    assert {p.name for p in out.iterdir() if p.name[0] != "."} == {
        *("img_dir", "ann_dir", "splits", "dataset_config.py"),
        *("classes.json", "index.csv", "export.json"),
    }
    index = read_index(out)
    assert set(index) == set(expected)
    for id_, (image, label) in index.items():
        np.testing.assert_array_equal(read_ids(label), expected[id_])
        assert_pixels(finished, id_, image)
        colours = np.asarray(Image.open(label).convert("RGB"))
        palette = np.array(config["metainfo"]["palette"])
        np.testing.assert_array_equal(colours, palette[expected[id_]])


def test_mmseg_of_several_kinds_of_files(
    tmp_path: Path, source: Source, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workflows.export import mmseg

    suffixes = iter([".jpg", ".png"] * 20)
    chosen: dict[str, str] = {}
    monkeypatch.setattr(
        mmseg, "choose_suffix", lambda path, _: chosen.setdefault(path, next(suffixes))
    )
    items = source.list_items(nested=True)[:2]
    places = mmseg.write(Task(source, items, Folder(tmp_path), "copy", QUIET))
    assert places[0][0].endswith("0.jpg")
    assert places[0][1].endswith("0.jpg.png")
    config: dict[str, Any] = {}
    exec((tmp_path / "dataset_config.py").read_text(), config)
    assert config["train_dataset"]["img_suffix"] == ""
    for name in (tmp_path / "splits/train.txt").read_text().split("\n")[:-1]:
        assert (tmp_path / "img_dir/train" / name).is_file()
        assert (tmp_path / "ann_dir/train" / f"{name}.png").is_file()


def test_names_are_text_in_every_format(tmp_path: Path, source: Source) -> None:
    import yaml

    from workflows.export import huggingface, mmseg, yolo_seg

    name = "'),) ; raise SystemExit('!') # \" | {{ x }} !!python/object:os.system [a]"
    classes = ((name, (1, 2, 3)), *source.classes[1:])
    hostile = replace(source, classes=classes)
    for module in (mmseg, yolo_seg, huggingface):
        folder = Folder(tmp_path / module.__name__)
        items = hostile.list_items(nested=module.NESTED)[:1]
        module.write(Task(hostile, items, folder, "none", QUIET))
    config: dict[str, Any] = {}
    exec((tmp_path / mmseg.__name__ / "dataset_config.py").read_text(), config)
    assert config["metainfo"]["classes"][0] == name
    data = yaml.safe_load((tmp_path / yolo_seg.__name__ / "data.yaml").read_text())
    assert data["names"][0] == name
    labels = json.loads((tmp_path / huggingface.__name__ / "id2label.json").read_text())
    assert labels["0"] == name


@pytest.fixture(scope="module")
def source(finished: Path) -> Source:
    return open_source(RunDirectory(finished), em=None, head=None, splits=(), ids="auto")


def test_coco_stuff(tmp_path: Path, export: Export, finished: Path, expected: Expected) -> None:
    out = tmp_path / "out"
    lines = export("coco-stuff", out)
    assert "written as JPEG" in lines[2]
    # pixel value n is number n + 1 of the list, as in the dataset's own
    assert (out / "labels.txt").read_text() == (
        "0: unlabeled\n1: class 0\n2: class 1\n3: class 2\n"
    )
    samples = get_dataset("cocostuff").list_samples(out, ("train",))
    assert len(samples) == len(expected)
    for id_, (image, label) in read_index(out).items():
        assert image.parent == out / "images/train2017"
        assert Image.open(image).format == "JPEG"
        assert Image.open(label).mode == "L"
        np.testing.assert_array_equal(read_ids(label), expected[id_])
        assert_pixels(finished, id_, image, exact=False)
    assert {str(out / s.label) for s in samples} == {str(p) for _, p in read_index(out).values()}


@pytest.mark.parametrize("name", ["cocostuff", "coco-stuff-171"])
def test_coco_stuff_reads_its_own_labels_back(
    tmp_path: Path, source: Source, expected: Expected, name: str
) -> None:
    dataset = get_dataset(name)
    own = replace(
        source,
        manifest=replace(source.manifest, dataset=name),
        dataset=dataset,
        classes=tuple(zip(dataset.class_names(), dataset.palette, strict=False)),
        # classes whose ids are not their numbers
        table=np.where(np.arange(256) < 255, source.table + 9, 255).astype(np.uint8),
    )
    items = own.list_items(nested=coco_stuff.NESTED)
    coco_stuff.write(Task(own, items, Folder(tmp_path), "copy", QUIET))
    samples = {s.id: s for s in dataset.list_samples(tmp_path, ("train",))}
    assert len(samples) == len(items)
    for item in items:
        label = samples[item.name].label
        assert label is not None
        found = dataset.read_label(tmp_path / label)
        np.testing.assert_array_equal(found, expected[item.image.id] + 9)


def test_cityscapes(tmp_path: Path, export: Export, finished: Path, expected: Expected) -> None:
    out = tmp_path / "out"
    export("cityscapes", out)
    dataset = get_dataset("cityscapes")
    samples = {sample.image: sample for sample in dataset.list_samples(out, ("train",))}
    labels = json.loads((out / "labels.json").read_text())
    assert [(each["id"], each["trainId"]) for each in labels] == [(0, 255), (7, 0), (8, 1), (9, 2)]
    colours = np.array([each["color"] for each in labels[1:]])
    for id_, (image, label) in read_index(out).items():
        sample = samples[image.relative_to(out).as_posix()]
        assert out / str(sample.label) == label
        np.testing.assert_array_equal(dataset.read_label(label), expected[id_])
        name = str(label).removesuffix("_labelIds.png")
        np.testing.assert_array_equal(read_ids(Path(f"{name}_labelTrainIds.png")), expected[id_])
        np.testing.assert_array_equal(read_ids(Path(f"{name}_color.png")), colours[expected[id_]])
        assert_pixels(finished, id_, image)
    assert len(samples) == len(expected)


def test_cityscapes_keeps_its_own_names_and_ids(source: Source) -> None:
    dataset = get_dataset("cityscapes")
    own = replace(
        source,
        manifest=replace(source.manifest, dataset="cityscapes"),
        dataset=dataset,
        classes=tuple(zip(dataset.class_names(), dataset.palette, strict=False)),
    )
    named = {label["name"]: label["trainId"] for label in cityscapes.list_labels(own)}
    # the ids of the dataset's own table
    assert (named["road"], named["building"], named["sky"], named["bicycle"]) == (0, 2, 10, 18)
    assert (named["parking"], named["trailer"]) == (255, 255)
    items = source.list_items(nested=True)[:1]
    official = [replace(items[0], name="ulm/ulm_000003_000019")]
    assert list(cityscapes.name_frames(official).values()) == ["ulm/ulm_000003_000019"]
    assert list(cityscapes.name_frames(items).values()) == ["part-0/part-0_000000_000000"]


def test_ignored_pixels(tmp_path: Path, source: Source, expected: Expected) -> None:
    some = replace(source, table=np.where(np.arange(256) == 0, 255, source.table).astype(np.uint8))
    lost = int(source.table[0])
    for module, value in ((coco_stuff, 255), (cityscapes, 0), (coco_panoptic, 0)):
        items = some.list_items(nested=module.NESTED)
        out = tmp_path / module.__name__
        for item, (_, label) in zip(
            items, module.write(Task(some, items, Folder(out), "none", QUIET)), strict=True
        ):
            found = read_ids(out / label)
            gone = expected[item.image.id] == lost
            assert (found[gone] == value).all()
            assert (found[~gone] != value).any(axis=-1).all()


def test_coco_panoptic(tmp_path: Path, export: Export, finished: Path, expected: Expected) -> None:
    masks = pytest.importorskip("pycocotools.mask")
    coco_api = pytest.importorskip("pycocotools.coco")
    out = tmp_path / "out"
    export("coco-panoptic", out)
    content = json.loads((out / "annotations/panoptic_train2017.json").read_text())
    assert [c["name"] for c in content["categories"]] == NAMES
    assert all(c["isthing"] == 0 for c in content["categories"])
    images = {image["id"]: image for image in content["images"]}
    detections = []
    ids = {image.name: id_ for id_, (image, _) in read_index(out).items()}
    for annotation in content["annotations"]:
        image = images[annotation["image_id"]]
        assert (out / "train2017" / image["file_name"]).is_file()
        png = read_ids(out / "annotations/panoptic_train2017" / annotation["file_name"]).astype(int)
        assert png.shape == (image["height"], image["width"], 3)
        segment_ids = png @ (1, 256, 65536)
        assert set(np.unique(segment_ids)) == {s["id"] for s in annotation["segments_info"]}
        for segment in annotation["segments_info"]:
            mask = masks.encode(np.asfortranarray(segment_ids == segment["id"], dtype=np.uint8))
            assert segment["area"] == masks.area(mask)
            assert segment["bbox"] == masks.toBbox(mask).tolist()
            detections.append(
                {
                    **segment,
                    "id": len(detections) + 1,
                    "image_id": image["id"],
                    "segmentation": mask,
                }
            )
    # as panopticapi turns segments into what pycocotools indexes
    api = coco_api.COCO()
    api.dataset = {**content, "annotations": detections}
    api.createIndex()
    assert len(api.getImgIds()) == len(expected)
    for number, image in images.items():
        found = np.full((image["height"], image["width"]), 255)
        for annotation in api.loadAnns(api.getAnnIds(imgIds=[number])):
            found[api.annToMask(annotation) == 1] = annotation["category_id"] - 1
        np.testing.assert_array_equal(found, expected[ids[image["file_name"]]])
        assert_pixels(finished, ids[image["file_name"]], out / "train2017" / image["file_name"])


def test_segments_of_one_colour_are_told_apart() -> None:
    colours = coco_panoptic.part_colours([(0, 0, 0), (153, 153, 153), (153, 153, 153)])
    assert colours == [(0, 0, 1), (153, 153, 153), (153, 153, 154)]
    labels = np.array([[1, 1, 255], [2, 255, 255]], np.uint8)
    first, second = coco_panoptic.describe_segments(labels, colours)
    assert (first["area"], first["bbox"], first["category_id"]) == (2, [0, 0, 2, 1], 2)
    assert (second["area"], second["bbox"], second["category_id"]) == (1, [0, 1, 1, 1], 3)
    assert second["id"] == 153 + 256 * 153 + 65536 * 154


def test_huggingface(
    tmp_path: Path,
    export: Export,
    finished: Path,
    expected: Expected,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    datasets = pytest.importorskip("datasets")
    out = tmp_path / "out"
    export("huggingface", out)
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    rows = loaded["train"]
    assert rows.features["classes"].feature.names == NAMES
    assert isinstance(rows.features["image"], datasets.Image)
    assert {row["id"] for row in rows} == set(expected)
    for row in rows:
        label = np.asarray(row["label"])
        np.testing.assert_array_equal(label, expected[row["id"]])
        assert row["classes"] == sorted(set(label.ravel().tolist()) - {255})
        row["image"].save(tmp_path / "image.png")
        assert_pixels(finished, row["id"], tmp_path / "image.png")
    assert json.loads((out / "id2label.json").read_text())["2"] == "class 2"


def test_huggingface_in_many_files(
    tmp_path: Path, export: Export, expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    from workflows.export import huggingface

    monkeypatch.setattr(huggingface, "SHARD_BYTES", 80_000)
    monkeypatch.setattr(huggingface, "GROUP_BYTES", 1)
    export("huggingface", tmp_path / "out", images="none")
    files = sorted((tmp_path / "out/data").iterdir())
    assert len(files) > 2
    assert files[0].name == f"train-00000-of-{len(files):05d}.parquet"
    assert "image" not in pq.read_schema(files[0]).names
    ids = [row for file in files for row in pq.read_table(file)["id"].to_pylist()]
    assert sorted(ids) == sorted(expected)
    assert pq.ParquetFile(files[0]).num_row_groups == pq.ParquetFile(files[0]).metadata.num_rows


_READ_YOLO = """
import sys
import numpy as np
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset, polygons2masks
data = check_det_dataset(sys.argv[1], autodownload=False)
dataset = YOLODataset(
    img_path=data["train"], data=data, task="segment", augment=False, imgsz=64, prefix=""
)
maps = {}
for row in dataset.labels:
    height, width = row["shape"]
    found = np.full((height, width), 255, np.uint8)
    for number, points in zip(row["cls"][:, 0], row["segments"]):
        mask = polygons2masks((height, width), [(points * (width, height)).ravel()], 1)[0]
        found[mask == 1] = int(number)
    maps[row["im_file"]] = found
np.savez(sys.argv[2], names=list(data["names"].values()), **maps)
"""


def test_yolo_seg(tmp_path: Path, export: Export, expected: Expected) -> None:
    # never into this process: importing it replaces functions of Pillow and torch
    if find_spec("ultralytics") is None:
        pytest.skip("ultralytics is not installed")
    out = tmp_path / "out"
    lines = export("yolo-seg", out)
    assert "fewer than 9 pixels" in lines[2]
    for id_, (image, label) in read_index(out).items():
        assert label.name == f"{image.stem}.txt"
        assert id_ in expected
    quiet = {
        "YOLO_CONFIG_DIR": str(tmp_path / "settings"),
        "YOLO_OFFLINE": "true",
        "YOLO_VERBOSE": "false",
        "YOLO_AUTOINSTALL": "false",
        "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", _READ_YOLO, str(out / "data.yaml"), str(tmp_path / "maps.npz")],
        env=quiet,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    maps = np.load(tmp_path / "maps.npz")
    assert maps["names"].tolist() == NAMES
    for id_, (image, _) in read_index(out).items():
        found = maps[str(image)]
        # nothing but the parts that are too small is missing
        assert (found == expected[id_]).mean() > 0.98
        assert (found == expected[id_])[found != 255].all()


@pytest.mark.parametrize(
    "format_", ["mmseg", "coco-stuff", "cityscapes", "coco-panoptic", "huggingface", "yolo-seg"]
)
def test_two_exports_have_the_same_bytes(tmp_path: Path, export: Export, format_: str) -> None:
    for name in ("one", "two"):
        export(format_, tmp_path / name)
    one, two = hash_tree(tmp_path / "one"), hash_tree(tmp_path / "two")
    assert one == two
    assert {"index.csv", "classes.json", "export.json"} <= set(one)
    with open_folder(tmp_path / "one", read_record(tmp_path / "one")):
        pass
    export(format_, tmp_path / "one")
    assert hash_tree(tmp_path / "one") == one


def read_record(out: Path) -> dict[str, Any]:
    record = json.loads((out / "export.json").read_text())
    return {k: v for k, v in record.items() if k not in ("fingerprint", "finished")}
