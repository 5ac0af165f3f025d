"""The Python API gives what lies in the files, lazily too, and says what is not there."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr
from PIL import Image as Picture

from pipeline import Run
from pipeline.errors import (
    DamageError,
    DatasetError,
    ImageError,
    PipelineError,
    RunError,
    StaleError,
    UsageError,
)
from pipeline.run.directory import RunDirectory
from pipeline.run.manifest import Image, Manifest
from pipeline.run.reader import find_image
from pipeline.storage.files import write_text
from tests.scenes import FAST_EM, Invoke, hash_tree, write_scenes

ID = "part 1/scene 3"


@pytest.fixture(scope="module")
def run(finished: Path) -> Run:
    return Run(finished)


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Run:
    shutil.copytree(finished, tmp_path / "run")
    return Run(tmp_path / "run")


def test_importing_the_package_costs_nothing_and_run_needs_no_torch() -> None:
    script = (
        "import sys, pipeline\n"
        "heavy = {'numpy', 'zarr', 'pyarrow', 'torch', 'dask', 'xarray', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from pipeline import Run\n"
        "late = {'torch', 'dask', 'xarray', 'matplotlib', 'stages'}\n"
        "assert not late & set(sys.modules), late & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(ImportError, match="cannot import name 'Walk'"):
        from pipeline import Walk  # type: ignore[attr-defined]  # noqa: F401


def test_images_and_windows_are_those_of_the_tables(run: Run) -> None:
    table = run.table().to_pydict()
    assert [image.id for image in run.images] == table["id"]
    assert len(run.images) == 9
    assert run.splits == tuple(dict.fromkeys(table["split"]))
    rows = [window.image for window in run.windows()]
    assert sorted(set(rows)) == list(range(9))
    (image,) = (i for i in run.images if i.id == ID)
    assert {w.image for w in run.windows(image=ID)} == {image.image}
    assert (run.fits, run.heads) == (("default",), ())
    assert run.palette.shape == (256, 3)
    assert len(np.unique(run.palette[:30], axis=0)) == 30


def test_arrays_are_those_of_the_stores(run: Run) -> None:
    features = zarr.open_array(run.path / "features.zarr" / "clean", mode="r")[:]
    masks = zarr.open_group(run.path / "masks.zarr", mode="r")
    assert run.views == ("clean", "mirror")
    assert run.features().dtype == np.float16
    np.testing.assert_array_equal(run.features(), features)
    np.testing.assert_array_equal(run.features(run.splits[0]), features)
    np.testing.assert_array_equal(run.proposals(), masks["proposals"][:])
    np.testing.assert_array_equal(run.pooled(), masks["pooled"][:])
    rows = [window.index for window in run.windows(image=ID)]
    np.testing.assert_array_equal(run.features(image=ID), features[rows])
    mirror = zarr.open_array(run.path / "features.zarr" / "mirror", mode="r")[:]
    np.testing.assert_array_equal(run.features(view="mirror", image=ID), mirror[rows])


def test_xarray_is_lazy_labelled_and_equal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run.features()
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.storage.arrays.take_rows", lambda *_: pytest.fail("read too early"))
        lazy = run.features(as_="xarray")
        part = lazy[2:7, ::2, 0, -1]
    assert lazy.dims == ("window", "row", "column", "channel")
    assert len(lazy.chunks[0]) == -(-len(expected) // 6)  # one chunk a shard
    np.testing.assert_array_equal(lazy.values, expected)
    np.testing.assert_array_equal(part.values, expected[2:7, ::2, 0, -1])
    # steps, numbers, rows from anywhere, backwards
    for rows in (slice(1, None, 3), slice(None, None, -1), 4, [7, 0, 7]):
        np.testing.assert_array_equal(lazy.isel(window=rows).values, expected[rows])
    own = lazy.where(lazy.coords["image"] == ID, drop=True)
    np.testing.assert_array_equal(own.values, run.features(image=ID))
    assert lazy.attrs["units"] == "1"
    assert list(lazy.coords["left"].values) == [w.left for w in run.windows()]
    np.testing.assert_array_equal(
        run.proposals(image=ID, as_="xarray").values, run.proposals(image=ID)
    )


def test_label_maps_photographs_and_truth_are_the_files(run: Run, scenes: Path) -> None:
    pixels = np.asarray(Picture.open(scenes / "photographs" / f"{ID}.png"))
    truth = np.asarray(Picture.open(scenes / "labels" / f"{ID}.png"))
    labels = np.asarray(Picture.open(run.path / "labels" / run.splits[0] / f"{ID}.png"))
    np.testing.assert_array_equal(run.photograph(ID), pixels)
    np.testing.assert_array_equal(run.ground_truth(ID), truth)
    np.testing.assert_array_equal(run.labels(ID), labels)
    assert run.labels(ID).dtype == np.uint8
    assert run.find_image(f"{run.splits[0]}/{ID}") == run.find_image(ID)
    for given, expected in (
        (run.photograph(ID, as_="xarray"), pixels),
        (run.ground_truth(ID, as_="xarray"), truth),
        (run.labels(ID, as_="xarray"), labels),
    ):
        assert given.dims[:2] == ("y", "x")
        np.testing.assert_array_equal(given.values, expected)


def test_what_was_learned(run: Run) -> None:
    group = zarr.open_group(run.path / "em.zarr" / "default", mode="r")
    np.testing.assert_array_equal(run.prototypes(), group["momentum_prototypes"][:])
    np.testing.assert_array_equal(run.prototypes(kind="running"), group["prototypes"][:])
    np.testing.assert_array_equal(run.prototypes(as_="xarray").values, run.prototypes())
    metrics = json.loads((run.path / "report" / "metrics.json").read_text())
    assert run.metrics() == metrics


def test_the_matching_makes_classes_whose_score_is_that_of_the_report(run: Run) -> None:
    metrics = run.metrics()
    table = run.matching(run.splits[0])
    assert table[255] == 255
    assert list(table[:3]) == metrics["assignment_crf"]
    right = total = 0
    for image in run.images:
        labels, truth = run.labels(image.id), run.ground_truth(image.id)
        inside = labels != 255
        right += int((table[labels] == truth)[inside].sum())
        total += int(inside.sum())
    # the report counts at the windows' scale
    assert 100 * right / total == pytest.approx(metrics["accuracy_crf"], abs=2)


def test_names_of_clusters_are_the_users_or_the_classes(copied: Run) -> None:
    before = copied.cluster_names()
    assert len(before) == 3
    write_text(copied.directory.names_file("default"), yaml.safe_dump({1: "meadow"}))
    assert copied.cluster_names() == (before[0], "meadow", before[2])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: r.labels("part 1/scene 33"), UsageError, r"did you mean 'part 1/scene 3'\?"),
        (lambda r: r.features("trian"), UsageError, "no split 'trian'; the run has "),
        (lambda r: r.features(view="claen"), UsageError, "did you mean 'clean'"),
        (lambda r: r.features(as_="pandas"), UsageError, "give 'numpy' or 'xarray'"),
        (lambda r: r.labels(ID, em="defualt"), UsageError, "did you mean 'default'"),
        (lambda r: r.labels(ID, head="stego"), UsageError, "primaps-pipe head .* --method stego"),
        (lambda r: r.codes(), RunError, "has no head yet; train one with `primaps-pipe head"),
        (lambda r: r.prototypes(kind="old"), UsageError, "give 'momentum', 'running', 'initial'"),
        (lambda r: r.matching("val"), RunError, "says nothing of split 'val'"),
    ],
)
def test_what_is_not_there_is_said_in_one_sentence(
    run: Run, call: object, error: type[PipelineError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        call(run)  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_a_folder_of_something_else_and_no_folder(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent", str(tmp_path)):
        with pytest.raises(RunError, match=r"is no run directory .* start with `primaps-pipe extr"):
            Run(path)


def test_unfinished_and_stale_stages_are_refused_with_the_command(
    tmp_path: Path, invoke: Invoke, extract_options: list[object]
) -> None:
    place = tmp_path / "my run"
    invoke("extract", place, *extract_options, "--limit", 2)
    run = Run(place)
    assert len(run.features()) == 2 * len(run.windows(image=run.images[0].id))
    with pytest.raises(RunError, match=r"masks has not been run .*`primaps-pipe masks '"):
        run.proposals()
    with pytest.raises(RunError, match="no fit yet; run `primaps-pipe em"):
        run.labels(run.images[0].id)
    invoke("masks", place, "--crf", "none", "--no-progress")
    assert run.proposals().shape[0] == len(run.windows())
    invoke("em", place, "--classes", 2, *FAST_EM, "--no-progress")
    with pytest.raises(RunError, match=r"em/default in .* has not been evaluated; run `primaps-"):
        run.labels(run.images[0].id)
    # the same object sees what has changed on disk meanwhile
    invoke("extract", place, "--limit", 3, "--no-progress")
    assert len(run.images) == 3
    with pytest.raises(StaleError, match=r"extract has changed\); run `primaps-pipe masks"):
        run.proposals()
    assert "stale" in repr(run)


def test_a_rejected_image_has_no_rows(tmp_path: Path, invoke: Invoke) -> None:
    write_scenes(tmp_path / "data", 3)
    broken = tmp_path / "data" / "photographs" / "part 1" / "scene 1.png"
    broken.write_bytes(broken.read_bytes()[:2000])
    options = ("--dataset", "folder", "--root", tmp_path / "data" / "photographs", "--no-progress")
    invoke(
        "extract", tmp_path / "run", *options, "--backbone", "handcrafted", "--size", 64, code=None
    )
    run = Run(tmp_path / "run")
    assert [image.ok for image in run.images].count(False) == 1
    with pytest.raises(ImageError, match=r"image 'part 1/scene 1' was rejected by extract: "):
        run.photograph("part 1/scene 1")
    stored = zarr.open_array(run.path / "features.zarr" / "clean", mode="r")[:]
    rows = [window.index for window in run.windows()]
    assert len(rows) < len(stored)
    np.testing.assert_array_equal(run.features(), stored[rows])
    np.testing.assert_array_equal(run.features(as_="xarray").values, stored[rows])
    with pytest.raises(DatasetError, match="has no label map"):
        run.ground_truth("part 0/scene 0")


def test_damage_is_refused_and_never_read_as_zeros(copied: Run) -> None:
    shard = copied.path / "features.zarr" / "clean" / "c" / "1" / "0" / "0" / "0"
    lazy = copied.features(as_="xarray")
    shard.unlink()
    with pytest.raises(PipelineError):
        copied.features()
    with pytest.raises(PipelineError):
        lazy.compute()
    label = copied.path / "labels" / copied.splits[0] / f"{ID}.png"
    label.write_bytes(label.read_bytes()[:100])
    with pytest.raises(DamageError, match=r"is damaged .* verify .* --repair` makes it again"):
        copied.labels(ID)


def test_a_run_at_a_glance_and_in_other_processes(run: Run) -> None:
    text = repr(run)
    assert text.startswith("Run(")
    for word in ("handcrafted", "64 pixels", "extract, masks, em, evaluate"):
        assert word in text
        assert word in run._repr_html_()
    other = pickle.loads(pickle.dumps(run))
    np.testing.assert_array_equal(other.labels(ID), run.labels(ID))


def test_nothing_is_written(copied: Run) -> None:
    before = hash_tree(copied.path)
    copied.features(as_="xarray").max().compute()
    copied.labels(ID), copied.prototypes(), copied.metrics(), repr(copied)
    assert hash_tree(copied.path) == before


RUN = RunDirectory(Path("runs/mine"))


def make_image(number: int, identity: str, split: str = "train", **changes: Any) -> Image:
    image = Image(number, identity, split, f"{identity}.jpg", None, 4, 3, 1, 0, str(number))
    return replace(image, **changes)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    images = (
        make_image(0, "street/0001"),
        make_image(1, "street/0001", "val", path="held out/street/0001.jpg"),
        make_image(2, "street/0002"),
        make_image(3, "yard/0002"),
        make_image(4, "yard/0003"),
        make_image(5, "broken", state="rejected", reason="not an image"),
    )
    for image in images:
        path = tmp_path / image.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return Manifest("folder", tmp_path, None, images, ())


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("val/street/0001", 1),
        ("train/street/0001", 0),
        ("street/0002", 2),
        ("held out/street/0001.jpg", 1),
        ("0003", 4),
        ("0003.jpg", 4),
    ],
)
def test_an_image_has_many_names(manifest: Manifest, text: str, row: int) -> None:
    assert find_image(RUN, manifest, text).image == row


def test_the_path_of_the_photograph_finds_it(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_image(RUN, manifest, str(tmp_path / "yard/0002.jpg")).image == 3
    monkeypatch.chdir(tmp_path / "street")
    assert find_image(RUN, manifest, "../yard/0002.jpg").image == 3
    (tmp_path / "link.jpg").symlink_to(tmp_path / "yard/0002.jpg")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        find_image(RUN, manifest, str(tmp_path / "elsewhere" / "0009.jpg"))


def test_an_ambiguous_name_lists_the_choices(manifest: Manifest) -> None:
    with pytest.raises(UsageError, match="train/street/0001, val/street/0001: give one of these"):
        find_image(RUN, manifest, "street/0001")
    with pytest.raises(UsageError, match="train/street/0002, train/yard/0002"):
        find_image(RUN, manifest, "0002")


def test_many_choices_are_cut_short(tmp_path: Path) -> None:
    images = tuple(make_image(i, f"{i}/a") for i in range(11))
    with pytest.raises(UsageError, match=r"train/7/a and 3 more: give one"):
        find_image(RUN, Manifest("folder", tmp_path, None, images, ()), "a")


@pytest.mark.parametrize(
    ("text", "meant"),
    [("street/002", "street/0002"), ("yrad/0003", "yard/0003"), ("val/stret/0001", "val/street/")],
)
def test_a_slip_of_the_pen_is_understood(manifest: Manifest, text: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean '{meant}"):
        find_image(RUN, manifest, text)


def test_something_else_entirely_is_told_the_ways(manifest: Manifest) -> None:
    with pytest.raises(UsageError, match="such as 'street/0001', split/id, or the photograph's"):
        find_image(RUN, manifest, "zzzzzzzz")
    with pytest.raises(UsageError, match="no images at all"):
        find_image(RUN, Manifest("folder", Path(), None, (), ()), "a")


def test_a_rejected_image_says_why(manifest: Manifest) -> None:
    with pytest.raises(
        ImageError, match=r"'broken' was rejected by .*: not an image; .*broken.jpg"
    ):
        find_image(RUN, manifest, "broken")
