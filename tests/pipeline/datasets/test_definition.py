"""What a definition says of layout, names, colours and ids.

What a dataset's YAML may say, and what is said of one that cannot be meant.

Reading a dataset's YAML: safely, and with one sentence on what is none.

Patterns find what their stars stand for, and never anything outside the root.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dataset_names import DATASET_NAMES, DEFINITIONS
from pipeline.datasets import get_dataset
from pipeline.datasets.definition import (
    DatasetClass,
    Definition,
    describe_difference,
    distinct_colours,
    name_classes,
    parse_definition,
    read_definition,
)
from pipeline.datasets.listing import fill_stars, find_fault, find_paths, list_stars
from pipeline.errors import DatasetError


def test_ids_and_what_is_ignored() -> None:
    classes = (
        DatasetClass(name="a", ids=(3, 4), colour=(1, 2, 3)),
        DatasetClass(name="b", ids=(0,), colour=(4, 5, 6)),
    )
    definition = Definition(name="x", classes=classes, ignore=(9,))
    assert definition.class_of == {3: 0, 4: 0, 0: 1}
    assert definition.names == ("a", "b") and definition.palette == ((1, 2, 3), (4, 5, 6))
    assert definition.ignored == (9,)
    others = Definition(name="x", classes=classes, ignore=("others",))
    assert others.ignored == () and others.ignores_others


def test_names_for_ids() -> None:
    named = name_classes(Definition(name="x"), {0: "sky", 1: "road"})
    assert named.names == ("sky", "road") and named.class_of == {0: 0, 1: 1}
    assert named.palette == distinct_colours(2)
    assert name_classes(named, {}) == Definition(name="x")


def test_the_layout_in_words() -> None:
    assert read_definition(DEFINITIONS / "kitti.yaml").layout == (
        "<split>/image_2/*.png with label maps <split>/semantic/*.png"
        " (splits train in training, test in testing)"
    )
    assert Definition(name="x", images=("*.jpg", "*.png")).layout == "*.jpg or *.png (splits all)"
    assert (
        "and the lists unlabelled_train.txt" in read_definition(DEFINITIONS / "potsdam.yaml").layout
    )


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
    assert definition.ignored == (300,) and definition.ignores_others


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
        ({"ignore": ["#12345"]}, "is no id such as 7"),
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
    assert isinstance(kept, Definition) and kept == read_definition(DEFINITIONS / f"{name}.yaml")


# lists of lists of the same lists: written out, a billion numbers
BOMB = "name: x\nimages: '*'\nabout:\n  a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"  {b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghijk")
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must hold keys and values"),
        ("- a", "must hold keys and values"),
        ("name: [", "is not YAML"),
        ("name: a\nname: b\nimages: '*.png'", "'name' is there twice"),
        ("name: !!python/object/apply:os.system ['true']", "is not YAML"),
        ("name: 2024-13-45", "is not YAML"),
        ("a: &a [*a]", "unknown key 'a'"),
        ("name: \0", "is not YAML"),
        ("[" * 100_000, "is not YAML"),
        ("name: x\nimages: '*'\nabout: {a: &a [*a]}", "about: 'a' must be a text"),
        (BOMB, "must be a text"),
    ],
)
def test_files_that_are_no_definition(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(DatasetError, match=said) as caught:
        read_definition(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(DatasetError, match="not UTF-8"):
        read_definition(tmp_path / "x.yaml")
    with pytest.raises(DatasetError, match="is a directory"):
        read_definition(tmp_path)
    (tmp_path / "big.yaml").write_text("#" * 2**20 + "\nname: x")
    with pytest.raises(DatasetError, match="more than"):
        read_definition(tmp_path / "big.yaml")


def test_the_shipped_ones_are_files() -> None:
    for name in set(DATASET_NAMES) - {"folder"}:
        about = read_definition(DEFINITIONS / f"{name}.yaml").about
        assert {"title", "paper", "url", "licence", "classes", "checked"} <= about.keys()


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_stars_by_hand(tmp_path: Path) -> None:
    touch(tmp_path, "a/x_1_i.png", "a/x__i.png", "a/.x_2_i.png", "b c/x_é_i.png", "a/y_1_i.png")
    touch(tmp_path, "a/in/x_3_i.png", ".h/x_4_i.png", "x_5_i.png")
    assert find_paths(tmp_path, "*/x_*_i.png") == [
        ("a/x_1_i.png", ("a", "1")),
        ("b c/x_é_i.png", ("b c", "é")),
    ]
    assert find_paths(tmp_path, "a/in/x_*_i.png") == [("a/in/x_3_i.png", ("3",))]
    assert find_paths(tmp_path, "no/*.png") == []
    assert find_paths(tmp_path, "a/*") == [
        *((f"a/{name}", (name,)) for name in ("x_1_i.png", "x__i.png", "y_1_i.png"))
    ], "files alone"


def test_any_depth(tmp_path: Path) -> None:
    touch(tmp_path, "t/a.png", "t/u/b.png", "t/u/v/c.png", "t/.h/d.png", "e.png")
    (tmp_path / "t" / "circle").symlink_to(tmp_path / "t")
    found = dict(find_paths(tmp_path, "t/**/*.png"))
    assert found == {
        "t/a.png": ("", "a"),
        "t/u/b.png": ("u", "b"),
        "t/u/v/c.png": ("u/v", "c"),
    }
    assert fill_stars("l/**/*.txt", ("u/v", "c")) == "l/u/v/c.txt"
    assert fill_stars("l/**/*.txt", ("", "a")) == "l/a.txt"


def test_a_star_never_stands_for_dots(tmp_path: Path) -> None:
    touch(tmp_path, "x...png", "x.a.png", "x..png")
    assert find_paths(tmp_path, "x*.png") == [("x.a.png", (".a",))]


def test_a_star_stands_for_something(tmp_path: Path) -> None:
    touch(tmp_path, "aba", "ab-ba")
    assert find_paths(tmp_path, "ab*ba") == [("ab-ba", ("-",))]


@pytest.mark.parametrize("pattern", ["*.png", "a/**/x_*.png", "{split}/*", "[a] b/*.jpg"])
def test_patterns(pattern: str) -> None:
    assert find_fault(pattern) is None


@pytest.mark.parametrize(
    "pattern",
    ["", "/a/*", "a//*", "../*", "a/../*", "./*", "a*b*", "***/a", "a/**", "a?", "{x}/*", "a\\*"],
)
def test_faults(pattern: str) -> None:
    assert find_fault(pattern)


def test_stars_are_listed_in_order() -> None:
    assert list_stars("**/a_*/*.png") == ["**", "*", "*"]
