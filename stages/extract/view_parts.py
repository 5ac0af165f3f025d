"""The parts of the views: which arrays each has, and where it keeps its ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.files import read_json, remove_tree
from pipeline.ledger import Ledger
from pipeline.metadata import consolidate
from pipeline.run_directory import RunDirectory
from pipeline.store import ArraySpec
from stages.extract.arrays import attention_spec, features_spec
from stages.extract.view_settings import ViewSettings, parse_views

STAGE = "views"
"""The stage, below whose ledger those of the parts lie."""

CROPS = ("top left", "top right", "bottom left", "bottom right", "centre")
CROP_ARRAYS = tuple(f"crop_{number}" for number in range(1, len(CROPS) + 1))


@dataclass(frozen=True)
class Part:
    """Views that are computed together.

    Attributes
    ----------
    name
        Also of its ledger, below that of the stage.
    arrays
        In ``features.zarr``.
    view
        Number of a photometric view, or 0.
    """

    name: str
    arrays: tuple[str, ...]
    view: int = 0

    @property
    def pictures(self) -> int:
        """How many pictures of every window are looked at, mirror images not counted."""
        return len(self.arrays) if self.name == "crops" else 1


def list_parts(settings: ViewSettings) -> list[Part]:
    """List what the settings ask for, in the order of the arrays."""
    parts = [
        Part(name, (name, f"{name}_mirror"), view)
        for view in range(1, parse_views(settings.views) + 1)
        for name in [f"photometric_{view}"]
    ]
    if settings.crops == "five":
        parts.append(Part("crops", CROP_ARRAYS))
    if settings.attention:
        parts.append(Part("attention", ("attention",)))
    return parts


def lay_out(part: Part, facts: dict[str, Any]) -> list[tuple[str, ArraySpec]]:
    """Give the arrays of a part."""
    if part.name == "attention":
        return [(part.name, attention_spec(facts))]
    if part.name == "crops":
        texts = [f"features of the {where} half-size crop at twice the scale" for where in CROPS]
    else:
        text = f"features of photometrically augmented view {part.view}"
        texts = [text, f"{text}, mirrored like the mirror of the clean one"]
    return [
        (name, features_spec(facts, text)) for name, text in zip(part.arrays, texts, strict=True)
    ]


def open_ledger(run: RunDirectory, part: str) -> Ledger:
    """Return the ledger of a part by its name."""
    return Ledger(run.state(f"{STAGE}/{part}"))


def remove_outgrown(
    run: RunDirectory, wanted: dict[str, ArraySpec], total: int, grid: Sequence[int]
) -> None:
    """Remove views that are wanted no more and fit the windows no more.

    One that still fits is left: wanted again, it needs no work. One of another length would keep
    the whole group from being opened as one dataset.
    """
    store = run.features
    old = [
        path.name
        for pattern in ("photometric_*", "crop_*", "attention")
        for path in sorted(store.glob(pattern))
        if path.name not in wanted and not _fits(path, total, grid)
    ]
    # before the arrays: what a ledger names and is not there counts as lost
    for part in sorted({_name_part(name) for name in old}):
        remove_tree(open_ledger(run, part).folder)
    for name in old:
        remove_tree(store / name)
    if old:
        consolidate(store)


def _name_part(array: str) -> str:
    return "crops" if array in CROP_ARRAYS else array.removesuffix("_mirror")


def _fits(array: Path, total: int, grid: Sequence[int]) -> bool:
    metadata = read_json(array / "zarr.json") or {}
    return metadata.get("shape", [])[:3] == [total, *grid]
