"""What annotation tools can also write: other shapes, other names, and what is wrong."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.images.decoding import encode_png
from pipeline.progress import Screen
from pipeline.run.corrections import NOT_SAID
from tests.workflows.correct.conftest import Tool
from workflows.brush import encode_brush
from workflows.correct import coco, cvat, datumaro, fiftyone, label_studio, labelme
from workflows.correct.job import Source
from workflows.export.job import Source as Exported

Given = Callable[[Path], Source]
# an image of the shared run: "part 0/scene 0"
NAME, WIDTH, HEIGHT = "part_0__scene_0", 130, 100


class Told(Screen):
    """Keeps the warnings."""

    def __init__(self) -> None:
        super().__init__(progress=False)
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def given(source: Exported) -> Given:
    """Give a place to a reader."""
    return lambda place: Source(place, source.evaluation.run, None, None, None, Told())


def draw(reader: ModuleType, source: Source) -> np.ndarray:
    """Read the one image of a place; give the name of every pixel, "-" where nothing is said."""
    (said,) = reader.read(source)
    assert (said.image.id, source.faults, source.strays) == ("part 0/scene 0", [], [])
    table = np.full(256, "?", object)
    table[[NOT_SAID, 255]] = "-", "ignore"
    table[: len(said.names)] = said.names
    return table[said.map]


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def square(left: int, top: int, size: int) -> list[float]:
    right, bottom = left + size, top + size
    return [left, top, right, top, right, bottom, left, bottom]


def make_coco(*annotations: dict[str, Any], **image: Any) -> dict[str, Any]:
    described = {"id": 5, "file_name": f"{NAME}.jpg", "width": WIDTH, "height": HEIGHT}
    return {
        "images": [described | image, {"id": 6, "file_name": "empty.jpg"}],
        "categories": [{"id": 1, "name": "road"}, {"id": 2, "name": "ignore"}],
        "annotations": [{"image_id": 5, "category_id": 1, **each} for each in annotations],
    }


def test_coco_of_polygons_runs_and_boxes(tmp_path: Path, given: Given) -> None:
    counts = [10 * HEIGHT, HEIGHT, (WIDTH - 11) * HEIGHT]
    content = make_coco(
        {"segmentation": [square(20, 30, 10), square(40, 30, 5)]},
        {"segmentation": {"counts": counts, "size": [HEIGHT, WIDTH]}, "iscrowd": 1},
        {"segmentation": [], "bbox": [50, 60, 7, 8]},
        {"segmentation": [square(25, 35, 5)], "category_id": 2},
    )
    names = draw(coco, given(write_json(tmp_path / "instances_default.json", content)))
    expected = np.full((HEIGHT, WIDTH), "-", object)
    expected[30:40, 20:30] = expected[30:35, 40:45] = expected[:, 10] = "road"
    expected[60:68, 50:57] = "road"
    # the later lies above
    expected[35:40, 25:30] = "ignore"
    np.testing.assert_array_equal(names, expected)


def make_task(
    *regions: dict[str, Any], image: str = f"/data/local-files/?d=images/train/{NAME}.jpg"
) -> dict[str, Any]:
    size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    annotation = {"was_cancelled": False, "result": [{**size, **each} for each in regions]}
    return {"id": 1, "data": {"image": image}, "annotations": [annotation]}


def test_label_studio_of_brushes_polygons_and_rectangles(tmp_path: Path, given: Given) -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:9, 3:8] = True
    brush = {"format": "rle", "rle": encode_brush(mask), "brushlabels": ["road"]}
    points = [[10, 20], [20, 20], [20, 40], [10, 40]]
    rectangle = {"x": 50, "y": 50, "width": 10, "height": 10, "rotation": 0}
    task = make_task(
        {"type": "polygonlabels", "value": {"points": points, "polygonlabels": ["sky"]}},
        {"type": "brushlabels", "value": brush},
        {"type": "rectanglelabels", "value": {**rectangle, "rectanglelabels": ["ignore"]}},
        {"type": "keypointlabels", "value": {}},
        image=f"/data/upload/7/0a1b2c3d-{NAME}.jpg",
    )
    cancelled = {"was_cancelled": True, "result": [{"type": "none"}]}
    task["annotations"].append(cancelled)
    open_task = {"id": 2, "data": {"image": "x.jpg"}, "annotations": [], "predictions": []}
    source = given(write_json(tmp_path / "project.json", [task, open_task]))
    names = draw(label_studio, source)
    expected = np.full((HEIGHT, WIDTH), "-", object)
    expected[20:40, 13:26] = "sky"
    expected[mask] = "road"
    expected[50:60, 65:78] = "ignore"
    np.testing.assert_array_equal(names, expected)
    one, two = source.screen.warnings  # type: ignore[attr-defined]
    assert "nobody has submitted 1 task " in one
    assert two.endswith(
        "1 shape in " + str(source.place) + " are no areas, and are left out: 1 keypointlabels"
    )


def make_labelme(*shapes: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": "5.4.1",
        "flags": {},
        "imagePath": f"{NAME}.png",
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
        "shapes": list(shapes),
    }


def test_labelme_draws_as_labelme(tmp_path: Path, given: Given, tool: Tool) -> None:
    shapes = [
        {"label": "a", "shape_type": "polygon", "points": [[3.2, 4.7], [60.1, 9.9], [31.5, 70.5]]},
        {"label": "b", "shape_type": "rectangle", "points": [[50.4, 60.6], [20.5, 30.5]]},
        {"label": "c", "shape_type": "circle", "points": [[90, 50], [100.5, 55]]},
        {"label": "a", "shape_type": "polygon", "points": [[0, 0], [20, 0], [20, 20], [0, 20]]},
    ]
    place = write_json(tmp_path / f"{NAME}.json", make_labelme(*shapes))
    names = draw(labelme, given(place))
    tool("labelme", "shapes", place, tmp_path / "drawn.npy")
    drawn = np.load(tmp_path / "drawn.npy")
    np.testing.assert_array_equal(names, np.array(["-", "a", "b", "c"], object)[drawn])


def test_the_number_of_a_cluster_says_nothing(tmp_path: Path, given: Given) -> None:
    whole = {"shape_type": "rectangle", "points": [[0, 0], [WIDTH - 1, HEIGHT - 1]]}
    shapes = [{**whole, "label": "sky"}, {**whole, "label": "cluster 12"}]
    source = given(write_json(tmp_path / f"{NAME}.json", make_labelme(*shapes)))
    assert (draw(labelme, source) == "-").all()
    assert source.unnamed == {"cluster 12"}


def test_labelme_says_what_is_no_area(tmp_path: Path, given: Given) -> None:
    point = {"label": "a", "shape_type": "point", "points": [[1, 1]]}
    left = {"label": "__ignore__", "shape_type": "rectangle", "points": [[0, 0], [1, 1]]}
    source = given(write_json(tmp_path / f"{NAME}.json", make_labelme(point, left)))
    names = draw(labelme, source)
    assert (names == "ignore").sum() == 4
    assert "1 shape" in source.screen.warnings[0]  # type: ignore[attr-defined]


def make_mask(folder: Path, pixels: np.ndarray, labelmap: str) -> Path:
    path = folder / "SegmentationClass" / f"{NAME}.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(encode_png(pixels))
    (folder / "labelmap.txt").write_text(labelmap)
    return folder


def test_cvat_of_grey_values(tmp_path: Path, given: Given) -> None:
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[0], pixels[1] = 1, 2
    names = draw(
        cvat,
        given(make_mask(tmp_path, pixels, "background:0,0,0::\nroad:1,2,3::\nignore:4,5,6::\n")),
    )
    assert [*names[:3, 0]] == ["road", "ignore", "-"]


def test_datumaro_has_an_order(tmp_path: Path, given: Given) -> None:
    shapes = [
        {"type": "polygon", "label_id": 1, "points": square(0, 0, 10), "z_order": 2},
        {"type": "bbox", "label_id": 0, "bbox": [0, 0, 20, 20], "z_order": 1},
        {"type": "caption", "caption": "a scene"},
    ]
    content = {
        "dm_format_version": "1.0",
        "categories": {"label": {"labels": [{"name": "under"}, {"name": "above"}]}},
        "items": [{"id": NAME, "annotations": shapes, "image": {"size": [HEIGHT, WIDTH]}}],
    }
    names = draw(datumaro, given(write_json(tmp_path / "default.json", content)))
    assert (names == "above").sum() == 100
    assert (names == "under").sum() == 300


BRUSH = {"type": "brushlabels", "value": {"rle": [1], "brushlabels": ["a"]}}
MASK = {"shape_type": "mask", "label": "a", "points": [[0, 0], [1, 1]], "mask": "AAAA"}
BROKEN: list[tuple[ModuleType, object, str]] = [
    (coco, "{", "is not JSON"),
    (coco, [], "holds no JSON with `images`"),
    (coco, make_coco({"category_id": 9, "bbox": [0, 0, 1, 1]}), "9 is missing"),
    (coco, make_coco({"bbox": [0, 0]}), "not enough values"),
    (coco, make_coco({"segmentation": [[1, 2, 3, 4]]}), "fewer than three points"),
    (coco, make_coco({"segmentation": {"counts": [3], "size": [HEIGHT, WIDTH]}}), "run lengths"),
    (
        coco,
        make_coco({"segmentation": {"counts": "0PRW1", "size": [HEIGHT, WIDTH]}}),
        "Invalid RLE",
    ),
    (coco, make_coco({"bbox": [0, 0, 1, 1]}, width=7), f"7 x {HEIGHT}, the image {WIDTH} x"),
    (datumaro, {"items": []}, "'categories' is missing"),
    (datumaro, {}, "holds no JSON with `items`"),
    (label_studio, {}, "is no list of tasks"),
    (label_studio, [{"image": "x"}], "not JSON-MIN"),
    (label_studio, [make_task() | {"annotations": [{"result": []}] * 2}], "has 2 annotations"),
    (label_studio, [make_task({**BRUSH, "value": {"rle": [1]}})], "'brushlabels' is missing"),
    (label_studio, [make_task(BRUSH)], "cut off"),
    (label_studio, [make_task({**BRUSH, "original_width": 3})], "3 x"),
    (labelme, {}, "holds no JSON with `shapes`"),
    (labelme, "[", "is not JSON"),
    (labelme, make_labelme(MASK), "a mask cannot be read"),
    (labelme, make_labelme({**MASK, "shape_type": "polygon"}), "has 2 points"),
    (labelme, make_labelme({**MASK, "shape_type": "rectangle", "label": 3}), "3 is no name"),
    (labelme, make_labelme() | {"shapes": [{}], "imageWidth": 1}, "it is 1 x"),
]


@pytest.mark.parametrize(("reader", "content", "sentence"), BROKEN)
def test_what_is_wrong_is_one_sentence(
    tmp_path: Path, given: Given, reader: ModuleType, content: object, sentence: str
) -> None:
    place = tmp_path / f"{NAME}.json"
    place.write_text(content if isinstance(content, str) else json.dumps(content))
    source = given(place)
    try:
        found = list(reader.read(source))
        assert not found
        (told,) = source.faults
    except PipelineError as error:
        told = str(error)
    assert sentence in told
    assert str(place) in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("labelmap", "value", "sentence"),
    [
        ("road:1,2,3::\n", 9, "no label of the colour #090909"),
        ("road:1,2::\n", 1, "not enough values"),
        ("road:1,2,3::\ncar:1,2,3::\n", 1, "two labels have one colour"),
    ],
)
def test_a_wrong_mask_of_cvat(
    tmp_path: Path, given: Given, labelmap: str, value: int, sentence: str
) -> None:
    pixels = np.full((HEIGHT, WIDTH, 3), value, np.uint8)
    source = given(make_mask(tmp_path, pixels, labelmap))
    try:
        assert not list(cvat.read(source))
        (told,) = source.faults
    except PipelineError as error:
        told = str(error)
    assert sentence in told


def test_places_that_hold_nothing(tmp_path: Path, given: Given) -> None:
    broken = tmp_path / "broken.zip"
    with zipfile.ZipFile(broken, "w") as archive:
        archive.writestr("labelmap.txt", "a" * 1000)
    data = bytearray(broken.read_bytes())
    data[60] ^= 1
    broken.write_bytes(data)
    for reader, place, sentence in (
        (cvat, tmp_path, "holds no labelmap.txt"),
        (cvat, broken, "cannot be unpacked"),
        (fiftyone, tmp_path, "holds no `labels`"),
        (labelme, tmp_path, "holds no JSON with `shapes`"),
    ):
        with pytest.raises(PipelineError, match=sentence):
            list(reader.read(given(place)))


def damage_stream(data: bytearray) -> None:
    for place in range(60, 120):
        data[place] ^= 0xFF


def encrypt(data: bytearray) -> None:
    data[6] |= 1
    data[data.rfind(b"PK\x01\x02") + 8] |= 1


@pytest.mark.parametrize("damage", [damage_stream, encrypt])
def test_a_zip_file_that_cannot_be_unpacked(
    tmp_path: Path, given: Given, damage: Callable[[bytearray], None]
) -> None:
    place = tmp_path / "export.zip"
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("instances.json", json.dumps(list(range(3000))))
    data = bytearray(place.read_bytes())
    damage(data)
    place.write_bytes(data)
    for look in (lambda: coco.recognise(place), lambda: list(coco.read(given(place)))):
        with pytest.raises(PipelineError, match=r"export.zip cannot be unpacked \(.*again\.$"):
            look()
