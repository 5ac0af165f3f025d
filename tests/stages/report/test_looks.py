"""How clusters look: names and colours, by hand."""

from __future__ import annotations

from pipeline.run.subject import choose_block, choose_look

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
