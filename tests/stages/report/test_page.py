"""The HTML page of the report: what it says, that it needs nothing, and that it stays small."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.report import page
from stages.report.content import (
    GALLERY_BYTES,
    LARGE,
    SMALL,
    ClusterCard,
    Content,
    GalleryItem,
    choose_side,
    draw_fit,
)
from stages.report.page import (
    PAGE_BYTES,
    break_path,
    check_picture,
    fit_page,
    format_colour,
    list_choices,
    name_fragment,
    render_report,
    sort_clusters,
)
from stages.report.pictures import take_within
from stages.report.typical import CUTOUT_BYTES, Cutout, trim_cutouts
from tests.report_content import COLOURS, HOSTILE, make_block, make_content, make_hostile

_VOID = {"meta", "link", "img", "br", "hr", "input", "path", "use", "g", "wbr"}


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


@pytest.mark.parametrize("content", [make_content(), make_hostile()], ids=["plain", "hostile"])
def test_page_needs_nothing_from_elsewhere(content: Content):
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
    # each of the four clusters has one cut-out here, and ten there
    assert len(page.find("img")) == len(plain.find("img")) - 4 * 9
    assert page.text.count("<script>alert('x')</script>") >= 30
    assert any(tag["alt"] == f"image of {HOSTILE}" for tag in page.find("img"))
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
        assert f"{split} 34 34 78.2 42.1 98.8 63.3 3.0 of 4 without CRF 76.5 40.8" in text


def test_without_crf_nothing_is_said_of_it():
    text = Page(render_report(make_content(crf=False))).text
    assert "Pixel accuracy 76.5 % without CRF" in text
    assert "train 34 34 76.5 40.8 98.8 63.3 3.0 of 4 val" in text
    assert "with CRF" not in text.replace("without CRF", "")
    assert text.count("without CRF") == 2


def test_without_labels_there_is_no_score():
    html = render_report(make_content(labels=False))
    text = Page(html).text
    assert "These images have no labels, so there is no score" in text
    assert "Coverage 98.8 %" in text and "Confidence 63.3 %" in text
    assert "Class balance 3.0 of 4 effective number of classes; 3 cover at least 0.1 % each" in text
    assert re.findall(r"<dt>(.*?)</dt>", html)[:3] == ["Coverage", "Confidence", "Class balance"]
    assert not re.search(r"accuracy|\bIoU\b|confusion", text, re.IGNORECASE)
    assert "lowest confidence first" in text
    assert "names.yaml" in text


def test_split_without_labels_beside_one_with_them():
    content = make_content()
    unlabelled = make_block(labels=False)
    metrics = {
        "em": "default",
        "split": "val",
        **unlabelled,
        "splits": {"train": make_block(), "val": unlabelled},
    }
    text = Page(render_report(dict(content, metrics=metrics))).text
    assert "The images of the split val have no labels" in text
    assert "train 34 34 78.2 42.1" in text
    assert "val 34 0 – – 98.8" in text


def test_classes_come_in_their_order_with_their_clusters():
    content = make_content()
    shuffled = dict(content, clusters=tuple(reversed(content["clusters"])))
    for html in (render_report(content), render_report(shuffled)):
        text = Page(html).text
        rows = (
            "sky cluster 0 Show in gallery Pixels 40.0 % IoU 51.2 % IoU without CRF 31.2 % "
            "Stability 90.0 %",
            "field cluster 1 Show in gallery Pixels 35.0 % IoU 52.2 % IoU without CRF 32.2 %",
            "road cluster 2 Show in gallery Pixels 24.9 % IoU – IoU without CRF – "
            "Stability 30.0 %, comes and goes",
            "cluster 3 no class Show in gallery Pixels 0.05 % IoU – IoU without CRF –",
        )
        positions = [text.index(row) for row in rows]
        assert positions == sorted(positions)
    assert "Nearest field (1) 0.25" in text


def test_a_name_of_the_users_stands_beside_the_class():
    content = make_content()
    named = replace(content["clusters"][1], name="lawn")
    html = render_report(dict(content, clusters=(content["clusters"][0], named)))
    assert "lawn cluster 1 · class field" in Page(html).text


def test_an_image_of_another_split_has_the_names_of_its_own():
    content = make_content()
    item = content["gallery"][0]
    own = replace(item, names=("meadow",) * 4, colours=((1, 2, 3),) * 4)
    html = render_report(dict(content, gallery=(own,)))
    assert '<tr data-colour="#010203">' in html
    assert "meadow" in Page(html).text


def test_classes_that_no_cluster_found_are_named():
    content = make_content()
    text = Page(render_report(dict(content, clusters=content["clusters"][:2]))).text
    assert "No cluster is matched to: road." in text
    assert "No cluster is matched to" not in Page(render_report(content)).text


def test_final_confusion_is_drawn_and_its_largest_entries_listed():
    text = Page(render_report(make_content())).text
    assert "1 → field" in text and "3 (unmatched)" in text
    # of 276 pixels in all and 98 of the class
    assert "field cluster 3 26 % 9.1 %" in text


def test_notice_is_the_first_line():
    text = Page(render_report(dict(make_content(), notice="Hand-crafted channels."))).text
    assert text.startswith("Photographs Skip to the results Hand-crafted channels. Photographs")
    assert 'class="notice"' not in render_report(make_content())


def test_gallery_can_be_filtered_and_sorted():
    page = Page(render_report(make_content()))
    cards = [tag for tag in page.find("li") if "data-split" in tag]
    assert [(tag["data-split"], tag["data-role"], tag["data-score"]) for tag in cards[3:6]] == [
        ("train", "sample", "81.0"),
        ("val", "worst", "12.5"),
        ("val", "best", "99.0"),
    ]
    assert cards[0]["id"] == "image/train/part%200%2Fscene%200"
    assert re.fullmatch(r"\d:[\d.]+( \d:[\d.]+){2}", cards[0]["data-parts"] or "")
    # without the script the controls would do nothing: they are hidden until it runs
    assert any(tag.get("id") == "gallery-controls" and "hidden" in tag for tag in page.find("div"))


def test_only_layers_that_there_are_can_be_chosen():
    html = render_report(make_content(labels=False, crf=False))
    values = [tag["value"] for tag in Page(html).find("option")]
    assert [v for v in values if v in ("features", "proposals", "label", "label_crf", "truth")] == [
        "features",
        "proposals",
        "label",
    ]


def test_many_warnings_are_folded_away():
    content = dict(make_content(), warnings=tuple(f"image {i} is broken" for i in range(50)))
    html = render_report(content)
    folded = html.index("<summary>44 more</summary>")
    assert html.index("image 5 is broken") < folded < html.index("image 6 is broken")
    assert "more</summary>" not in render_report(make_content())


def test_sections_without_content_are_left_out():
    content = dict(make_content(), gallery=(), curves=[], warnings=(), facts=(), clusters=())
    page = Page(render_report(content))
    ids = {tag.get("id") for tag in page.find("section")}
    # nothing unusual is an answer, too
    assert ids == {"scores", "classes", "confusion", "unusual", "settings"}
    assert "Nothing: every image was read" in page.text
    targets = {tag["href"] for tag in page.find("a")}
    assert targets == {f"#{name}" for name in ids} | {"#main"}


def test_links_lead_somewhere():
    page = Page(render_report(make_content()))
    ids = {tag["id"] for _, tag in page.tags if "id" in tag}
    links = {tag["href"] for tag in page.find("a") if "href" in tag}
    assert {link[1:] for link in links if link} <= ids


def test_what_was_unusual_is_listed():
    rows = (("images rejected", "2 of 9: empty file (2)"), ("windows without a proposal", "1 of 7"))
    content = dict(make_content(), unusual=rows, repeatability="The same bytes again.")
    text = Page(render_report(content)).text
    assert "images rejected 2 of 9: empty file (2) windows without a proposal 1 of 7" in text
    assert "The same bytes again." in text
    assert "Nothing: every image" not in text


def test_metrics_of_one_split_alone():
    content = make_content()
    metrics = {key: value for key, value in content["metrics"].items() if key != "splits"}
    assert "val 34 34 78.2" in Page(render_report(dict(content, metrics=metrics))).text


def test_ids_are_unique_and_pictures_have_names():
    page = Page(render_report(make_content()))
    ids = [tag["id"] for _, tag in page.tags if "id" in tag]
    assert len(ids) == len(set(ids))
    assert all(tag.get("alt") for tag in page.find("img"))
    assert page.find("html")[0]["lang"] == "en"


@pytest.mark.parametrize("place", ["gallery", "cluster"])
def test_picture_from_elsewhere_is_refused(place: str):
    content = make_content()
    source = "https://example.org/a.png"
    if place == "gallery":
        item = replace(content["gallery"][0], pictures={"image": source})
        content = dict(content, gallery=(item,))
    else:
        cutout = replace(content["clusters"][0].cutouts[0], source=source)
        content = dict(content, clusters=(replace(content["clusters"][0], cutouts=(cutout,)),))
    with pytest.raises(ValueError, match="no data URI"):
        render_report(content)


def test_name_that_is_no_unicode_can_be_written():
    content = make_content()
    item = replace(content["gallery"][0], id="caf\udce9.jpg")
    html = render_report(dict(content, gallery=(item,), facts=(("folder", "caf\udce9/a"),)))
    assert ">caf\\udce9.jpg</a>" in html
    assert 'href="#image/train/caf%5Cudce9.jpg"' in html
    html.encode("utf-8")


def test_page_is_the_same_again_and_modest():
    content = make_content()
    html = render_report(content)
    assert render_report(content) == html
    pictures = sum(item.size for item in content["gallery"])
    cutouts = sum(len(c.source) for card in content["clusters"] for c in card.cutouts)
    assert len(html) - pictures - cutouts < 110_000


def test_every_picture_is_there_once():
    content = make_content()
    html = render_report(content)
    for item in content["gallery"]:
        assert html.count(item.pictures["image"]) == 1


def test_other_classifiers_have_rows_of_their_own():
    content = make_content()
    blocks = {
        name: block
        | {
            "running_prototypes": {"accuracy": 74.14, "miou": 36.02},
            "linear_probe": {"accuracy": 92.84, "miou": 66.49},
        }
        for name, block in content["metrics"]["splits"].items()
    }
    metrics = content["metrics"] | blocks["val"] | {"splits": blocks}
    text = Page(render_report(dict(content, metrics=metrics))).text
    assert text.count("running prototypes 74.1 36.0 linear probe 92.8 66.5") == 2
    assert "trained on the labels of the split train" in text
    plain = Page(render_report(content)).text
    assert "linear probe" not in plain.lower()
    assert "running prototypes" not in plain.lower()


def test_other_classifiers_that_scored_nothing_are_left_out():
    content = make_content(labels=False)
    nothing = {"running_prototypes": {"accuracy": None, "miou": None}}
    blocks = {name: block | nothing for name, block in content["metrics"]["splits"].items()}
    metrics = content["metrics"] | nothing | {"splits": blocks}
    text = Page(render_report(dict(content, metrics=metrics))).text
    assert "running prototypes" not in text.lower()


def test_the_numbers_of_classes_that_were_tried_are_drawn():
    content = make_content()
    attributes = {
        "classes_curve": ((3, 0.5), (4, 0.75), (9, 0.25)),
        "classes_label": HOSTILE,
        "classes": 4,
    }
    html = render_report(dict(content, curves=draw_fit({}, attributes, COLOURS)))
    page = Page(html)
    assert page.open == []
    assert "Number of classes" in page.text
    assert f"scores without labels: {HOSTILE}. The dot" in page.text
    assert "<script>alert('x')" not in html
    assert "Number of classes" not in Page(render_report(content)).text


def test_scores_without_labels_are_drawn():
    text = Page(render_report(make_content())).text
    assert "Silhouette, cosine" in text
    content = make_content()
    curves = draw_fit({"class_usage": np.array([[0.5, 0.5], [1, 0]])}, {}, COLOURS)
    text = Page(render_report(dict(content, curves=curves))).text
    assert "Effective classes" in text and "It falls when classes die." in text
    assert "Silhouette" not in Page(render_report(dict(content, curves=[]))).text


def test_the_maker_is_named():
    assert "Made by primaps-pipe\xa09.9." in "".join(Page(render_report(make_content())).texts)


def find_items(content: Content) -> list[dict[str, str | None]]:
    return [tag for tag in Page(render_report(content)).find("li") if "data-parts" in tag]


def test_what_there_is_to_choose_from() -> None:
    content = make_content()
    choices = list_choices(content["gallery"], content["clusters"])
    assert choices["splits"] == ["train", "val"]
    assert choices["roles"] == ["worst", "best", "sample"]
    assert [key for key, _ in choices["layers"]] == [
        "features",
        "proposals",
        "label",
        "label_crf",
        "truth",
        "errors",
    ]
    assert [(card.cluster, card.label) for card in choices["clusters"]] == [
        (0, "sky (0)"),
        (1, "field (1)"),
        (2, "road (2)"),
        (3, "cluster 3"),
    ]
    assert choices["score"] == "accuracy"


def test_without_labels_images_are_sorted_by_confidence() -> None:
    content = make_content(labels=False)
    assert list_choices(content["gallery"], [])["score"] == "confidence"
    assert [item["data-score"] for item in find_items(content)] == [f"{60 + n}.0" for n in range(8)]
    assert "IoU, %" not in Page(render_report(content)).text
    assert "IoU, %" in Page(render_report(make_content())).text


def test_an_image_without_labels_among_others_has_no_score() -> None:
    content = make_content()
    bare = replace(content["gallery"][0], accuracy=None)
    first, second, *_ = find_items(dict(content, gallery=(bare, *content["gallery"][1:])))
    assert "data-score" not in first
    assert second["data-score"] == "97.2"


def test_no_images() -> None:
    content = dict(make_content(), gallery=())
    assert find_items(content) == [] and list_choices([], content["clusters"])["score"] == ""


def test_shares_are_what_the_filter_reads() -> None:
    content = make_content()
    parts = dict(part.split(":") for part in (find_items(content)[0]["data-parts"] or "").split())
    assert {int(cluster) for cluster in parts} == {p.cluster for p in content["gallery"][0].parts}
    assert sum(map(float, parts.values())) == pytest.approx(100, abs=0.5)


def test_clusters_stand_in_the_order_of_the_classes_then_by_size() -> None:
    content = make_content()
    cards = [
        replace(content["clusters"][0], class_name="road"),
        replace(content["clusters"][1], class_name=None, share=1.0),
        replace(content["clusters"][2], class_name="sky"),
        replace(content["clusters"][3], class_name=None, share=7.0),
    ]
    changed = dict(content, clusters=tuple(cards))
    classes = content["metrics"]["class_names"]
    assert [card.cluster for card in sort_clusters(cards, classes)] == [2, 0, 3, 1]
    assert "No cluster is matched to: field." in Page(render_report(changed)).text


def test_the_strip_holds_what_covers_something() -> None:
    content = make_content()
    shares = (20.0, 0.05, 0.1, 45.0)
    cards = [replace(c, share=s) for c, s in zip(content["clusters"], shares, strict=True)]
    html = render_report(dict(content, clusters=cards))
    strip = re.search(r'<ul class="strip".*?</ul>', html, re.DOTALL)
    assert strip is not None
    assert re.findall(r"#cluster-(\d)", strip[0]) == ["3", "0", "2"]


def test_only_cutouts_of_images_that_are_shown_are_links() -> None:
    page = Page(render_report(make_content()))
    links = [tag.get("href") or "" for tag in page.find("a")]
    links = [link for link in links if link.startswith("#image/")]
    # of ten cut-outs of each of the four clusters, eight; and the heading of every image
    assert links.count("#image/train/part%201%2Fscene%201") == 4 + 1
    assert len(links) == 4 * 8 + 8


def test_a_number_is_said_where_the_name_does_not() -> None:
    card = make_content()["clusters"][0]
    assert card.label == "sky (0)"
    assert replace(card, name="cluster 0").label == "cluster 0"


def make_item(name: int, size: int) -> GalleryItem:
    return GalleryItem(str(name), "val", "sample", {"image": "x" * size})


def make_sized(sizes: list[int], cutout: int = 0) -> Content:
    cutouts = (Cutout("x" * cutout, "a", "val", 0.5),) if cutout else ()
    return {
        "title": "",
        "notice": "",
        "facts": (),
        "settings_yaml": "",
        "commands": (),
        "metrics": {},
        "gallery": tuple(make_item(n, size) for n, size in enumerate(sizes)),
        "cutout_note": "",
        "clusters": (ClusterCard(0, "a", (0, 0, 0), cutouts=cutouts),),
        "warnings": (),
        "sample_note": "Chosen.",
    }


def render_sized(content: Content) -> str:
    """Render all pictures twice, as a page may, and a text of a thousand bytes."""
    pictures = sum(item.size for item in content["gallery"])
    cutouts = sum(len(cutout.source) for card in content["clusters"] for cutout in card.cutouts)
    return (
        "x" * (2 * pictures + cutouts + 1000)
        + f"{len(content['gallery'])}|{content['sample_note']}|{content['cutout_note']}"
    )


def test_the_parts_leave_room_for_text() -> None:
    assert GALLERY_BYTES + CUTOUT_BYTES <= PAGE_BYTES - 3_000_000
    assert (choose_side(24), choose_side(61)) == (LARGE, SMALL)


def test_images_are_taken_as_long_as_they_fit() -> None:
    asked = []

    def show() -> Iterator[GalleryItem]:
        for number in range(9):
            asked.append(number)
            yield make_item(number, 30)

    items = take_within(show(), lambda item: item.size, 100)
    assert [item.id for item in items] == ["0", "1", "2"]
    assert asked == [0, 1, 2, 3], "no more than is needed"
    assert list(take_within([make_item(0, 30)], lambda item: item.size, 29)) == []


def test_every_cluster_keeps_its_most_typical() -> None:
    cutouts = {
        cluster: [Cutout("x" * 10, str(rank), "val", 1 - rank / 9) for rank in range(count)]
        for cluster, count in ((3, 4), (5, 1), (8, 3))
    }
    kept = trim_cutouts(cutouts, 59)
    assert {k: [c.image_id for c in v] for k, v in kept.items()} == {
        3: ["0", "1"],
        5: ["0"],
        8: ["0", "1"],
    }
    assert trim_cutouts(cutouts) == cutouts
    assert trim_cutouts({}) == {}


def test_a_page_that_fits_is_left_alone() -> None:
    content = make_sized([10, 20])
    assert fit_page(content, render_sized, 2000) == render_sized(content)


def test_a_page_that_does_not_fit_says_so() -> None:
    page = fit_page(make_sized([1000] * 10), render_sized, 9000)
    assert len(page) <= 9000
    assert "Only 2 of the 10 chosen images are shown" in page
    assert page.endswith("Chosen.|")
    assert page.count("Only") == 1


def test_cutouts_go_last() -> None:
    page = fit_page(make_sized([5000], 5000), render_sized, 7000)
    assert "0|Only 0 of the 1 chosen" in page and "no cut-outs" not in page
    page = fit_page(make_sized([5000], 9000), render_sized, 7000)
    assert "There are no cut-outs, so that the page" in page
    assert len(fit_page(make_sized([]), render_sized, 10)) > 10, "its text alone is larger"


@given(sizes=st.lists(st.integers(0, 3000), max_size=30), most=st.integers(1400, 50_000))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_any_page_fits_in_the_end(sizes: list[int], most: int) -> None:
    assert len(fit_page(make_sized(sizes, 3000), render_sized, most)) <= most


TEMPLATES = Path(page.__file__).parent / "templates"


@given(st.lists(st.text(), min_size=1))
def test_a_fragment_can_be_read_again(parts: list[str]) -> None:
    fragment = name_fragment(*parts)
    assert fragment.isascii() and not set(fragment) & set(" \"'<>&#\n")
    assert [unquote(part) for part in fragment.split("/")] == parts


def test_a_fragment_of_what_is_no_unicode() -> None:
    assert name_fragment("image", "caf\udce9") == "image/caf%5Cudce9"


def test_paths_break_after_their_separators() -> None:
    assert break_path("a/b_c.d") == "a/<wbr>b_<wbr>c.<wbr>d"
    assert break_path("<b>/&") == "&lt;b&gt;/<wbr>&amp;"


def test_a_colour() -> None:
    assert format_colour((0, 15, 255)) == "#000fff"


@pytest.mark.parametrize("source", ["", "https://a/b.png", "data:text/html,x", " data:image/png,"])
def test_a_picture_is_a_data_uri(source: str) -> None:
    with pytest.raises(ValueError, match="the picture of a is no data URI"):
        check_picture(source, "of a")


def test_scripts_and_styles_can_stand_inside_a_page() -> None:
    for file in TEMPLATES.iterdir():
        if file.suffix in (".js", ".css"):
            text = file.read_text(encoding="utf-8")
            assert "</" not in text, file
            for word in ("innerHTML", "eval(", "document.write", "http"):
                assert word not in text, (file, word)
