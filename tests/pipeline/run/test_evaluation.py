"""What the clusters of a fit or head are called, and how they look."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import RunError
from pipeline.run.directory import RunDirectory, Subject
from pipeline.run.evaluation import (
    Evaluation,
    choose_block,
    choose_look,
    format_names,
    name_clusters,
    parse_names,
    read_given_names,
)
from pipeline.run.ledger import StageRecord
from pipeline.storage.files import write_json, write_text


def test_the_user_is_heard_before_the_classes() -> None:
    given_names = {0: "tarmac", 2: "birds"}
    names = name_clusters(4, [1, 0, None, None], ("sky", "road"), given_names)
    assert names == ("tarmac", "sky", "birds", "cluster 3")
    assert name_clusters(2, None, ("sky",), {1: "hill"}) == ("cluster 0", "hill")


def test_names_are_the_words_that_are_written() -> None:
    text = b"# mine\n0: road\n1: no\n2: 1.0\n07: 'a: b'\n12: ~\n4: \xc3\xbcber # why\n1.0: 'on'\n"
    names = {0: "road", 1: "no", 2: "1.0", 7: "a: b", 12: "~", 4: "über"}
    parts = {(k,): name for k, name in names.items()} | {(1, 0): "on"}
    assert parse_names(text, "names.yaml") == parts
    again = "\n".join(format_names(parts)).encode()
    assert parse_names(again, "names.yaml") == parts
    assert parse_names(b"", "f") == parse_names(b"# nothing\n", "f") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"- road\n- sky\n", "does not map clusters to names"),
        (b"road", "does not map clusters to names"),
        (b"0: road\n1: [a, b]\n", "line 2: cluster 1 needs a name .* a list or mapping"),
        (b"0: road\nsky: 1\n", "line 2: 'sky' is not the number"),
        (b"-1: road\n", "'-1' is not the number"),
        (b"1.5: road\n", "'1.5' is not the number"),
        (b"? [a]\n: b\n", "a list or mapping is not the number"),
        ("²: road\n".encode(), "is not the number"),
        (b"1" * 5000 + b": road\n", "is not"),
        (b"0:\n", "needs a name of one line"),
        (b"0: '  '\n", "needs a name of one line"),
        (b'0: "a\\nb"\n', "needs a name of one line"),
        (b'0: "\\u202e"\n', "needs a name of one line"),
        (b"0: " + b"a" * 101 + b"\n", "at most 100 characters"),
        (b"0: road\n00: sky\n", "line 2: cluster 00 is named twice"),
        (b"0: road: sky\n", "is not YAML"),
        (b"0: \xff\n", "is not YAML"),
        (b"0: *nobody\n", "is not YAML"),
        (b"[" * 5000, "is nested too deeply|is not YAML"),
        (b"0: a\n---\n1: b\n", "is not YAML"),
    ],
)
def test_what_is_no_mapping_is_refused_in_one_line(text: bytes, words: str) -> None:
    with pytest.raises(RunError, match=words) as caught:
        parse_names(text, "names.yaml")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("names.yaml")
    assert len(str(caught.value)) < 600


def test_tags_run_nothing() -> None:
    text = b"0: !!python/object/apply:os.system ['touch /tmp/never']\n"
    with pytest.raises(RunError, match="needs a name"):
        parse_names(text, "names.yaml")


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_bytes_are_names_or_refused(text: bytes) -> None:
    try:
        names = parse_names(text, "names.yaml")
    except RunError as error:
        assert "\n" not in str(error)
    else:
        assert all(name.isprintable() and name for name in names.values())


def test_files_lie_beside_the_report(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.names_file("default") == tmp_path / "corrections/names.yaml"
    assert run.names_file("k12").name == "names-k12.yaml"
    assert run.names_file("head-hp").name == "names-head-hp.yaml"
    assert read_given_names(run, "default") == {}
    write_text(run.names_file("k12"), "3: sea\n")
    assert read_given_names(run, "k12", 4) == {3: "sea"}
    with pytest.raises(RunError, match="names cluster 3, but there are 3 clusters"):
        read_given_names(run, "k12", 3)
    # the place where they were until now
    (tmp_path / "names-k12.yaml").write_text("3: lake\n")
    with pytest.raises(RunError, match=r"in .*/names-k12.yaml and in .*/corrections/"):
        read_given_names(run, "k12")
    (tmp_path / "corrections/names-k12.yaml").unlink()
    assert read_given_names(run, "k12") == {3: "lake"}
    run.names_file("default").mkdir()
    with pytest.raises(RunError, match="cannot read"):
        read_given_names(run, "default")


def test_the_matching_is_that_of_the_final_labels(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)

    def read() -> Evaluation:
        return Evaluation(run, Subject("em", "default"), StageRecord("evaluate", 1, {}, {}, [], {}))

    with pytest.raises(RunError, match="evaluate"):
        read().match()
    top = {
        "classes": 2,
        "class_names": ["sky", "road"],
        "assignment": [0, 1],
        "assignment_crf": [1, 0],
    }
    plain = {**top, "assignment_crf": None}
    none = {**plain, "assignment": None}
    metrics = {**top, "splits": {"val": top, "train": plain, "more": none}}
    write_json(run.report("default") / "metrics.json", metrics)
    assert read().name_clusters() == ("road", "sky")
    assert read().name_clusters("train") == ("sky", "road")
    assert read().name_clusters("more") == ("cluster 0", "cluster 1")
    with pytest.raises(RunError, match="says nothing of split 'test'"):
        read().name_clusters("test")
    write_text(run.names_file("default"), "0: tarmac\n")
    assert read().name_clusters() == ("tarmac", "sky")
    write_json(run.report("default") / "metrics.json", {"classes": 2})
    with pytest.raises(RunError, match="is not what an evaluation writes"):
        read().match()
    write_json(run.report("default") / "metrics.json", {"classes": 2, "splits": {}})
    with pytest.raises(RunError, match="not written by this version"):
        read().match()


NAMES = ("sky", "road")
COLOURS = ((1, 2, 3), (4, 5, 6))


def test_matched_clusters_look_like_their_classes() -> None:
    look = choose_look(3, [1, None, 0], NAMES, COLOURS)
    assert look.names == ("road", "cluster 1", "sky")
    assert look.index[:3].tolist() == [1, 2, 0]
    assert look.colours[0] == COLOURS[1]
    assert look.colours[2] == COLOURS[0]
    assert look.colours[1] not in COLOURS
    assert look.classes == (1, None, 0)


def test_unmatched_clusters_are_told_apart() -> None:
    look = choose_look(20, [0, 1, *[None] * 18], NAMES, COLOURS)
    assert len(set(look.colours)) == 20
    assert set(look.index[2:20].tolist()).isdisjoint({0, 1, 255})


def test_there_are_indices_for_as_many_clusters_as_there_may_be() -> None:
    look = choose_look(255, [None] * 255, NAMES, COLOURS)
    assert look.index[:255].max() == 254
    assert look.index[255] == 255


def test_without_labels_clusters_are_numbered() -> None:
    look = choose_look(3, None, NAMES, COLOURS)
    assert look.names == ("cluster 0", "cluster 1", "cluster 2")
    assert len(set(look.colours)) == 3
    assert look.classes is None


def test_more_names_than_colours_are_no_obstacle() -> None:
    look = choose_look(3, [2, 0, 1], ("a", "b", "c"), COLOURS)
    assert look.names == ("c", "a", "b")
    assert len(set(look.colours)) == 3


def test_the_user_names_what_the_user_likes() -> None:
    look = choose_look(3, [1, None, 0], NAMES, COLOURS, {0: "tarmac", 1: "birds"})
    assert look.names == ("tarmac", "birds", "sky")
    assert look.colours[0] == COLOURS[1], "the colour stays that of the class"
    assert choose_look(2, None, NAMES, COLOURS, {1: "sea"}).names == ("cluster 0", "sea")


def test_clusters_of_one_name_are_one_class() -> None:
    look = choose_look(4, None, (), (), {1: "plant", 3: "plant", 0: "cluster 2"})
    assert look.index[:4].tolist() == [0, 1, 0, 1]
    assert look.first[:5].tolist() == [0, 1, 0, 1, 255]
    assert look.colours[1] == look.colours[3] != look.colours[0]


def test_without_labels_a_named_cluster_has_no_colour_of_another() -> None:
    look = choose_look(4, None, (), (), {0: "sky", 2: "sky"})
    assert look.index[:4].tolist() == [0, 1, 0, 3]


def test_a_cluster_of_the_name_of_a_class_is_that_class() -> None:
    # 0 is matched to the road, and the user says that it is sky, as 2 is
    look = choose_look(3, [1, None, 0], NAMES, COLOURS, {0: "sky"})
    assert look.index[:3].tolist() == [0, 2, 0]
    assert look.colours[0] == look.colours[2] == COLOURS[0]
    assert look.first[:3].tolist() == [0, 1, 0]
    assert look.table[:4].tolist() == [1, 255, 0, 255], "scores are those of the matching"


def test_a_new_name_has_the_colour_of_the_class_unless_another_cluster_is_that() -> None:
    look = choose_look(3, [1, 0, None], NAMES, COLOURS, {0: "tarmac", 2: "tarmac"})
    assert look.index[:3].tolist() == [1, 0, 1]
    look = choose_look(3, [1, 0, None], NAMES, COLOURS, {0: "tarmac", 2: "road"})
    assert look.index[:3].tolist() == [2, 0, 1]


@pytest.mark.parametrize("word", ["ignore", "Ignore"])
@pytest.mark.parametrize("matching", [None, [1, 0]])
def test_the_name_ignore_leaves_out(word: str, matching: list[int | None] | None) -> None:
    look = choose_look(2, matching, NAMES, COLOURS, {0: word})
    assert look.index[0] == 255 and look.index[1] != 255
    assert look.first[:2].tolist() == [255, 1]
    assert look.colours[0] == (0, 0, 0)


def test_a_split_without_ground_truth_looks_as_the_main_one() -> None:
    labelled = {"assignment": [1, None], "assignment_crf": None, "class_names": ["a", "b"]}
    unlabelled = {"assignment": None, "assignment_crf": None, "class_names": []}
    third = {"assignment": [0, None], "assignment_crf": None, "class_names": ["a", "b", "c"]}
    splits = {"train": labelled, "val": unlabelled, "test": third}
    metrics = {"split": "train", **labelled, "splits": splits}
    assert choose_block(metrics, "val")["assignment"] == [1, None]
    assert choose_block(metrics, "test")["assignment"] == [0, None]
    # so that the cluster without a class has one colour in all
    for split in splits:
        assert choose_block(metrics, split)["class_names"] == ["a", "b", "c"]
