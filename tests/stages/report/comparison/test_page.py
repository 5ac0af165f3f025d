"""The HTML page of a comparison."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from stages.report.comparison.page import find_best, render_comparison
from tests.comparison_content import make_comparison, make_hostile


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_data(self, data: str) -> None:
        if self.inside not in ("style", "script"):
            self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.parts).split())


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([1.0, 3.0, 2.0], (1,)),
        ([3.0, None, 3.001], ()),
        ([3.0, None, 3.0, 1.0], (0, 2)),
        ([3.0, None], ()),
        ([], ()),
        ([float("nan"), 1.0, 2.0], (2,)),
    ],
)
def test_the_best_is_the_largest_where_they_differ(
    values: list[float | None], best: tuple[int, ...]
) -> None:
    assert find_best(values) == best


def test_the_page_says_all() -> None:
    text = Page(render_comparison(make_comparison())).text
    for said in (
        "Comparison of default, k-means",
        "1.0 points above the next",
        "30 images are in common.",
        "Mean IoU with CRF, %",
        "41.5 (best)",
        "Not as many images in all.",
        "71.2",
        "em.method",
        "primaps-pipe evaluate k-means",
        "sky",
        "labels differ on 60.0 %",
        "no ground truth",
        "1.2.3",
    ):
        assert said in text, said


def test_every_picture_is_in_its_row() -> None:
    page = render_comparison(make_comparison(("a", "b", "c")))
    rows = [row.split("</li>")[0] for row in page.split('<li class="panel"')[1:]]
    assert len(rows) == 4
    assert [row.count("<figure") for row in rows] == [5] * 4
    assert [len(re.findall(r'src="data:image/', row)) for row in rows] == [5, 5, 5, 4]


def test_the_page_needs_nothing_but_itself() -> None:
    html = render_comparison(make_hostile())
    page = Page(html)
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("data:", "#")), f"{tag} asks for {value[:80]}"
        assert not any(name.startswith("on") for name in attributes)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert "default-src 'none'" in html


def test_what_is_not_there_is_left_out() -> None:
    bare = replace(
        make_comparison(), gallery=(), classes=(), settings=(), curves=(), notes=(), legend=()
    )
    html = render_comparison(bare)
    for place in ("gallery", "classes", "curves"):
        assert f'id="{place}"' not in html
        assert f'href="#{place}"' not in html
    assert "None: every setting that changes a result is the same in all." in Page(html).text


def test_pictures_from_elsewhere_are_refused() -> None:
    content = make_comparison()
    image = replace(content.gallery[0], photograph="https://example.org/a.png")
    with pytest.raises(ValueError, match="no data URI"):
        render_comparison(replace(content, gallery=(image,)))


def test_the_same_content_gives_the_same_page() -> None:
    assert render_comparison(make_comparison()) == render_comparison(make_comparison())
