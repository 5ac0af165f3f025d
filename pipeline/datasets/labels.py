"""Label maps as classes, and every pixel of them counted: of a class, ignored, or of none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.definition import IGNORE, OTHERS, show_colour

NO_CLASS = -1
"""What a value means that no class has, and that nobody said to ignore."""

MOST_UNKNOWN = 0.05
"""Where a larger share of the pixels has values that no class has, there is no score."""

GAP = "no data"
"""What stands for the value of pixels where the image itself holds no data."""

_STRIP_PIXELS = 2**22
_MOST_SHOWN = 6
# of the values of one map: a photograph has millions
_MOST_KEPT = 300
_KINDS = ("scored", "ignored", "unknown")
# Evenly spread greys of as many classes at most are taken for such: 0, 127 and 255.
_MOST_GREYS = 16


@dataclass
class LabelCounts:
    """How many pixels of label maps have which value, by what the value means.

    With those ``outside``, where no window is, they are all the ``pixels``.
    """

    pixels: int = 0
    outside: int = 0
    scored: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> LabelCounts:
        """Make counts of what :meth:`dump` gives."""
        kinds: dict[str, Any] = {name: Counter(values.get(name)) for name in _KINDS}
        return cls(values.get("pixels", 0), values.get("outside", 0), **kinds)

    def dump(self) -> dict[str, Any]:
        """Return the counts as JSON has them."""
        return {k: v if isinstance(v, int) else dict(v) for k, v in vars(self).items()}

    def add(self, other: LabelCounts) -> None:
        """Add the counts of further label maps."""
        self.pixels += other.pixels
        self.outside += other.outside
        self.scored += other.scored
        self.ignored += other.ignored
        self.unknown += other.unknown

    def describe(self) -> str:
        """Say what of the pixels is in no score; nothing where all are."""
        told = [
            f"{_count(values, self.pixels)} {what}: {_list(values)}"
            for values, what in (
                (self.unknown, "have values that no class has"),
                (self.ignored, "are ignored"),
            )
            if values
        ]
        if self.outside:
            told.append(f"{_share(self.outside, self.pixels)} lie outside the windows")
        return f"of {self.pixels} label pixels {'; '.join(told)}" if told else ""

    def find_fault(self, *, told: bool) -> str:
        """Say why these label maps must not be scored, and how to map them; nothing if they may.

        ``told`` says whether the dataset says itself that 255 means ignore.
        """
        inside = self.pixels - self.outside - self.ignored.total()
        if self.unknown.total() > MOST_UNKNOWN * inside:
            values = [name for name, _ in self.unknown.most_common(3) if name != OTHERS]
            return (
                f"{_count(self.unknown, self.pixels)} have values that no class has: "
                f"{_list(self.unknown)}; {_teach(values)}, or leave them out of every score with "
                f"`ignore: [{', '.join(map(_quote, values))}]`"
            )
        found = {*self.scored, *self.ignored} - {"-1", GAP}
        greys = sorted(map(int, found)) if all(map(str.isdecimal, found)) else []
        if not told and greys and greys[0] == 0 and greys[-1] == IGNORE and _are_spread(greys):
            lost = self.ignored[str(IGNORE)]
            return (
                f"the label maps hold the greys {', '.join(map(str, greys))}, of which {IGNORE} "
                f"would be ignored: {_share(lost, self.pixels)} pixels; "
                f"{_teach([str(grey) for grey in greys])}"
            )
        return ""


def _are_spread(greys: list[int]) -> bool:
    """Whether values are as a program paints classes to be seen: from 0 to 255 in equal steps."""
    steps = len(greys) - 1
    wanted = np.linspace(0, IGNORE, steps + 1)
    return 1 <= steps < _MOST_GREYS and bool(np.all(abs(wanted - greys) <= 1))


def _teach(values: list[str]) -> str:
    key = "colour" if any(value.startswith("#") for value in values) else "ids"
    each = [f"{{name: ..., {key}: {_quote(value)}}}" for value in values]
    return f"say which class each is in a dataset YAML, `classes: [{', '.join(each)}]`"


def _quote(value: str) -> str:
    return f'"{value}"' if value.startswith("#") else value


def _share(pixels: int, total: int) -> str:
    return f"{pixels} ({100 * pixels / max(total, 1):.1f} %)"


def _count(values: Counter[str], total: int) -> str:
    return _share(values.total(), total)


def _list(values: Counter[str]) -> str:
    shown = values.most_common(_MOST_SHOWN)
    told = ", ".join(f"{name} ({count} pixels)" for name, count in shown)
    return told + (f" and {len(values) - len(shown)} more" if len(values) > len(shown) else "")


@dataclass(frozen=True)
class LabelMap:
    """A label map as it is stored, and what it means, both [y, x].

    ``raw`` holds ids, or colours as one number each; ``meaning`` int16: the class, 255 = ignore,
    ``NO_CLASS`` for a value that no class has.
    """

    raw: NDArray[np.integer[Any]]
    meaning: NDArray[np.int16]
    coloured: bool = False

    @property
    def classes(self) -> NDArray[np.uint8]:
        """Classes 0..C-1, uint8 [y, x]; 255 where there is none."""
        return np.where(self.meaning == NO_CLASS, IGNORE, self.meaning).astype(np.uint8)

    def count(
        self,
        box: tuple[int, int, int, int] | None = None,
        gaps: NDArray[np.bool_] | None = None,
    ) -> LabelCounts:
        """Count the pixels of every value within a box (left, top, right, bottom), or in all.

        Those where the image has ``gaps``, [y, x], are ignored, whatever they hold.
        """
        height, width = self.raw.shape
        left, top, right, bottom = box or (0, 0, width, height)
        counts = LabelCounts(self.raw.size, self.raw.size - (right - left) * (bottom - top))
        # in strips: a count takes many times the memory of what it counts
        rows = max(1, _STRIP_PIXELS // width)
        for start in range(top, bottom, rows):
            area = slice(start, min(start + rows, bottom)), slice(left, right)
            raw, meaning = self.raw[area], self.meaning[area]
            if gaps is not None:
                here = gaps[area]
                counts.ignored[GAP] += int(np.count_nonzero(here))
                raw, meaning = raw[~here], meaning[~here]
            none, ignored = meaning == NO_CLASS, meaning == IGNORE
            counts.scored += self._count(raw[~(none | ignored)])
            counts.ignored += self._count(raw[ignored])
            counts.unknown += self._count(raw[none])
        return counts

    def _count(self, values: NDArray[np.integer[Any]]) -> Counter[str]:
        if values.dtype == np.uint8:
            every = np.bincount(values, minlength=256)
            found = np.flatnonzero(every)
            counts = every[found]
        else:
            found, counts = np.unique(values, return_counts=True)
        name = show_colour if self.coloured else str
        order = np.argsort(-counts, kind="stable")
        kept, rest = order[:_MOST_KEPT], order[_MOST_KEPT:]
        named = {name(found[n].item()): int(counts[n]) for n in kept}
        return Counter(named | ({OTHERS: int(counts[rest].sum())} if len(rest) else {}))


def map_values(
    raw: NDArray[np.integer[Any]],
    classes: Mapping[int, int],
    ignored: Collection[int] = (),
    *,
    others: bool = False,
    coloured: bool = False,
) -> LabelMap:
    """Say what the values of a label map, [y, x], mean; with ``others`` all others are ignored."""
    keys = np.array(sorted({*classes, *ignored}), np.int64)
    means = np.array([classes.get(key, IGNORE) for key in keys.tolist()], np.int16)
    missing = np.int16(IGNORE if others else NO_CLASS)
    if raw.dtype == np.uint8:
        table = np.full(256, missing)
        small = (keys >= 0) & (keys < 256)
        table[keys[small]] = means[small]
        return LabelMap(raw, table[raw], coloured)
    place = np.searchsorted(keys, raw).clip(max=len(keys) - 1)
    return LabelMap(raw, np.where(keys[place] == raw, means[place], missing), coloured)


def pack_colours(pixels: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Make one number of red, green and blue, [y, x, rgb], as colours are written: 0xRRGGBB."""
    red, green, blue = np.moveaxis(pixels.astype(np.int32), 2, 0)
    return (red << 16) | (green << 8) | blue
