"""The HTML page of the report."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from skimage import data

from stages.evaluate.gallery import make_thumbnail
from stages.evaluate.report import Curve, GalleryItem, ReportContent, render_report

HOSTILE = (
    "</script><script>alert('x')</script>\"><img src=https://evil.example/x onerror=y> & ümläut"
)
NAMES = ["sky", "road", "tree"]
_VOID = {"meta", "link", "img", "br", "hr", "input", "path", "use", "g"}


class Page(HTMLParser):
    """The elements, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.styles: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.styles.append(data)
        elif not self.open or self.open[-1] != "script":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def find(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def make_block(*, labels: bool = True, crf: bool = True) -> dict[str, Any]:
    assignment, confusion = [1, 0, None, 2], [[0, 90, 10], [60, 0, 0], [5, 5, 3], [1, 2, 80]]
    both = labels and crf
    return {
        "images": 34,
        "labelled_images": 34 if labels else 0,
        "classes": 4,
        "accuracy": 76.51 if labels else None,
        "miou": 40.82 if labels else None,
        "accuracy_crf": 78.24 if both else None,
        "miou_crf": 42.13 if both else None,
        "class_names": NAMES,
        "per_class": [
            {
                "name": name,
                "iou": 31.25 + i if labels and i < 2 else None,
                "iou_crf": 51.25 + i if both and i < 2 else None,
            }
            for i, name in enumerate(NAMES)
        ],
        "assignment": assignment if labels else None,
        "assignment_crf": assignment if both else None,
        "confusion": confusion if labels else None,
        "confusion_crf": confusion if both else None,
        "class_usage": [40.0, 35.0, 24.95, 0.05],
        "coverage": 98.76,
        "confidence": 63.27,
    }


def make_content(**options: bool) -> ReportContent:
    splits = {"train": make_block(**options), "val": make_block(**options)}
    photographs = (("astronaut", data.astronaut()), ("coffee", data.coffee()))
    gallery = tuple(
        GalleryItem(
            name,
            split,
            (
                ("image", make_thumbnail(pixels, "photograph")),
                ("label", make_thumbnail((pixels > 99).astype(np.uint8) * 255, "map")),
            ),
            note,
        )
        for (name, pixels), split, note in zip(
            photographs, ("train", "val"), ("accuracy 81.2 %", "accuracy 60 %"), strict=True
        )
    )
    return ReportContent(
        title="Photographs",
        notice="",
        facts=(("backbone", "vit_small_patch14_dinov2"), ("images", "34")),
        settings_yaml="em:\n  classes: 4\n",
        commands=("primaps-pipe evaluate run",),
        metrics={"em": "default", "split": "val", **splits["val"], "splits": splits},
        gallery=gallery,
        curve=Curve((2.0, 1.0), ((0.25,) * 4, (0.4, 0.35, 0.2495, 0.0005))),
        palette=((255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)),
        cluster_names=("road", "sky", "cluster 2", "tree"),
        warnings=("One class is hardly used.",),
    )


def make_hostile() -> ReportContent:
    content = make_content()
    block = make_block()
    block["class_names"] = [HOSTILE] * 3
    for entry in block["per_class"]:
        entry["name"] = HOSTILE
    item = replace(
        content.gallery[0],
        id=HOSTILE,
        split=HOSTILE,
        note=HOSTILE,
        pictures=((HOSTILE, content.gallery[0].pictures[0][1]),),
    )
    return replace(
        content,
        title=HOSTILE,
        notice=HOSTILE,
        facts=((HOSTILE, HOSTILE),),
        settings_yaml=HOSTILE,
        commands=(HOSTILE,),
        metrics={"em": HOSTILE, "split": HOSTILE, **block, "splits": {HOSTILE: block, "b": block}},
        gallery=(item, *content.gallery),
        cluster_names=(HOSTILE,) * 4,
        warnings=(HOSTILE,),
        unusual=((HOSTILE, HOSTILE),),
        repeatability=HOSTILE,
        curve=Curve((2.0, 1.0), ((0.25,) * 4,), HOSTILE, ((2, 0.5),), HOSTILE, 2),
    )


@pytest.mark.parametrize("content", [make_content(), make_hostile()], ids=["plain", "hostile"])
def test_page_needs_nothing_from_elsewhere(content: ReportContent):
    page = Page(render_report(content))
    assert page.open == []
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "action", "srcset", "poster", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#"))
        assert "url(" not in re.sub(r"url\(#\w+\)", "", attributes.get("style") or "")
    assert not re.search(r"@import|url\(", "".join(page.styles))
    policy = [tag["content"] for tag in page.find("meta") if "http-equiv" in tag]
    assert policy and policy[0] is not None and policy[0].startswith("default-src 'none'")


def test_hostile_text_stays_text():
    html = render_report(make_hostile())
    page, plain = Page(html), Page(render_report(make_content()))
    assert len(page.find("script")) == len(plain.find("script")) == 1
    assert "<script>alert" not in html
    assert len(page.find("img")) == len(plain.find("img")) + 1
    assert page.text.count("<script>alert('x')</script>") >= 15
    assert any(tag["alt"] == f"{HOSTILE} of {HOSTILE}" for tag in page.find("img"))
    assert any(tag.get("value") == HOSTILE for tag in page.find("option"))


def test_script_is_the_one_that_the_policy_names():
    html = render_report(make_content())
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)
    policy = re.search(r"script-src '(sha256-[^']+)'", html)
    assert script and policy
    digest = base64.b64encode(hashlib.sha256(script.group(1).encode()).digest()).decode()
    assert policy.group(1) == f"sha256-{digest}"


