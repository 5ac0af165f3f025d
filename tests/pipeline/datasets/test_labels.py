"""Label maps of every kind: what their values mean, and every pixel of them counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from pipeline.datasets import get_dataset
from pipeline.datasets.definition import IGNORE
from pipeline.datasets.labels import NO_CLASS, LabelCounts, map_values, pack_colours
from pipeline.errors import ImageError

COLOURS = """
name: x
images: "*.jpg"
ignore: "#FFFFFF"
classes:
  - {name: sky, colour: "#000000"}
  - {name: ground, colour: [128, 0, 0]}
"""


def define(folder: Path, text: str = COLOURS) -> str:
    """Write a definition; return the dataset's name."""
    (folder / "x.yaml").write_text(text)
    return str(folder / "x.yaml")


def test_values_by_hand() -> None:
    for kind in (np.uint8, np.uint16, np.int64):
        found = map_values(np.array([[0, 7, 3, 9, 9]], kind), {0: 0, 7: 1}, [3])
        assert found.meaning.tolist() == [[0, 1, IGNORE, NO_CLASS, NO_CLASS]]
        assert found.classes.dtype == np.uint8
        assert found.classes.tolist() == [[0, 1, IGNORE, IGNORE, IGNORE]]
        counts = found.count((1, 0, 5, 1))
        assert (counts.pixels, counts.outside) == (5, 1)
        assert (counts.scored, counts.ignored, counts.unknown) == ({"7": 1}, {"3": 1}, {"9": 2})
        assert LabelCounts.parse(counts.dump()) == counts
    everything = map_values(np.array([[0, 9, 300]]), {0: 0}, others=True)
    assert everything.classes.tolist() == [[0, IGNORE, IGNORE]]


RAW = st.sampled_from([np.uint8, np.uint16, np.int32]).flatmap(
    lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))
)


@settings(max_examples=200, deadline=None)
@given(
    raw=RAW,
    classes=st.dictionaries(st.integers(0, 300), st.integers(0, 254), min_size=1),
    ignored=st.sets(st.integers(-1, 300)),
    others=st.booleans(),
    data=st.data(),
)
def test_no_pixel_is_dropped_uncounted(
    raw: np.ndarray, classes: dict[int, int], ignored: set[int], others: bool, data: st.DataObject
) -> None:
    height, width = raw.shape
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    found = map_values(raw, classes, ignored, others=others)
    counts = found.count((left, top, right, bottom))
    kinds = (counts.scored, counts.ignored, counts.unknown)
    assert counts.pixels == raw.size == counts.outside + sum(map(Counter.total, kinds))
    inside = found.classes[top:bottom, left:right]
    # 255 is no class: what is not scored is among the others
    assert counts.scored.total() == np.count_nonzero(inside != IGNORE)
    for value, mapped in zip(raw[top:bottom, left:right].flat, inside.flat, strict=True):
        expected = classes.get(int(value), IGNORE)
        assert mapped == expected
        assert (
            str(value)
            in kinds[0 if expected != IGNORE else 1 if int(value) in ignored or others else 2]
        )
    if counts.outside or counts.ignored or counts.unknown:
        said = counts.describe()
        for pixels in (counts.ignored.total(), counts.unknown.total(), counts.outside):
            assert not pixels or f"{pixels} (" in said


def test_colours_mean_classes(tmp_path: Path) -> None:
    dataset = get_dataset(define(tmp_path))
    colours = np.array([[[0, 0, 0], [128, 0, 0], [255, 255, 255], [128, 0, 1]]], np.uint8)
    for name, values in (
        ("a.png", colours),
        ("a.tif", colours),
        ("a.bmp", colours),
        ("b.png", np.dstack([colours, np.full((1, 4), 255, np.uint8)])),
    ):
        Image.fromarray(values).save(tmp_path / name)
        found = dataset.open_label(tmp_path / name)
        assert found.classes.tolist() == [[0, 1, IGNORE, IGNORE]]
        counts = found.count()
        assert counts.ignored == {"#ffffff": 1} and counts.unknown == {"#800001": 1}
    assert pack_colours(colours).tolist() == [[0, 0x800000, 0xFFFFFF, 0x800001]]
    # ids are read as they were
    Image.fromarray(np.array([[0, 1, 9]], np.uint8)).save(tmp_path / "i.png")
    assert dataset.read_label(tmp_path / "i.png").tolist() == [[0, 1, IGNORE]]


