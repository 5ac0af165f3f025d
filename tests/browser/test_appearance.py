"""How the report looks: at several widths, light and dark, without a script, with hostile text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages.report.page import render_report
from tests.browser.conftest import Open, overflow
from tests.report_content import make_content, make_hostile

SECTIONS = ("scores", "gallery", "classes", "confusion", "training")
TEXTS = (
    "h1",
    "h2",
    ".tile dt",
    ".tile .value",
    ".tile .detail",
    ".facts dt",
    ".facts dd",
    ".warnings li",
    ".legend a",
    "thead th",
    "tbody td",
    "tr.other th",
    "pre",
    "figcaption",
    ".badge.worst",
    ".badge.best",
    ".badge.sample",
    ".item-note",
    ".item-head a",
    ".controls label",
    "select",
    "#view-rows",
    "#view-overlay",
    ".cluster-figures dt",
    ".cluster-figures a",
    "nav a",
    "footer",
)
# contrast as WCAG 2 defines it, over the nearest ancestor that has a background
CONTRAST = """element => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = rgb => rgb.slice(0, 3).map(value => value / 255)
    .map(value => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  let behind = element, back = [0, 0, 0, 0];
  while (behind && back[3] === 0) {
    back = parse(getComputedStyle(behind).backgroundColor);
    if (back.length === 3) { back.push(1); }
    behind = behind.parentElement;
  }
  const pair = [light(parse(getComputedStyle(element).color)), light(back)].sort((a, b) => b - a);
  return (pair[0] + 0.05) / (pair[1] + 0.05);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_screenshots(
    width: int, scheme: str, report: Path, open_page: Open, screenshots: Path
) -> None:
    page = open_page(report, width=width, scheme=scheme, reduced_motion="reduce")

    def shoot(name: str) -> None:
        assert overflow(page) <= 0
        file = screenshots / f"report-{name}-{width}-{scheme}.png"
        page.screenshot(path=str(file))
        assert file.stat().st_size > 5000

    for section in SECTIONS:
        page.evaluate("id => document.getElementById(id).scrollIntoView()", section)
        shoot(section)
    page.locator("#view-overlay").click()
    shoot("overlay")
    page.locator("#gallery-items h3 a").first.click()
    shoot("image")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 150) == (scheme == "dark")


@pytest.mark.parametrize("labels", [True, False])
def test_nothing_is_wider_than_the_page(labels: bool, tmp_path: Path, open_page: Open) -> None:
    file = tmp_path / "index.html"
    file.write_text(render_report(make_content(labels=labels)), encoding="utf-8")
    page = open_page(file)
    for place in ("rows", "overlay", "image"):
        if place == "overlay":
            page.locator("#view-overlay").click()
        if place == "image":
            page.locator("#gallery-items h3 a").last.click()
        for width in (320, 360, 390, 768, 1200):
            page.set_viewport_size({"width": width, "height": 900})
            assert overflow(page) <= 0, (place, width)


def test_the_table_of_splits_fits_beside_the_facts(report: Path, open_page: Open) -> None:
    page = open_page(report, width=1200)
    wide = "element => element.scrollWidth - element.clientWidth"
    assert page.locator("#scores .scroll").evaluate(wide) <= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out(scheme: str, report: Path, open_page: Open) -> None:
    page = open_page(report, scheme=scheme)
    ratios = {text: page.locator(text).first.evaluate(CONTRAST) for text in TEXTS}
    assert {text: ratio for text, ratio in ratios.items() if ratio < 4.5} == {}
    # a check that can fail: on a background of its own colour nothing does
    page.add_style_tag(content="h1 { background: currentColor }")
    assert page.locator("h1").evaluate(CONTRAST) == pytest.approx(1)


def test_without_a_script_all_is_there(report: Path, open_page: Open) -> None:
    page = open_page(report, java_script_enabled=False)
    assert page.locator("#gallery-items > li:visible").count() == 8
    assert page.locator("#gallery-items figure:visible").count() == 8 * 7
    # what would do nothing is not shown
    for control in ("#gallery-controls", ".copy", ".show", "#viewer", "#naming"):
        assert not page.locator(control).first.is_visible()
    numbers = page.locator(".numbers").first
    numbers.locator("summary").click()
    assert "160 x 120 px" in numbers.inner_text()
    assert "primaps-pipe evaluate run" in page.locator(".copyable").inner_text()


def test_hostile_text_is_shown_and_does_nothing(tmp_path: Path, open_page: Open) -> None:
    file = tmp_path / "index.html"
    file.write_text(render_report(make_hostile()), encoding="utf-8")
    page = open_page(file, width=360)
    assert overflow(page) <= 0
    link = page.locator("#gallery-items h3 a").first
    name = link.inner_text()
    link.click()
    page.locator("#viewer-name").get_by_text(name, exact=True).wait_for()
    assert overflow(page) <= 0
    page.reload()
    page.locator("#viewer-name").get_by_text(name, exact=True).wait_for()
    assert page.locator("script").count() == 1


def test_the_report_of_a_real_run(finished: Path, open_page: Open, screenshots: Path) -> None:
    page = open_page(finished / "report" / "index.html")
    page.screenshot(path=str(screenshots / "report-of-a-run.png"))
    assert overflow(page) <= 0
    items = page.locator("#gallery-items > li")
    assert items.count() > 0
    loaded = "image => image.complete && image.naturalWidth > 0"
    pictures: list[Any] = page.locator("#gallery-items img").all()
    assert all(
        picture.evaluate(f"async image => {{ await image.decode(); return ({loaded})(image) }}")
        for picture in pictures[:20]
    )
    assert page.locator(".cluster").count() == 3
    items.first.locator("h3 a").click()
    assert page.locator("#viewer .stack img").count() == 2
    assert "accuracy" in page.locator("#viewer-numbers").inner_text().lower()