def test_scores_of_every_split_with_and_without_crf():
    text = Page(render_report(make_content())).text
    assert "Pixel accuracy 78.2 % with CRF; 76.5 % without" in text
    assert "Mean IoU 42.1 % with CRF; 40.8 % without" in text
    for split in ("train", "val"):
        assert f"{split} 34 34 76.5 78.2 40.8 42.1 98.8 63.3 3 of 4" in text


def test_without_crf_there_are_no_columns_for_it():
    text = Page(render_report(make_content(crf=False))).text
    assert "Pixel accuracy 76.5 % without CRF" in text
    assert "train 34 34 76.5 40.8 98.8 63.3 3 of 4" in text
    assert "with CRF" not in text.replace("without CRF", "")


def test_without_labels_there_is_no_score():
    content = make_content(labels=False)
    items = tuple(replace(item, note="") for item in content.gallery)
    html = render_report(replace(content, gallery=items))
    text = Page(html).text
    assert "These images have no labels, so there is no score" in text
    assert "Coverage 98.8 %" in text and "Confidence 63.3 %" in text
    assert "Classes in use 3 of 4" in text
    assert not re.search(r"accuracy|IoU|Confusion", text, re.IGNORECASE)
    assert 'id="gallery-order"' not in html
    assert "0 road 40.0" in text


def test_split_without_labels_beside_one_with_them():
    content = make_content()
    unlabelled = make_block(labels=False)
    metrics = {
        "em": "default",
        "split": "val",
        **unlabelled,
        "splits": {"train": make_block(), "val": unlabelled},
    }
    text = Page(render_report(replace(content, metrics=metrics))).text
    assert "The images of the split val have no labels" in text
    assert "train 34 34 76.5 78.2" in text
    assert "val 34 0 – – – – 98.8" in text


def test_classes_come_in_their_order_with_their_clusters():
    html = render_report(make_content())
    text = Page(html).text
    rows = ["sky 1 35.0 31.2 51.2", "road 0 40.0 32.2 52.2", "tree 3 0.1 – –", "unmatched 2 24.9"]
    positions = [text.index(row) for row in rows]
    assert positions == sorted(positions)
    assert html.index("background:#00ff00") < html.index("background:#ff0000")
    assert "Cluster without CRF" not in text


def test_clusters_that_refinement_moves_are_shown_twice():
    content = make_content()
    metrics = content.metrics | {"assignment": [0, 1, None, 2]}
    text = Page(render_report(replace(content, metrics=metrics))).text
    assert "Cluster without CRF" in text
    assert "sky 1 35.0 0 31.2 51.2" in text


def test_final_confusion_is_drawn():
    text = Page(render_report(make_content())).text
    assert "1 → sky" in text and "2 (unmatched)" in text


def test_notice_is_the_first_line():
    text = Page(render_report(replace(make_content(), notice="Hand-crafted channels."))).text
    assert text.startswith("Photographs Skip to the results Hand-crafted channels. Photographs")
    assert 'class="notice"' not in render_report(make_content())


def test_gallery_can_be_filtered_and_sorted():
    page = Page(render_report(make_content()))
    cards = [tag for tag in page.find("li") if "data-split" in tag]
    assert [(tag["data-split"], tag["data-accuracy"]) for tag in cards] == [
        ("train", "81.2"),
        ("val", "60"),
    ]
    assert [tag["value"] for tag in page.find("option")] == [
        *("", "train", "val"),
        *("", "worst", "best"),
        *("", "large"),
    ]
    # without the script the controls would do nothing: they are hidden until it runs
    assert any(tag.get("id") == "gallery-controls" and "hidden" in tag for tag in page.find("div"))


