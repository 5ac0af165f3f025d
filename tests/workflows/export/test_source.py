"""Names of exported files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.export.source import make_safe, make_unique, name_images, name_splits

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
