"""The page of a comparison in a real browser: looks, filter, order, and labels over photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages.report.comparison import render_comparison
from tests.browser.conftest import Open, overflow
from tests.browser.test_appearance import CONTRAST
from tests.comparison_content import make_comparison, make_hostile

SECTIONS = ("scores", "gallery", "agreement", "settings", "classes", "curves")
TEXTS: tuple[str, ...] = ("h1", ".subtitle", "h2", "td.best", ".legend li", "figcaption")
TEXTS += (".figure", ".badge", ".rows h3 span", "output", ".facts dd", "pre", ".note", "footer")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("a comparison & more") / "comparison.html"
    file.write_text(render_comparison(make_comparison()), encoding="utf-8")
    return file


@pytest.fixture
def page(comparison: Path, open_page: Open) -> Any:
    return open_page(comparison, reduced_motion="reduce")


def list_images(page: Any) -> list[str]:
    """List the images that are shown, by the number of their scene."""
    names = page.locator("#gallery-items > li:visible").evaluate_all(
        "items => items.map(item => item.dataset.name)"
    )
    return [name.split()[-1] for name in names]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_screenshots(
    width: int, scheme: str, comparison: Path, open_page: Open, screenshots: Path
) -> None:
    page = open_page(comparison, width=width, scheme=scheme, reduced_motion="reduce")
    for section in SECTIONS:
        page.evaluate("id => document.getElementById(id).scrollIntoView()", section)
        assert overflow(page) <= 0
        file = screenshots / f"comparison-{section}-{width}-{scheme}.png"
        page.screenshot(path=str(file))
        assert file.stat().st_size > 5000
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 150) == (scheme == "dark")


def test_those_that_differ_most_come_first(page: Any) -> None:
    assert list_images(page) == ["1", "3", "0", "2"]
    page.select_option("#gallery-order", "name")
    assert list_images(page) == ["0", "3", "1", "2"], "by split, and then by id"


def test_filter_by_split(page: Any) -> None:
    page.select_option("#gallery-split", "train")
    assert list_images(page) == ["3", "0"]
    assert page.locator("#gallery-count").inner_text() == "2 of 4 images"
    page.select_option("#gallery-split", "")
    assert len(list_images(page)) == 4


def test_labels_lie_over_their_photograph(page: Any) -> None:
    row = page.locator("#gallery-items > li").first
    label = row.locator('[data-key="label"] img').first
    opacity = "image => Number(getComputedStyle(image).opacity)"
    assert label.evaluate(opacity) == 1
    slider = page.locator("#gallery-opacity")
    slider.focus()
    for _ in range(8):
        page.keyboard.press("ArrowLeft")
    assert page.locator("#gallery-opacity-value").inner_text() == "60 %"
    assert label.evaluate(opacity) == pytest.approx(0.6)
    behind = row.locator('[data-key="label"] .over').first.evaluate(
        "box => getComputedStyle(box).backgroundImage"
    )
    assert row.locator('[data-key="image"] img').get_attribute("src") in behind
    # the photograph itself stays as it is
    assert row.locator('[data-key="image"] img').evaluate(opacity) == 1


def test_pictures_grow(page: Any) -> None:
    picture = page.locator('[data-key="label"] img').first
    small = picture.bounding_box()["width"]
    page.select_option("#gallery-size", "large")
    assert picture.bounding_box()["width"] > 1.2 * small


def test_one_row_for_every_image(page: Any) -> None:
    for row in page.locator("#gallery-items > li").all():
        tops = {box["y"] for box in (f.bounding_box() for f in row.locator("figure").all())}
        assert len(tops) == 1
    columns = [
        [figure.bounding_box()["x"] for figure in row.locator("figure").all()]
        for row in page.locator("#gallery-items > li").all()
    ]
    assert all(column == columns[0] for column in columns), "pictures stand below each other"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out(scheme: str, comparison: Path, open_page: Open) -> None:
    page = open_page(comparison, scheme=scheme)
    ratios = {text: page.locator(text).first.evaluate(CONTRAST) for text in TEXTS}
    assert {text: ratio for text, ratio in ratios.items() if ratio < 4.5} == {}


def test_without_a_script_all_is_there(comparison: Path, open_page: Open) -> None:
    page = open_page(comparison, java_script_enabled=False)
    assert page.locator("#gallery-items > li:visible").count() == 4
    assert not page.locator("#gallery-controls").is_visible()


@pytest.mark.parametrize("count", [2, 12])
def test_nothing_is_wider_than_the_page(count: int, tmp_path: Path, open_page: Open) -> None:
    content = make_comparison(tuple(f"a run of some name · fit-number-{i}" for i in range(count)))
    file = tmp_path / "comparison.html"
    file.write_text(render_comparison(content), encoding="utf-8")
    page = open_page(file)
    for width in (320, 390, 768, 1200):
        page.set_viewport_size({"width": width, "height": 900})
        assert overflow(page) <= 0, width


def test_hostile_text_is_shown_and_does_nothing(tmp_path: Path, open_page: Open) -> None:
    file = tmp_path / "comparison.html"
    file.write_text(render_comparison(make_hostile()), encoding="utf-8")
    page = open_page(file, width=360)
    assert overflow(page) <= 0
    assert page.locator("script").count() == 1
    assert "</script>" in page.locator("h1").inner_text()
    page.select_option("#gallery-order", "name")
    assert page.locator("#gallery-items > li:visible").count() == 4
