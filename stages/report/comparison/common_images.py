"""The images that several evaluations have in common, and an even sample of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import RunError
from pipeline.run.manifest import Image
from stages.report.sample import sample_evenly

Name = tuple[str, str]  # split and id
Role = Literal["most", "sample"]


@dataclass(frozen=True)
class CommonImages:
    """The images that all evaluations labelled."""

    splits: dict[str, list[str]]
    others: tuple[int, ...]
    resized: int
    changed: int

    @property
    def count(self) -> int:
        """Number of the images in common."""
        return sum(map(len, self.splits.values()))


def find_common(images: Sequence[Mapping[Name, Image]]) -> CommonImages:
    """Find the images that all of some evaluations labelled, by split and id."""
    first, *rest = images
    named = [name for name in first if all(name in other for other in rest)]
    sizes = {name: {(i[name].width, i[name].height) for i in images} for name in named}
    same = [name for name in named if len(sizes[name]) == 1]
    if not same:
        resized = " of the same size" if named else ""
        raise RunError(
            f"the runs have no image{resized} in common, by split and id "
            f"(the first has, for instance, {_name_example(first)}, another "
            f"{_name_example(_find_apart(first, rest))}); compare runs on the same photographs."
        )
    splits: dict[str, list[str]] = {}
    for split, identity in same:
        splits.setdefault(split, []).append(identity)
    return CommonImages(
        splits=splits,
        others=tuple(len(mapping) - len(same) for mapping in images),
        resized=len(named) - len(same),
        changed=sum(len({i[name].digest for i in images}) > 1 for name in same),
    )


def _find_apart(
    first: Mapping[Name, Image], rest: Sequence[Mapping[Name, Image]]
) -> Mapping[Name, Image]:
    return next((other for other in rest if not any(name in first for name in other)), rest[-1])


def _name_example(images: Mapping[Name, Image]) -> str:
    for (split, identity), image in images.items():
        return f"{split}/{identity} of {image.width} x {image.height}"
    return "none at all"


def sample_common(common: CommonImages, wanted: int) -> list[Name]:
    """Choose up to ``wanted`` images of every split, evenly spaced, without chance."""
    return [
        (split, ids[position])
        for split, ids in common.splits.items()
        for position in sample_evenly(len(ids), wanted)
    ]


def choose_rows(differences: Mapping[Name, float], wanted: int) -> dict[Name, Role]:
    """Choose the images to show: of every split those that differ most, and some of the others."""
    rows: dict[Name, Role] = {}
    for split in dict.fromkeys(split for split, _ in differences):
        ordered = sorted(
            (name for name in differences if name[0] == split),
            key=lambda name: (-_known(differences[name]), name),
        )
        most = -(-wanted // 2)
        rest = ordered[most:]
        evenly = [rest[i] for i in sample_evenly(len(rest), wanted - most)]
        roles: dict[Name, Role] = dict.fromkeys(ordered[:most], "most")
        rows |= roles | dict.fromkeys(evenly, "sample")
    return rows


def _known(value: float) -> float:
    return value if value == value else -1.0
