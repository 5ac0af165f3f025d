"""What is exported, what is refused, and what becomes of an export that was broken off."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import DamageError, RunError, StaleError, UsageError
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from tests.scenes import Invoke, hash_tree
from tests.workflows.export.conftest import Export
from workflows.export import FORMATS, job
from workflows.export.folder import Folder
from workflows.export.job import (
    Source,
    describe_ids,
    make_safe,
    make_unique,
    name_images,
    name_splits,
    open_source,
    warn_of_names,
)


def list_loaded(code: str) -> set[str]:
    code += "; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_formats_are_known_without_loading_anything() -> None:
    assert not {"torch", "numpy", "pydantic"} & list_loaded("import workflows.export")
    assert next(iter(FORMATS)) == "mmseg"


def test_label_maps_are_exported_without_torch() -> None:
    code = "import workflows.export.job, workflows.export.mmseg, workflows.export.yolo_seg"
    assert not {"torch", "numba", "zarr"} & list_loaded(code)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format_": "mmsek"}, r"--format 'mmsek': no such \(did you mean 'mmseg'\?\)"),
        ({"ids": "cluster"}, r"--ids 'cluster': no such \(did you mean 'clusters'\?\)"),
        ({"images": "move"}, "--images 'move': no such"),
        ({"splits": ("trian",)}, r"--split 'trian': em/default was evaluated on all"),
        ({"em": "none"}, "--em 'none': the run has default"),
        ({"format_": "huggingface", "images": "link"}, "take copy or none"),
    ],
)
def test_wrong_options(
    export: Export, tmp_path: Path, options: dict[str, object], words: str
) -> None:
    format_ = str(options.pop("format_", "mmseg"))
    with pytest.raises(UsageError, match=words):
        export(format_, tmp_path / "out", **options)
    assert not (tmp_path / "out" / "index.csv").exists()


def test_a_fit_that_was_not_evaluated(
    export: Export, copied: Path, tmp_path: Path, invoke: Invoke
) -> None:
    invoke(
        "em",
        copied,
        "--classes",
        2,
        "--name",
        "k2",
        "--method",
        "kmeans",
        "--init-steps",
        4,
        "--no-progress",
    )
    with pytest.raises(RunError, match=r"`primaps-pipe evaluate '.*' --em k2` first"):
        export("mmseg", tmp_path / "out", run=copied, em="k2")
    with pytest.raises(RunError, match="has not been evaluated"):
        export("prototypes", tmp_path / "out", run=copied, em="k2")


def test_stale_labels(export: Export, copied: Path, tmp_path: Path, invoke: Invoke) -> None:
    invoke("em", copied, "--classes", 2, "--epochs", 1, "--no-progress")
    with pytest.raises(
        StaleError, match=r"evaluate/default is stale .* run `primaps-pipe evaluate"
    ):
        export("mmseg", tmp_path / "out", run=copied)


def test_no_run(export: Export, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run directory"):
        export("mmseg", tmp_path / "out", run=tmp_path)


def test_not_into_a_run(export: Export, copied: Path) -> None:
    with pytest.raises(UsageError, match="lies in the run"):
        export("mmseg", copied / "export", run=copied)


def test_clusters_instead_of_classes(
    export: Export, copied: Path, tmp_path: Path, finished: Path
) -> None:
    (copied / "names.yaml").write_text("1: meadow\n")
    lines = export("mmseg", tmp_path / "out", run=copied, ids="clusters")
    assert lines[0].startswith("export: label maps hold the 3 clusters of em/default; 255 = ignore")
    classes = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert classes["ids"] == "clusters"
    assert [each["name"] for each in classes["classes"]][1] == "meadow"
    for path in (finished / "labels" / "all").rglob("*.png"):
        part, name = path.parts[-2:]
        there = tmp_path / "out/ann_dir/train" / part.replace(" ", "_") / name.replace(" ", "_")
        np.testing.assert_array_equal(np.asarray(Image.open(there)), np.asarray(Image.open(path)))


def open_with(run: Path, names: str, ids: str = "auto", **metrics: object) -> Source:
    """Open a run whose clusters have names, and other figures."""
    (run / "names.yaml").write_text(names)
    file = run / "report" / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | metrics))
    return open_source(RunDirectory(run), em=None, head=None, splits=(), ids=ids)


def test_clusters_of_one_name_are_one_class(copied: Path) -> None:
    opened = open_with(copied, "0: meadow\n2: meadow\n1: ignore\n", "clusters")
    assert opened.names == ["meadow"]
    assert opened.table[:4].tolist() == [0, 255, 0, 255]
    line = describe_ids(opened)
    assert "hold 1 class, the 3 clusters of em/default by their names; 255 = ignore" in line
    assert line.endswith("among it the clusters without a class (1)")
    opened = open_with(copied, "1: meadow\n2: meadow\n", "clusters")
    assert opened.table[:4].tolist() == [0, 1, 1, 255]
    assert len(opened.classes) == 2
    with pytest.raises(UsageError, match=r"nothing is left to export; look at .*names\.yaml"):
        open_with(copied, "0: ignore\n1: ignore\n2: ignore\n", "clusters")


def test_a_person_is_heard_before_the_matching(copied: Path) -> None:
    plain = open_with(copied, "")
    first, second, third = plain.table[:3].tolist()
    named = open_with(copied, f"0: {plain.names[second]}\n2: ignore\n")
    assert named.ids == "classes" and named.classes == plain.classes
    assert named.table[:3].tolist() == [second, second, 255]
    # what the report shows as a class is exported as it
    look = named.evaluation.look()
    assert [look.colours[k] for k in (0, 1)] == [named.colours[second]] * 2
    assert third != 255 and first != second


WEAK = {
    "class_names": ["car", "bicyclist", "road"],
    "assignment_crf": [0, 1, 2],
    "confusion_crf": [[500, 20, 0], [400, 5, 0], [0, 0, 900]],
}


def test_a_cluster_that_is_hardly_its_class_is_named(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_with(copied, "", **WEAK)
    assert opened.table[:3].tolist() == [0, 1, 2]
    warn_of_names(opened.evaluation, opened.ids, Screen(progress=False))
    said = " ".join(capsys.readouterr().err.split())
    # IoU: 5 of 20 + 5 + 400 pixels
    assert "1 of 3 clusters are called by a class" in said
    assert "cluster 1 is called bicyclist (IoU 1.2 %; 99 % of its pixels are car)" in said
    assert "--ids majority" in said
    majority = open_with(copied, "", "majority")
    assert majority.table[:3].tolist() == [0, 0, 2]
    assert majority.names == ["car", "bicyclist", "road"]
    assert "assigned by the majority of their pixels" in describe_ids(majority)
    warn_of_names(majority.evaluation, majority.ids, Screen(progress=False))
    named = open_with(copied, "1: lorry\n", **WEAK)
    warn_of_names(named.evaluation, "clusters", Screen(progress=False))
    assert not capsys.readouterr().err
    warn_of_names(named.evaluation, "classes", Screen(progress=False))
    said = " ".join(capsys.readouterr().err.split())
    assert "names that are no class of the dataset (lorry)" in said
    assert "bicyclist" not in said


def test_clusters_without_a_class_are_ignored(copied: Path) -> None:
    file = copied / "report" / "metrics.json"
    metrics = json.loads(file.read_text())
    metrics["assignment_crf"] = [1, None, 2]
    file.write_text(json.dumps(metrics))
    opened = open_source(RunDirectory(copied), em=None, head=None, splits=(), ids="auto")
    assert opened.ids == "classes"
    assert opened.table[:4].tolist() == [1, 255, 2, 255]
    assert "among it the clusters without a class (1)" in describe_ids(opened)


def test_without_labels_there_are_clusters_only(copied: Path) -> None:
    file = copied / "report" / "metrics.json"
    metrics = json.loads(file.read_text()) | {
        "assignment": None,
        "assignment_crf": None,
        "class_names": [],
    }
    file.write_text(json.dumps(metrics))
    run = RunDirectory(copied)
    assert open_source(run, em=None, head=None, splits=(), ids="auto").ids == "clusters"
    with pytest.raises(UsageError, match="take --ids clusters"):
        open_source(run, em=None, head=None, splits=(), ids="classes")


def test_a_damaged_label_map(export: Export, copied: Path, tmp_path: Path) -> None:
    path = next((copied / "labels" / "all").rglob("*.png"))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DamageError, match=r"is damaged .* verify .* --repair` makes it again"):
        export("mmseg", tmp_path / "out", run=copied)


def test_links(export: Export, tmp_path: Path, scenes: Path) -> None:
    export("mmseg", tmp_path / "out", images="link")
    linked = [p for p in (tmp_path / "out/img_dir").rglob("*") if p.is_symlink()]
    assert len(linked) == 9
    assert all(p.resolve().is_relative_to(scenes) for p in linked)


@pytest.mark.parametrize("format_", ["mmseg", "cityscapes", "coco-panoptic", "huggingface"])
def test_an_export_that_was_broken_off_goes_on(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str
) -> None:
    export(format_, tmp_path / "whole")
    left = [5]

    def read_labels(self: job.Source, image: object) -> np.ndarray:
        left[0] -= 1
        if left[0] < 0:
            raise RunError("no space left.")
        return read(self, image)  # type: ignore[arg-type]

    read = job.Source.read_labels
    monkeypatch.setattr(job.Source, "read_labels", read_labels)
    with pytest.raises(RunError, match="no space left"):
        export(format_, tmp_path / "out")
    assert not (tmp_path / "out" / "index.csv").exists()
    assert json.loads((tmp_path / "out/export.json").read_text())["finished"] is False
    before = hash_tree(tmp_path / "out")
    monkeypatch.undo()
    written = []
    write = Folder.write
    monkeypatch.setattr(
        Folder,
        "write",
        lambda self, name, content: (written.append(name), write(self, name, content))[1],
    )
    export(format_, tmp_path / "out")
    assert hash_tree(tmp_path / "out") == hash_tree(tmp_path / "whole")
    assert not set(before) & {name for name in written if not name.endswith((".json", ".csv"))}


def test_another_export_does_not_mix_in(export: Export, tmp_path: Path) -> None:
    export("mmseg", tmp_path / "out")
    before = hash_tree(tmp_path / "out")
    with pytest.raises(RunError, match="holds another export"):
        export("coco-stuff", tmp_path / "out")
    with pytest.raises(RunError, match="holds another export"):
        export("mmseg", tmp_path / "out", ids="clusters")
    assert hash_tree(tmp_path / "out") == before
    shutil.rmtree(tmp_path / "out")


PART = st.text(min_size=1, max_size=12).filter(lambda text: "/" not in text)
IDS = st.lists(
    st.lists(PART, min_size=1, max_size=3).map("/".join), min_size=1, max_size=8, unique=True
)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("scene 1", "scene_1"),
        ("größe", "größe"),
        (".hidden", "_.hidden"),
        ("-rf", "_-rf"),
        ("..", "_"),
        ("con", "_con"),
        ("aux.old", "_aux.old"),
        ("a\n;$(rm)", "a_rm_"),
        ("ends.", "ends"),
    ],
)
def test_safe_parts(text: str, name: str) -> None:
    assert make_safe(text) == name


def test_long_names_end_in_a_digest_of_the_whole() -> None:
    first, second = make_safe("é" * 200 + "1"), make_safe("é" * 200 + "2")
    assert first != second
    assert len(first.encode()) <= 160


def test_folders_are_kept_or_become_parts_of_the_name() -> None:
    assert name_images(["part 0/scene"], nested=True) == {"part 0/scene": "part_0/scene"}
    assert name_images(["part 0/scene"], nested=False) == {"part 0/scene": "part_0__scene"}


def test_names_that_would_meet_are_told_apart() -> None:
    names = name_images(["a b", "a_b", "A_B", "c"], nested=True)
    assert len({name.casefold() for name in names.values()}) == 4
    assert names["c"] == "c"


@given(ids=IDS, nested=st.booleans())
def test_no_two_images_share_a_name(ids: list[str], nested: bool) -> None:
    names = name_images(ids, nested=nested)
    assert len({name.casefold() for name in names.values()}) == len(ids)
    assert names == name_images(sorted(ids, reverse=True), nested=nested)
    for name in names.values():
        assert nested or "/" not in name
        for part in name.split("/"):
            assert part not in ("", ".", "..")
            assert part[0] not in ".-"
            assert len(part.encode()) < 200


def test_everything_is_what_is_trained_on() -> None:
    assert name_splits(["all"]) == {"all": "train"}
    assert name_splits(["all", "train"]) == {"all": "all", "train": "train"}
    assert name_splits(["my split", "my-split"]) != {"my split": "my_split", "my-split": "my_split"}
    assert len(set(name_splits(["my split", "my-split"]).values())) == 2


def test_names_that_occur_again_are_numbered() -> None:
    assert make_unique(["car", "car", "car (2)", "car"]) == [
        "car",
        "car (2)",
        "car (2) (2)",
        "car (3)",
    ]
