"""The demo's photographs: the drawings fit them, and writing them twice changes nothing."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.compute.scheduler import Execution
from pipeline.errors import DatasetError, PipelineError, WeightsError
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.settings import StageSettings
from workflows import demo
from workflows.demo import (
    IGNORE,
    UNLABELLED,
    Drawings,
    Photograph,
    PhotographSet,
    Region,
    draw_labels,
    find_photograph,
    read_drawings,
    write_photographs,
)

DRAWINGS = read_drawings()
CLASSES, PHOTOGRAPHS = DRAWINGS.classes, DRAWINGS.photographs
NAMES = [each.name for each in CLASSES]
SMALL = replace(PHOTOGRAPHS[0], size=(6, 4), crops={}, regions=())

each_photograph = pytest.mark.parametrize("photograph", PHOTOGRAPHS, ids=lambda each: each.name)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> PhotographSet:
    return write_photographs(tmp_path_factory.mktemp("demo with a spacé"))


def label_of(written: PhotographSet, image: Path) -> np.ndarray:
    with Image.open(written.labels / f"{image.stem}.png") as label:
        assert label.mode == "P"
        return np.asarray(label)


def images_of(written: PhotographSet) -> list[Path]:
    return sorted(written.images.iterdir())


@each_photograph
def test_polygons_and_crops_lie_in_their_photograph(photograph: Photograph) -> None:
    width, height = photograph.size
    for region in photograph.regions:
        points = np.asarray(region.polygon)
        assert len(points) >= 3
        assert points.min() >= 0
        assert (points < [width, height]).all()
    for left, top, right, bottom in photograph.crops.values():
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert min(right - left, bottom - top) >= 224


@each_photograph
def test_names_sources_and_classes_of_a_photograph(photograph: Photograph) -> None:
    assert photograph.source
    assert {region.label for region in photograph.regions} <= {*NAMES, UNLABELLED}
    with Image.open(find_photograph(photograph)) as image:
        assert image.size == photograph.size


def test_classes_have_names_and_colours_of_their_own() -> None:
    assert 6 <= len({each.name for each in CLASSES}) == len(CLASSES) <= 9
    assert len({each.colour for each in CLASSES}) == len(CLASSES)


def test_every_image_has_labels_of_its_size_and_ids_in_range(written: PhotographSet) -> None:
    images = images_of(written)
    assert len(images) == sum(1 + len(each.crops) for each in PHOTOGRAPHS)
    assert len({image.stem for image in images}) == len(images)
    for path in images:
        label = label_of(written, path)
        with Image.open(path) as image:
            assert label.shape == image.size[::-1]
        assert set(np.unique(label)) <= {*range(len(written.class_names)), IGNORE}
    assert {path.stem for path in written.labels.glob("*.png")} == {path.stem for path in images}


def test_labels_cover_most_of_every_image(written: PhotographSet) -> None:
    covered = {path.name: (label_of(written, path) != IGNORE).mean() for path in images_of(written)}
    assert {name for name, share in covered.items() if share < 0.6} == set()


def test_every_class_is_in_two_images_at_least(written: PhotographSet) -> None:
    counts: Counter[int] = Counter()
    for path in images_of(written):
        ids, pixels = np.unique(label_of(written, path), return_counts=True)
        counts.update(ids[pixels >= 500].tolist())
    assert all(counts[index] >= 2 for index in range(len(written.class_names)))


def test_class_names_and_palette_are_written(written: PhotographSet) -> None:
    lines = (written.labels / "classes.txt").read_text(encoding="utf-8").splitlines()
    assert tuple(lines) == written.class_names == tuple(each.name for each in CLASSES)
    with Image.open(written.labels / "chelsea.png") as label:
        palette = np.asarray(label.getpalette()).reshape(-1, 3)
    assert palette[: len(CLASSES)].tolist() == [list(each.colour) for each in CLASSES]


@pytest.mark.parametrize(
    ("name", "at", "expected"),
    [
        ("astronaut", (220, 100), "person"),
        ("astronaut", (330, 60), "construction"),
        ("astronaut", (420, 100), "vehicle"),
        ("camera", (100, 300), "person"),
        ("camera", (420, 160), "construction"),
        ("camera", (450, 400), "plant"),
        ("chelsea", (200, 150), "animal"),
        ("china", (200, 220), "construction"),
        ("china", (500, 60), "sky"),
        ("china", (450, 380), "plant"),
        ("coffee", (280, 150), "tableware"),
        ("coffee", (550, 50), "furniture"),
        ("motorcycle_left", (420, 200), "vehicle"),
        ("motorcycle_left", (100, 450), "ground"),
        ("motorcycle_right", (370, 200), "vehicle"),
        ("motorcycle_right", (600, 60), "furniture"),
        ("rocket", (322, 250), "vehicle"),
        ("rocket", (250, 100), "sky"),
    ],
)
def test_known_points(name: str, at: tuple[int, int], expected: str) -> None:
    photograph = next(each for each in PHOTOGRAPHS if each.name == name)
    assert CLASSES[draw_labels(photograph, CLASSES).getpixel(at)].name == expected


def test_later_polygons_are_painted_over_earlier_ones() -> None:
    below = Region(NAMES[1], ((0, 0), (3, 0), (3, 3), (0, 3)))
    above = Region(NAMES[2], ((2, 1), (4, 1), (4, 2), (2, 2)))
    hole = Region(UNLABELLED, ((0, 0), (0, 0), (0, 0)))
    label = np.asarray(draw_labels(replace(SMALL, regions=(below, above, hole)), CLASSES))
    assert label.tolist() == [
        [255, 1, 1, 1, 255, 255],
        [1, 1, 2, 2, 2, 255],
        [1, 1, 2, 2, 2, 255],
        [1, 1, 1, 1, 255, 255],
    ]


def test_a_crop_is_the_same_pixels_of_image_and_labels(written: PhotographSet) -> None:
    photograph = next(each for each in PHOTOGRAPHS if each.name == "china")
    name, box = next(iter(photograph.crops.items()))
    left, top, right, bottom = box
    with Image.open(find_photograph(photograph)) as whole:
        expected = np.asarray(whole)[top:bottom, left:right]
    path = written.images / f"china_{name}.png"
    with Image.open(path) as crop:
        np.testing.assert_array_equal(np.asarray(crop), expected)
    whole_label = np.asarray(draw_labels(photograph, CLASSES))
    np.testing.assert_array_equal(label_of(written, path), whole_label[top:bottom, left:right])


def test_whole_photographs_are_copied_byte_for_byte(written: PhotographSet) -> None:
    for photograph in PHOTOGRAPHS:
        path = find_photograph(photograph)
        copy = written.images / f"{photograph.name}{path.suffix}"
        assert copy.read_bytes() == path.read_bytes()


def test_writing_again_touches_only_what_differs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = tuple(each for each in PHOTOGRAPHS if each.name in ("chelsea", "china"))
    monkeypatch.setattr(demo, "read_drawings", lambda: Drawings(CLASSES, kept))
    first = write_photographs(tmp_path)
    files = [path for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    assert len(files) == 2 * sum(1 + len(each.crops) for each in kept) + 1
    content = {path: path.read_bytes() for path in files}
    times = {path: path.stat().st_mtime_ns for path in files}
    inodes = {path: path.stat().st_ino for path in files}
    spoiled = first.labels / "china.png"
    spoiled.write_bytes(b"half a file")

    assert write_photographs(tmp_path) == first

    assert [path for path in sorted(tmp_path.rglob("*")) if path.is_file()] == files
    assert {path: path.read_bytes() for path in files} == content
    for path in set(files) - {spoiled}:
        assert path.stat().st_mtime_ns == times[path]
        assert path.stat().st_ino == inodes[path]


def test_a_missing_photograph_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gone = replace(PHOTOGRAPHS[0], file="data/no such photograph.png")
    monkeypatch.setattr(demo, "read_drawings", lambda: Drawings(CLASSES, (gone,)))
    with pytest.raises(DatasetError, match=r"astronaut is not in the installed scikit-image"):
        write_photographs(tmp_path)
    assert issubclass(DatasetError, PipelineError)


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(DatasetError, match=r"run `pip install scikit-image`"):
        find_photograph(PHOTOGRAPHS[0])


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "cannot be read"), (None, r"has 5 x 5 pixels")]
)
def test_another_file_than_the_one_drawn_on_is_refused(
    content: bytes | None, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "astronaut.png"
    if content is None:
        Image.new("RGB", (5, 5)).save(path)
    else:
        path.write_bytes(content)
    monkeypatch.setattr(demo, "find_photograph", lambda photograph: path)
    with pytest.raises(DatasetError, match=message):
        write_photographs(tmp_path / "demo")


def test_the_packages_themselves_are_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from workflows.demo import find_photograph, read_drawings\n"
        "[find_photograph(each) for each in read_drawings().photographs]\n"
        "sys.exit(bool({'skimage', 'sklearn'} & set(sys.modules)))"
    )
    root = Path(demo.__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=False)
    assert done.returncode == 0


def test_offline_it_goes_on_handcrafted_and_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backbones = []

    def run_recipe(run: RunDirectory, settings: dict[str, StageSettings], *_: Any) -> Path:
        backbones.append(settings["extract"].model_dump()["backbone"])
        if len(backbones) == 1:
            raise WeightsError("no source answers.")
        return run.path / "report" / "index.html"

    monkeypatch.setattr(demo, "run_recipe", run_recipe)
    report = demo.run_demo(RunDirectory(tmp_path / "run"), Execution(), Screen())
    assert backbones == ["vit_small_patch14_dinov2.lvd142m", "handcrafted"]
    assert report.name == "index.html"
    screen = capsys.readouterr().err
    assert "no source answers" in screen
    assert "hand-crafted" in screen
