"""What can be done in the report: filter, order, overlay, look at one image, with keys alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.run.evaluation import parse_names
from stages.report.page import render_report
from tests.browser.conftest import Open
from tests.report_content import ACCURACY, HOSTILE, make_content


@pytest.fixture
def page(report: Path, open_page: Open) -> Any:
    return open_page(report, reduced_motion="reduce")


def names(page: Any) -> list[str]:
    """List the images that are shown, in their order."""
    return page.locator("#gallery-items > li:visible h3").all_inner_texts()


def scene(number: int) -> str:
    return f"part {number % 2}/scene {number}"


def await_page(page: Any, name: str) -> None:
    """Wait for the page of an image: addresses change a moment after keys and clicks."""
    page.locator("#viewer-name").get_by_text(name, exact=True).wait_for()


def await_gallery(page: Any) -> None:
    page.locator("#viewer").wait_for(state="hidden")
    page.locator("#main").wait_for()


def count(page: Any) -> str:
    return page.locator("#gallery-count").inner_text()


def test_all_images_are_shown_at_first(page: Any) -> None:
    assert names(page) == [scene(number) for number in range(8)]
    assert count(page) == "8 of 8 images"
    assert not page.locator("#gallery-reset").is_visible()


def test_names_are_downloaded_as_a_file(page: Any, tmp_path: Path) -> None:
    page.locator("#naming summary").click()
    assert page.locator("#naming-count").inner_text() == "1 of 4 clusters have a name"
    page.fill("#naming input[data-cluster='2']", HOSTILE[:80])
    page.fill("#naming input[data-cluster='0']", " no ")
    with page.expect_download() as download:
        page.locator("#naming-save").click()
    assert download.value.suggested_filename == "names.yaml"
    file = tmp_path / "names.yaml"
    download.value.save_as(file)
    names = parse_names(file.read_bytes(), file)
    assert names == {(0,): "no", (1,): "meadow", (2,): HOSTILE[:80]}


def test_filter_by_split_and_by_reason(page: Any) -> None:
    page.select_option("#gallery-split", "val")
    assert names(page) == [scene(number) for number in range(4, 8)]
    page.select_option("#gallery-role", "worst")
    assert names(page) == [scene(4)]
    assert count(page) == "1 of 8 images"
    page.locator("#gallery-reset").click()
    assert len(names(page)) == 8


def test_filter_by_class(page: Any) -> None:
    assert page.locator("#gallery-class option").all_inner_texts() == [
        "any class",
        "sky (0)",
        "field (1)",
        "road (2)",
        "cluster 3",
    ]
    page.select_option("#gallery-class", "3")
    assert names(page) == [scene(number) for number in (0, 2, 4, 6)]
    page.select_option("#gallery-order", "class")
    shares = page.evaluate(
        "Array.from(document.querySelectorAll('#gallery-items > li:not([hidden])'))"
        ".map(item => Number(item.dataset.parts.match(/3:([\\d.]+)/)[1]))"
    )
    assert shares == sorted(shares, reverse=True)


def test_filter_by_score(page: Any) -> None:
    page.fill("#gallery-least", "63")
    page.fill("#gallery-most", "81")
    assert names(page) == [scene(n) for n, score in enumerate(ACCURACY) if 63 <= score <= 81]
    page.fill("#gallery-least", "99.5")
    assert names(page) == []
    assert page.locator("#gallery-none").is_visible()
    page.fill("#gallery-least", "")
    page.fill("#gallery-most", "")
    assert len(names(page)) == 8


@pytest.mark.parametrize(("order", "sign"), [("worst", 1), ("best", -1)])
def test_order_by_score(order: str, sign: int, page: Any) -> None:
    page.select_option("#gallery-order", order)
    expected = sorted(range(8), key=lambda number: sign * ACCURACY[number])
    assert names(page) == [scene(number) for number in expected]
    page.select_option("#gallery-order", "name")
    assert names(page) == [scene(n) for n in (0, 2, 4, 6, 1, 3, 5, 7)]


def test_a_class_shows_its_images(page: Any) -> None:
    page.locator("#cluster-3 .show").click()
    assert names(page) and set(names(page)) == {scene(number) for number in (0, 2, 4, 6)}
    assert page.locator("#gallery-class").evaluate("e => document.activeElement === e")
    assert page.locator("#gallery").evaluate("e => e.getBoundingClientRect().top") < 200


@pytest.mark.parametrize(
    ("order", "expected"), [("iou", "0132"), ("share", "0123"), ("number", "0123"), ("", "3012")]
)
def test_order_of_the_classes(order: str, expected: str, tmp_path: Path, open_page: Open) -> None:
    content = make_content()
    odd = replace(content["clusters"][3], class_name="sky", iou=99.0)  # the first class now
    first = replace(content["clusters"][0], class_name="field", iou=12.0)
    second = replace(content["clusters"][1], class_name="road", iou=50.0)
    third = replace(content["clusters"][2], class_name=None, iou=None)
    cards = (odd, second, third, first)
    file = tmp_path / "index.html"
    file.write_text(render_report(dict(content, clusters=cards)), encoding="utf-8")
    page = open_page(file)
    page.select_option("#clusters-order", order)
    assert (
        "".join(
            page.evaluate(
                "Array.from(document.querySelectorAll('.cluster')).map(card => card.dataset.number)"
            )
        )
        == expected
    )


def test_overlay_with_its_slider(page: Any) -> None:
    page.locator("#view-overlay").click()
    first = page.locator("#gallery-items > li").first
    shown = first.locator("figure:visible")
    assert [f.get_attribute("data-key") for f in shown.all()] == ["image", "label_crf"]
    over = first.locator('figure[data-key="label_crf"]')
    under = first.locator('figure[data-key="image"] img')
    assert over.locator("img").bounding_box() == under.bounding_box()
    slider = page.locator("#gallery-opacity")
    slider.focus()
    before = float(over.evaluate("e => getComputedStyle(e).opacity"))
    page.keyboard.press("ArrowRight")
    assert float(over.evaluate("e => getComputedStyle(e).opacity")) == pytest.approx(before + 0.01)
    page.keyboard.press("Home")
    assert float(over.evaluate("e => getComputedStyle(e).opacity")) == 0
    assert page.locator("#gallery-opacity-value").inner_text() == "0 %"
    page.select_option("#gallery-layer", "truth")
    assert [f.get_attribute("data-key") for f in shown.all()] == ["image", "truth"]
    page.locator("#view-rows").click()
    assert shown.count() == 7


def test_page_of_an_image(page: Any) -> None:
    page.locator("#gallery-items h3 a").nth(2).click()
    await_page(page, scene(2))
    assert page.evaluate("location.hash") == "#image/train/part%200%2Fscene%202"
    assert page.title() == f"{scene(2)} – Photographs"
    assert not page.locator("#main").is_visible()
    assert page.locator("#viewer-place").inner_text() == "3 of 8"
    assert page.locator("#viewer-pictures figure").count() == 7
    text = page.locator("#viewer-numbers").inner_text()
    assert "160 x 120 px" in text and "cluster 3" in text
    layer = page.locator("#viewer-stack img").nth(1)
    source = page.locator('#viewer-pictures figure[data-key="errors"] img').get_attribute("src")
    assert layer.get_attribute("src") != source
    page.get_by_role("button", name="errors").click()
    assert layer.get_attribute("src") == source
    page.locator('#viewer-pictures figure[data-key="features"] img').click()
    pressed = page.locator('#viewer-layers [aria-pressed="true"]')
    assert pressed.all_inner_texts() == ["features (PCA)"]
    page.fill("#viewer-opacity", "20")
    assert layer.evaluate("e => getComputedStyle(e).opacity") == "0.2"
    # the link to a class leads out of the page of the image
    page.locator("#viewer-numbers a").first.click()
    await_gallery(page)
    page.go_back()
    await_page(page, scene(2))


def test_page_of_an_image_by_its_address(report: Path, open_page: Open) -> None:
    page = open_page(report, place="#image/val/part%201%2Fscene%205")
    await_page(page, scene(5))
    # what somebody types may be encoded in another way, or lead nowhere
    for place, number in (("#image/val/part 0/scene 4", 4), ("#image/train/part%201/scene%203", 3)):
        page.evaluate("place => { location.hash = place }", place)
        await_page(page, scene(number))
    for place in ("#image/val/nothing", "#image/%E0%A4%A", "#gallery"):
        page.evaluate("place => { location.hash = place }", place)
        await_gallery(page)


def test_from_image_to_image_with_keys(page: Any) -> None:
    page.select_option("#gallery-order", "worst")
    page.select_option("#gallery-split", "train")
    page.locator("#gallery-items > li:visible h3 a").first.focus()
    page.keyboard.press("Enter")
    await_page(page, scene(0))
    assert page.locator("#viewer-previous").get_attribute("href") is None
    for number in (2, 3, 1, 1):  # there is none after the last
        page.keyboard.press("ArrowRight")
        await_page(page, scene(number))
    assert page.locator("#viewer-next").get_attribute("aria-disabled") == "true"
    page.keyboard.press("ArrowLeft")
    await_page(page, scene(3))
    page.keyboard.press("2")
    pressed = page.locator('#viewer-layers [aria-pressed="true"]')
    assert pressed.inner_text() == "proposals"
    page.locator("#viewer-opacity").focus()
    page.keyboard.press("ArrowRight")  # the slider's own key
    await_page(page, scene(3))
    page.keyboard.press("Escape")
    await_gallery(page)
    focused = page.evaluate("document.activeElement.textContent")
    assert focused == scene(3)
    assert page.title() == "Photographs"


def test_the_classes_under_the_pointer(page: Any) -> None:
    page.locator("#gallery-items h3 a").first.click()
    await_page(page, scene(0))
    line = page.locator("#viewer-pointer")
    assert line.inner_text() == "Point at the picture to read its classes."
    box = page.locator("#viewer-stack").bounding_box()
    page.mouse.move(box["x"] + 9, box["y"] + 9)
    line.get_by_text("label: sky · label + CRF: sky · ground truth: sky", exact=True).wait_for()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + box["height"] - 3)
    expected = "label: cluster 3 · label + CRF: cluster 3 · ground truth: road"
    line.get_by_text(expected, exact=True).wait_for()


def test_links_before_and_after(page: Any) -> None:
    page.locator("#gallery-items h3 a").first.click()
    page.locator("#viewer-next").click()
    await_page(page, scene(1))
    page.locator("#viewer-previous").click()
    await_page(page, scene(0))
    page.locator("#viewer-close").click()
    await_gallery(page)


def test_a_cutout_leads_to_its_image(page: Any) -> None:
    page.locator("#cluster-1 .cutouts a").nth(3).click()
    await_page(page, scene(3))
    # two of the ten come from images that the gallery does not show
    page.keyboard.press("Escape")
    await_gallery(page)
    assert page.locator("#cluster-1 .cutouts a").count() == 8


def test_keys_reach_everything(page: Any) -> None:
    page.keyboard.press("Tab")
    skip = page.locator(".skip")
    assert skip.evaluate("e => document.activeElement === e")
    assert skip.bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    reached = set()
    for _ in range(70):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("(e => e.id || e.className || e.tagName)(document.activeElement)")
        )
        ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert ring not in ("none", ""), reached
    assert {"gallery-split", "gallery-class", "gallery-least", "gallery-order"} <= reached
    assert {"view-rows", "view-overlay"} <= reached


def test_commands_can_be_copied(page: Any) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(".copyable .copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == "primaps-pipe extract run --dataset folder\nprimaps-pipe evaluate run"
    page.get_by_role("button", name="Copy", exact=True).wait_for()


def test_the_section_on_the_screen_is_marked(page: Any) -> None:
    page.locator("nav a", has_text="Classes").click()
    page.locator("nav a[aria-current]", has_text="Classes").wait_for()
    assert page.locator("nav a[aria-current]").count() == 1
