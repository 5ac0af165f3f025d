"""What a definition says of layout, names, colours and ids."""

from __future__ import annotations

from pipeline.datasets.definition import DatasetClass, Definition, name_classes
from pipeline.datasets.loader import load_shipped
from pipeline.datasets.palettes import distinct_colours


def test_ids_and_what_is_ignored() -> None:
    classes = (DatasetClass("a", (3, 4), (1, 2, 3)), DatasetClass("b", (0,), (4, 5, 6)))
    definition = Definition("x", classes=classes, ignore=(9,))
    assert definition.class_of == {3: 0, 4: 0, 0: 1}
    assert definition.names == ("a", "b") and definition.palette == ((1, 2, 3), (4, 5, 6))
    assert definition.ignored == (9,)
    others = Definition("x", classes=classes, ignore_others=True)
    assert set(others.ignored) == set(range(255)) - {0, 3, 4}


def test_names_for_ids() -> None:
    named = name_classes(Definition("x"), ("sky", "road"))
    assert named.names == ("sky", "road") and named.class_of == {0: 0, 1: 1}
    assert named.palette == distinct_colours(2)
    assert name_classes(named, ()) == Definition("x")


def test_the_layout_in_words() -> None:
    assert load_shipped("kitti").layout == (
        "<split>/image_2/*.png with label maps <split>/semantic/*.png"
        " (splits train in training, test in testing)"
    )
    assert Definition("x", images=("*.jpg", "*.png")).layout == "*.jpg or *.png (splits all)"
    assert "and the lists unlabelled_train.txt" in load_shipped("potsdam").layout
