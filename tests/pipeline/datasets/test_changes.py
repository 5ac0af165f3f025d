"""What differs between two definitions is said in words."""

from __future__ import annotations

from typing import Any

from pipeline.datasets import describe_difference
from pipeline.datasets.parsing import parse_definition

PLAIN: dict[str, Any] = {
    "name": "mine",
    "images": "{split}/*.jpg",
    "splits": ["train", "val"],
    "classes": ["a", {"name": "b", "ids": ["3-5", 9]}],
}


def test_differences_are_told() -> None:
    old = parse_definition(PLAIN, "x").describe()
    assert describe_difference(old, {**old, "about": {"title": "other"}}) == ""
    other = parse_definition({**PLAIN, "classes": ["a", {"name": "c", "ids": 3}]}, "x").describe()
    told = describe_difference(old, other)
    assert "name of class 1 b -> c" in told and "ids of class 1 [3, 4, 5, 9] -> [3]" in told
    fewer = parse_definition({**PLAIN, "classes": ["a"]}, "x").describe()
    assert describe_difference(old, fewer) == "2 -> 1 classes"
    assert describe_difference(None, None) == ""
    many = {f"c{index}": f"{index}" for index in range(5)}
    assert describe_difference({}, many).endswith("c2 none -> 2, 2 more")
    moved = {**old, "images": ["x/{split}/*.jpg"]}
    assert describe_difference(old, moved) == "images [{split}/*.jpg] -> [x/{split}/*.jpg]"