def test_colours_that_cannot_be_read(tmp_path: Path) -> None:
    colours = np.array([[[0, 0, 0], [128, 0, 0]]], np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    with pytest.raises(
        ImageError, match=r'dataset YAML, `classes: \[\{name: ..., colour: "#000000"'
    ):
        get_dataset("folder").read_label(tmp_path / "a.png")
    twice = get_dataset(define(tmp_path, COLOURS.replace("[128, 0, 0]", '"#000000"')))
    with pytest.raises(ImageError, match="two classes of one colour"):
        twice.read_label(tmp_path / "a.png")
    clear = np.dstack([colours, np.array([[255, 0]], np.uint8)])
    Image.fromarray(clear).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="transparent"):
        get_dataset(define(tmp_path)).read_label(tmp_path / "a.png")


def test_an_id_of_255_may_be_a_class(tmp_path: Path) -> None:
    text = COLOURS.replace('colour: "#000000"', "ids: 0").replace("colour: [128, 0, 0]", "ids: 255")
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "a.png")
    assert get_dataset(define(tmp_path, text)).read_label(tmp_path / "a.png").tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("values", "told", "said"),
    [
        ([0, 1, 2, 255], False, ""),
        ([0, 1, 2], True, ""),
        ([0, 255], False, "ids: 255"),
        ([0, 127, 255], False, "ids: 127"),
        ([0, 128, 255], False, "ids: 128"),
        ([0, 85, 170, 255], False, "the greys 0, 85, 170, 255"),
        # of which nothing is left out
        ([0, 128], False, ""),
        # the dataset says so itself
        ([0, 255], True, ""),
        ([1, 255], False, ""),
    ],
)
def test_greys_that_mean_classes(values: list[int], told: bool, said: str) -> None:
    classes = {index: index for index in range(IGNORE)}
    fault = (
        map_values(np.array([values], np.uint8), classes, [IGNORE]).count().find_fault(told=told)
    )
    assert said in fault and bool(said) == bool(fault)


@pytest.mark.parametrize(("unknown", "refused"), [(0, False), (5, False), (6, True), (100, True)])
def test_many_values_of_no_class_are_refused(unknown: int, refused: bool) -> None:
    # what is ignored says nothing of what is scored
    raw = np.array([[9] * unknown + [0] * (100 - unknown) + [255] * 900], np.uint8)
    counts = map_values(raw, {0: 0}, [IGNORE]).count()
    fault = counts.find_fault(told=True)
    assert bool(fault) is refused
    if refused:
        assert f"9 ({unknown} pixels)" in fault
        assert "`classes: [{name: ..., ids: 9}]`" in fault and "`ignore: [9]`" in fault


def test_a_picture_of_a_thousand_colours_is_told_in_short() -> None:
    counts = map_values(np.arange(1000)[None], {0: 0}).count()
    assert counts.unknown.total() == 999 and len(counts.unknown) == 301
    assert len(counts.describe()) < 300


def test_the_classes_of_a_folder_are_those_of_its_list(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1, 2, 255]], np.uint8)).save(tmp_path / "a.png")
    folder = get_dataset("folder")
    assert folder.know_labels(tmp_path).open_label(tmp_path / "a.png").count().unknown == {}
    (tmp_path / "classes.txt").write_text("sky\nground\n")
    counts = folder.know_labels(tmp_path).open_label(tmp_path / "a.png").count()
    assert (counts.scored, counts.unknown) == ({"0": 1, "1": 1}, {"2": 1})
