"""What a dataset's YAML may say, and what is said of one that cannot be meant."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.datasets import DATASET_NAMES, describe_difference, get_dataset
from pipeline.datasets.definition import Definition
from pipeline.datasets.loader import load_shipped
from pipeline.datasets.parsing import parse_definition
from pipeline.errors import DatasetError

PLAIN: dict[str, Any] = {
    "name": "mine",
    "images": "{split}/*.jpg",
    "labels": "{split}/labels/*.png",
    "splits": ["train", "val"],
    "classes": ["a", {"name": "b", "ids": ["3-5", 9], "colour": "#0a0B0c"}],
}


def test_the_short_form_by_hand() -> None:
    definition = parse_definition(PLAIN, "x.yaml")
    assert definition.images == ("{split}/*.jpg",)
    assert definition.splits == {"train": "train", "val": "val"}
    assert definition.default_splits == ("train", "val")
    assert definition.frame == "whole"
    assert definition.names == ("a", "b")
    assert definition.class_of == {0: 0, 3: 1, 4: 1, 5: 1, 9: 1}
    assert definition.palette[1] == (10, 11, 12)
    assert definition.ignored == ()


def test_without_classes_ids_are_classes() -> None:
    definition = parse_definition({"name": "x", "images": "*.png"}, "x.yaml")
    assert definition.names == () and len(definition.palette) == 255
    assert definition.class_of == {index: index for index in range(255)}
    assert definition.default_splits == ("all",)


def test_others_are_every_id_without_a_class() -> None:
    definition = parse_definition({**PLAIN, "ignore": ["others", 300]}, "x.yaml")
    assert set(definition.ignored) == {*range(255), 300} - {0, 3, 4, 5, 9}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"imges": "*.jpg"}, r"unknown key 'imges' \(did you mean 'images'\?\)"),
        ({"images": None}, "images must be a text, not None"),
        ({"images": "*"}, r"write \{split\} where"),
        ({"images": "{split}/a.jpg"}, "has no \\*"),
        ({"images": "../*.jpg"}, "without '..' and not absolute"),
        ({"images": "/data/*.jpg"}, "not absolute"),
        ({"images": "{split}\\*.jpg"}, "backslash"),
        ({"images": "{split}/*_*.jpg"}, "one \\* in each part"),
        ({"images": "{spilt}/*.jpg"}, "holds \\?, {"),
        ({"images": "{split}/**"}, "\\*\\* for folders alone"),
        ({"labels": "{split}/*/*.png"}, "must have the stars of the images"),
        ({"splits": ["train", "train"]}, "'train' is there twice"),
        ({"splits": {"train": "../x"}}, "no plain path"),
        ({"splits": ["../x"]}, "no name of letters"),
        ({"splits": []}, "name one at least"),
        ({"default_splits": ["vall"]}, r"no split \(did you mean 'val'\?\)"),
        ({"lists": {"tran": "a.txt"}}, r"'tran' is no split \(did you mean 'train'\?\)"),
        ({"lists": "*.txt"}, "paths of files"),
        ({"lists": "../a.txt"}, "without '..'"),
        ({"lists": "a.txt", "images": "{split}/*/*.jpg"}, "one \\* for the ids"),
        ({"lists_optional": 1}, "must be True or False"),
        ({"frame": "center"}, "frame must be whole or centre|frame must be centre or whole"),
        ({"ignore": [3]}, "id 3 is of 'ignore' and of 'b'"),
        ({"ignore": [-1]}, "within 0..65535"),
        ({"ignore": "9-7"}, "within 0..65535, or falls"),
        ({"ignore": True}, "is no id"),
        ({"classes": []}, "give 1 to 255, not 0"),
        ({"classes": ["a", "a"]}, "the name 'a' is there twice"),
        ({"classes": [False]}, "quotes make a text"),
        ({"classes": [{"name": "a", "id": 3}]}, r"unknown key 'id' \(did you mean 'ids'\?\)"),
        ({"classes": [{"ids": 3}]}, "name must be a text"),
        ({"classes": [{"name": "a", "ids": 255}]}, "always means ignore"),
        ({"classes": [{"name": "a", "ids": []}]}, "has no id"),
        ({"classes": ["a", {"name": "b", "ids": 0}]}, "id 0 is of 'a' and of 'b'"),
        ({"classes": [{"name": "a", "colour": [1, 2]}]}, "no \\[red, green, blue\\]"),
        ({"classes": [{"name": "a", "colour": [1, 2, 256]}]}, "no \\[red, green, blue\\]"),
        ({"classes": [{"name": "a", "colour": "red"}]}, "no \\[red, green, blue\\]"),
        ({"name": "a/b"}, "letters, digits"),
        ({"about": 3}, "about must hold keys and values"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DatasetError, match=said) as caught:
        parse_definition({**PLAIN, **change}, "x.yaml")
    message = str(caught.value)
    assert message.startswith("the dataset definition x.yaml: ") and "\n" not in message


@pytest.mark.parametrize("key", ["name", "images"])
def test_what_is_needed_is_asked_for(key: str) -> None:
    rest = {name: value for name, value in PLAIN.items() if name != key}
    with pytest.raises(DatasetError, match=f"the key '{key}' is missing"):
        parse_definition(rest, "x.yaml")


WORD = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,8}", fullmatch=True)


@st.composite
def definitions(draw: st.DrawFn) -> dict[str, Any]:
    """Draw what a YAML may say."""
    splits = draw(st.dictionaries(WORD, WORD, min_size=1, max_size=3))
    ids = draw(st.lists(st.integers(0, 254), unique=True, min_size=2, max_size=12))
    cut = draw(st.integers(1, len(ids) - 1))
    names = [f"{index} ä" for index in range(cut)]
    classes = [{"name": name, "ids": [raw]} for name, raw in zip(names, ids[:cut], strict=True)]
    return {
        "name": draw(WORD),
        "about": draw(st.dictionaries(WORD, st.text("a é", min_size=1, max_size=3), max_size=2)),
        "images": draw(st.sampled_from(["{split}/*.png", "a/{split}/**/x_*.jpg"])),
        "splits": splits,
        "default_splits": [draw(st.sampled_from(sorted(splits)))],
        "frame": draw(st.sampled_from(["centre", "whole"])),
        "ignore": ids[cut:] + draw(st.sampled_from([[], ["others"]])),
        **draw(st.sampled_from([{}, {"classes": classes}])),
    }


@settings(deadline=None)
@given(definitions())
def test_what_a_run_keeps_is_the_definition(content: dict[str, Any]) -> None:
    if "classes" not in content:
        content["ignore"] = []
    definition = parse_definition(yaml.safe_load(yaml.safe_dump(content)), "x")
    again = parse_definition(json.loads(json.dumps(definition.describe())), "x")
    assert again == definition
    assert describe_difference(definition.describe(), again.describe()) == ""


@pytest.mark.parametrize("name", [name for name in DATASET_NAMES if name != "folder"])
def test_shipped_ones_are_kept_whole(name: str) -> None:
    content = get_dataset(name).content
    kept = parse_definition(json.loads(json.dumps(content)), name)
    assert isinstance(kept, Definition) and kept == load_shipped(name)
