"""How large the report may become: one page that any browser opens, whatever the run holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest

from stages.report.page import Cutout, GalleryItem, ReportContent
from stages.report.sample import sample_evenly

PAGE_BYTES = 25_000_000
# of these, so that text and plots have their share
GALLERY_BYTES = 13_000_000
CUTOUT_BYTES = 8_000_000
# beyond so many images, pictures are smaller
_MOST_LARGE = 60
LARGE, SMALL = 512, 320
_MOST_LINES = 200
_LONGEST_LINE = 600
_LONGEST_SETTINGS = 100_000


def choose_side(images: int) -> int:
    """Choose the longest side of the pictures of so many images, pixels."""
    return LARGE if images <= _MOST_LARGE else SMALL


def measure_item(item: GalleryItem) -> int:
    """Return the bytes that the pictures of an image take."""
    return sum(len(picture.source) for picture in item.pictures)


def take_within(items: Iterable[GalleryItem], most: int = GALLERY_BYTES) -> list[GalleryItem]:
    """Take images as long as their pictures fit; those after them are not even asked for."""
    taken: list[GalleryItem] = []
    size = 0
    for item in items:
        size += measure_item(item)
        if size > most:
            break
        taken.append(item)
    return taken


def trim_cutouts(
    cutouts: Mapping[int, Sequence[Cutout]], most: int = CUTOUT_BYTES
) -> dict[int, list[Cutout]]:
    """Leave the least typical cut-outs out where all would not fit, of every cluster alike."""
    kept: dict[int, list[Cutout]] = {cluster: [] for cluster in cutouts}
    size = 0
    for round_ in zip_longest(*cutouts.values()):
        size += sum(len(cutout.source) for cutout in round_ if cutout is not None)
        if size > most:
            break
        for cluster, cutout in zip(cutouts, round_, strict=True):
            if cutout is not None:
                kept[cluster].append(cutout)
    return kept


def shorten_lines(lines: Sequence[str], more: str) -> list[str]:
    """Shorten a list of sentences that would make the page too long to open."""
    short = [line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}…" for line in lines]
    left = len(short) - _MOST_LINES
    return short if left <= 0 else [*short[:_MOST_LINES], f"{left} {more}"]


def shorten_settings(text: str, file: object) -> str:
    """Cut settings that would make the page too long to open; ``file`` has all of them."""
    if len(text) <= _LONGEST_SETTINGS:
        return text
    return f"{text[:_LONGEST_SETTINGS]}\n# … the rest is in {file}\n"


def fit_page(
    content: ReportContent, render: Callable[[ReportContent], str], most: int = PAGE_BYTES
) -> str:
    """Render the page; pictures are left out where it would be too large, and that is said."""
    chosen = len(content.gallery)
    page = render(content)
    while (over := len(page.encode()) - most) > 0:
        if content.gallery:
            kept = _keep_images(content.gallery, over)
            note = f"{_say_left_out(len(kept), chosen, most)} {content.sample_note}".strip()
            page = render(replace(content, gallery=kept, sample_note=note))
            content = replace(content, gallery=kept)
        elif any(card.cutouts for card in content.clusters):
            bare = tuple(replace(card, cutouts=()) for card in content.clusters)
            left = f"There are no cut-outs, {_say_limit(most)}."
            note = _say_left_out(0, chosen, most) if chosen else content.sample_note
            content = replace(content, clusters=bare, cutout_note=left, sample_note=note)
            page = render(content)
        else:
            break
    return page


def _keep_images(gallery: Sequence[GalleryItem], over: int) -> tuple[GalleryItem, ...]:
    """Keep an even sample of the images, smaller by some bytes at least."""
    share = 1 - over / max(sum(map(measure_item, gallery)), 1)
    # a page may hold a picture more than once: no more than half are left out at a time
    count = min(len(gallery) - 1, max(int(share * len(gallery)), len(gallery) // 2))
    return tuple(gallery[i] for i in sample_evenly(len(gallery), count))


def _say_left_out(kept: int, chosen: int, most: int) -> str:
    return f"Only {kept} of the {chosen} chosen images are shown, {_say_limit(most)}."


def _say_limit(most: int) -> str:
    return f"so that the page stays below {most / 1e6:.0f} MB"
