"""Images and clusters of the report, prepared for its templates."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stages.report.catalogue import (
    label_cluster,
    list_unfound,
    make_clusters,
    make_gallery,
    make_strip,
    name_item,
)
from tests.report_content import make_content


def test_what_there_is_to_choose_from() -> None:
    gallery = make_gallery(make_content())
    assert gallery["splits"] == ["train", "val"]
    assert gallery["roles"] == ["worst", "best", "sample"]
    assert [key for key, _ in gallery["layers"]] == [
        "features",
        "proposals",
        "label",
        "label_crf",
        "truth",
        "errors",
    ]
    assert gallery["clusters"] == [
        (0, "sky (0)"),
        (1, "field (1)"),
        (2, "road (2)"),
        (3, "cluster 3"),
    ]
    assert gallery["score"] == "accuracy"


def test_without_labels_images_are_sorted_by_confidence() -> None:
    gallery = make_gallery(make_content(labels=False))
    assert gallery["score"] == "confidence"
    assert [entry["score"] for entry in gallery["entries"]] == [f"{60 + n}.0" for n in range(8)]
    assert not any(entry["has_iou"] for entry in gallery["entries"])


def test_an_image_without_labels_among_others_has_no_score() -> None:
    content = make_content()
    bare = replace(content.gallery[0], accuracy=None)
    gallery = make_gallery(replace(content, gallery=(bare, *content.gallery[1:])))
    assert gallery["entries"][0]["score"] is None
    assert gallery["entries"][1]["score"] == "97.2"


def test_no_images() -> None:
    gallery = make_gallery(replace(make_content(), gallery=()))
    assert gallery["entries"] == [] and gallery["score"] == ""


def test_shares_are_what_the_filter_reads() -> None:
    content = make_content()
    entry = make_gallery(content)["entries"][0]
    parts = dict(part.split(":") for part in entry["shares"].split())
    assert {int(cluster) for cluster in parts} == {p.cluster for p in content.gallery[0].parts}
    assert sum(map(float, parts.values())) == pytest.approx(100, abs=0.5)


def test_clusters_stand_in_the_order_of_the_classes_then_by_size() -> None:
    content = make_content()
    cards = [
        replace(content.clusters[0], class_name="road"),
        replace(content.clusters[1], class_name=None, share=1.0),
        replace(content.clusters[2], class_name="sky"),
        replace(content.clusters[3], class_name=None, share=7.0),
    ]
    changed = replace(content, clusters=tuple(cards))
    assert [entry["card"].cluster for entry in make_clusters(changed)] == [2, 0, 3, 1]
    assert list_unfound(changed) == ["field"]


def test_the_strip_holds_what_covers_something() -> None:
    assert [part["cluster"] for part in make_strip(make_content())] == [0, 1, 2]


def test_only_cutouts_of_images_that_are_shown_are_links() -> None:
    (entry, *_) = make_clusters(make_content())
    linked = [bool(cutout["fragment"]) for cutout in entry["cutouts"]]
    assert linked == [True] * 8 + [False] * 2
    assert entry["cutouts"][1]["fragment"] == name_item("train", "part 1/scene 1")


def test_a_number_is_said_where_the_name_does_not() -> None:
    card = make_content().clusters[0]
    assert label_cluster(card) == "sky (0)"
    assert label_cluster(replace(card, name="cluster 0")) == "cluster 0"
