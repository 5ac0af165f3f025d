"""The page stays small: pictures are left out, fairly, and that is said."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from stages.report.budget import (
    CUTOUT_BYTES,
    GALLERY_BYTES,
    LARGE,
    PAGE_BYTES,
    SMALL,
    choose_side,
    fit_page,
    measure_item,
    shorten_lines,
    shorten_settings,
    take_within,
    trim_cutouts,
)
from stages.report.page import ClusterCard, Curve, Cutout, GalleryItem, Picture, ReportContent


def make_item(name: int, size: int) -> GalleryItem:
    picture = Picture("image", "image", "x" * size)
    return GalleryItem(str(name), "val", "sample", (picture,))


def make_content(sizes: list[int], cutout: int = 0) -> ReportContent:
    cutouts = (Cutout("x" * cutout, "a", "val", 0.5),) if cutout else ()
    return ReportContent(
        title="",
        notice="",
        facts=(),
        settings_yaml="",
        commands=(),
        metrics={},
        gallery=tuple(make_item(n, size) for n, size in enumerate(sizes)),
        curve=Curve((), ()),
        clusters=(ClusterCard(0, "a", (0, 0, 0), cutouts=cutouts),),
        warnings=(),
        sample_note="Chosen.",
    )


def render(content: ReportContent) -> str:
    """Render all pictures twice, as a page may, and a text of a thousand bytes."""
    pictures = sum(map(measure_item, content.gallery))
    cutouts = sum(len(cutout.source) for card in content.clusters for cutout in card.cutouts)
    return (
        "x" * (2 * pictures + cutouts + 1000)
        + f"{len(content.gallery)}|{content.sample_note}|{content.cutout_note}"
    )


def test_the_parts_leave_room_for_text() -> None:
    assert GALLERY_BYTES + CUTOUT_BYTES <= PAGE_BYTES - 3_000_000
    assert (choose_side(24), choose_side(61)) == (LARGE, SMALL)


def test_images_are_taken_as_long_as_they_fit() -> None:
    asked = []

    def show() -> object:
        for number in range(9):
            asked.append(number)
            yield make_item(number, 30)

    assert [item.id for item in take_within(show(), 100)] == ["0", "1", "2"]  # type: ignore[arg-type]
    assert asked == [0, 1, 2, 3], "no more than is needed"
    assert take_within([make_item(0, 30)], 29) == []


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
    content = make_content([10, 20])
    assert fit_page(content, render, 2000) == render(content)


def test_a_page_that_does_not_fit_says_so() -> None:
    page = fit_page(make_content([1000] * 10), render, 9000)
    assert len(page) <= 9000
    assert "Only 2 of the 10 chosen images are shown" in page
    assert page.endswith("Chosen.|")
    assert page.count("Only") == 1


def test_cutouts_go_last() -> None:
    page = fit_page(make_content([5000], 5000), render, 7000)
    assert "0|Only 0 of the 1 chosen" in page and "no cut-outs" not in page
    page = fit_page(make_content([5000], 9000), render, 7000)
    assert "There are no cut-outs, so that the page" in page
    assert len(fit_page(make_content([]), render, 10)) > 10, "its text alone is larger"


@given(sizes=st.lists(st.integers(0, 3000), max_size=30), most=st.integers(1400, 50_000))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_any_page_fits_in_the_end(sizes: list[int], most: int) -> None:
    assert len(fit_page(make_content(sizes, 3000), render, most)) <= most


def test_long_texts_are_cut() -> None:
    lines = [f"{n} " + "y" * 5000 for n in range(1000)]
    short = shorten_lines(lines, "more are in the file")
    assert len(short) == 201
    assert short[-1] == "800 more are in the file"
    assert max(map(len, short)) < 700
    assert shorten_lines(["a"], "b") == ["a"]
    assert shorten_settings("a: 1", "run.yaml") == "a: 1"
    assert "the rest is in run.yaml" in shorten_settings("y" * 10**6, "run.yaml")[-100:]
