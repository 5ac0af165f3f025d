"""Images that several evaluations have in common, and which of them are shown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import RunError
from pipeline.run.manifest import Image
from stages.report.comparison.common_images import (
    CommonImages,
    Name,
    choose_rows,
    find_common,
    sample_common,
)


def make_listing(*names: str, width: int = 8, digest: str = "") -> dict[Name, Image]:
    listing = {}
    for number, name in enumerate(names):
        split, _, identity = name.partition("/")
        path = f"{identity}.png"
        image = Image(number, identity, split, path, None, width, 6, 1, 0, digest or name)
        listing[split, identity] = image
    return listing


def test_images_are_matched_by_split_and_id() -> None:
    first = make_listing("train/a", "train/b", "val/a", "val/c")
    second = make_listing("val/c", "train/b", "train/c", "val/d", "val/e")
    common = find_common([first, second])
    assert common.splits == {"train": ["b"], "val": ["c"]}
    assert common.others == (2, 3)
    assert (common.count, common.resized, common.changed) == (2, 0, 0)


def test_another_size_is_another_image() -> None:
    first = make_listing("train/a") | make_listing("train/b")
    second = make_listing("train/a", width=9) | make_listing("train/b")
    common = find_common([first, second])
    assert common.splits == {"train": ["b"]}
    assert (common.others, common.resized) == ((1, 1), 1)


def test_another_file_of_the_same_size_is_said() -> None:
    common = find_common([make_listing("train/a"), make_listing("train/a", digest="other")])
    assert (common.count, common.changed) == (1, 1)


def test_nothing_in_common_is_refused() -> None:
    first, second = make_listing("train/a"), make_listing("train/x")
    with pytest.raises(RunError, match=r"no image in common.*train/a of 8 x 6, another train/x"):
        find_common([first, first, second])
    with pytest.raises(RunError, match="no image of the same size in common"):
        find_common([first, make_listing("train/a", width=9)])
    with pytest.raises(RunError, match="another none at all"):
        find_common([first, {}])


def test_the_sample_is_even_in_every_split() -> None:
    ids = [str(i) for i in range(9)]
    common = CommonImages({"train": ids, "val": ids[:2]}, (0, 0), 0, 0)
    assert sample_common(common, 3) == [
        ("train", "1"),
        ("train", "4"),
        ("train", "7"),
        ("val", "0"),
        ("val", "1"),
    ]


def test_those_that_differ_most_come_first() -> None:
    differences = {("train", str(i)): float(i % 7) for i in range(14)}
    differences["train", "nothing"] = float("nan")
    differences["val", "a"] = 1.0
    rows = choose_rows(differences, 5)
    chosen = [identity for split, identity in rows if split == "train"]
    assert chosen[:3] == ["13", "6", "12"]
    assert [rows["train", i] for i in chosen] == ["most"] * 3 + ["sample"] * 2
    assert rows["val", "a"] == "most"
    assert "nothing" not in chosen
    assert choose_rows(differences, 0) == {}
    assert list(choose_rows(differences, 99))[14] == ("train", "nothing"), "the last of its split"


@given(
    values=st.lists(st.floats(0, 100) | st.just(float("nan")), max_size=40),
    wanted=st.integers(0, 50),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_rows_are_as_many_as_wanted_in_order(values: list[float], wanted: int) -> None:
    differences = {("val", f"{i:02d}"): value for i, value in enumerate(values)}
    rows = choose_rows(differences, wanted)
    assert len(rows) == min(wanted, len(values))
    shown = [differences[name] for name in rows]
    known = [value for value in shown if not np.isnan(value)]
    assert known == sorted(known, reverse=True)
    assert shown[: len(known)] == known