def test_many_warnings_are_folded_away():
    content = replace(make_content(), warnings=tuple(f"image {i} is broken" for i in range(50)))
    html = render_report(content)
    folded = html.index("<summary>44 more</summary>")
    assert html.index("image 5 is broken") < folded < html.index("image 6 is broken")
    assert "more</summary>" not in render_report(make_content())


def test_sections_without_content_are_left_out():
    content = replace(make_content(), gallery=(), curve=Curve((), ()), warnings=(), facts=())
    page = Page(render_report(content))
    ids = {tag.get("id") for tag in page.find("section")}
    # nothing unusual is an answer, too
    assert ids == {"scores", "classes", "confusion", "unusual", "reproduction"}
    assert "Nothing: every image was read" in page.text
    targets = {tag["href"] for tag in page.find("a")}
    assert targets == {f"#{name}" for name in ids} | {"#main"}


def test_what_was_unusual_is_listed():
    rows = (("images rejected", "2 of 9: empty file (2)"), ("windows without a proposal", "1 of 7"))
    content = replace(make_content(), unusual=rows, repeatability="The same bytes again.")
    text = Page(render_report(content)).text
    assert "images rejected 2 of 9: empty file (2) windows without a proposal 1 of 7" in text
    assert "The same bytes again." in text
    assert "Nothing: every image" not in text


def test_metrics_of_one_split_alone():
    content = make_content()
    metrics = {key: value for key, value in content.metrics.items() if key != "splits"}
    assert "val 34 34 76.5" in Page(render_report(replace(content, metrics=metrics))).text


def test_ids_are_unique_and_pictures_have_names():
    page = Page(render_report(make_content()))
    ids = [tag["id"] for _, tag in page.tags if "id" in tag]
    assert len(ids) == len(set(ids))
    assert all(tag.get("alt") for tag in page.find("img"))
    assert page.find("html")[0]["lang"] == "en"


def test_picture_from_elsewhere_is_refused():
    item = GalleryItem("a", "val", (("image", "https://example.org/a.png"),), "")
    with pytest.raises(ValueError, match="no data URI"):
        render_report(replace(make_content(), gallery=(item,)))


def test_name_that_is_no_unicode_can_be_written():
    content = make_content()
    item = replace(content.gallery[0], id="caf\udce9.jpg")
    html = render_report(replace(content, gallery=(item,)))
    assert "caf\\udce9.jpg" in html
    html.encode("utf-8")


def test_page_is_the_same_again_and_modest():
    content = make_content()
    html = render_report(content)
    assert render_report(content) == html
    pictures = sum(len(uri) for item in content.gallery for _, uri in item.pictures)
    assert len(html) - pictures < 50_000


def test_other_classifiers_have_rows_of_their_own():
    content = make_content()
    blocks = {
        name: block
        | {
            "running_prototypes": {"accuracy": 74.14, "miou": 36.02},
            "linear_probe": {"accuracy": 92.84, "miou": 66.49},
        }
        for name, block in content.metrics["splits"].items()
    }
    metrics = content.metrics | blocks["val"] | {"splits": blocks}
    text = Page(render_report(replace(content, metrics=metrics))).text
    for split in ("train", "val"):
        assert (
            f"{split} 34 34 76.5 78.2 40.8 42.1 98.8 63.3 3 of 4 "
            "running prototypes 74.1 36.0 linear probe 92.8 66.5" in text
        )
    assert "trained on the labels of the split train" in text
    plain = Page(render_report(content)).text
    assert "linear probe" not in plain.lower()
    assert "running prototypes" not in plain.lower()


def test_other_classifiers_that_scored_nothing_are_left_out():
    content = make_content(labels=False)
    nothing = {"running_prototypes": {"accuracy": None, "miou": None}}
    blocks = {name: block | nothing for name, block in content.metrics["splits"].items()}
    metrics = content.metrics | nothing | {"splits": blocks}
    text = Page(render_report(replace(content, metrics=metrics))).text
    assert "running prototypes" not in text.lower()


def test_the_numbers_of_classes_that_were_tried_are_drawn():
    content = make_content()
    curve = replace(
        content.curve,
        classes=((3, 0.5), (4, 0.75), (9, 0.25)),
        classes_label=HOSTILE,
        chosen=4,
    )
    html = render_report(replace(content, curve=curve))
    page = Page(html)
    assert page.open == []
    assert "Number of classes" in page.text
    assert f"scores without labels: {HOSTILE}. The dot" in page.text
    assert "<script>alert('x')" not in html
    assert "Number of classes" not in Page(render_report(content)).text
