"""What the report's page says, as records: gathered from a run, then rendered to HTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

PictureKey = Literal["image", "features", "proposals", "label", "label_crf", "truth", "errors"]
Role = Literal["worst", "best", "sample"]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Picture:
    """One picture of an image."""

    key: PictureKey
    caption: str
    source: str


@dataclass(frozen=True)
class ClassPart:
    """How much of an image belongs to a cluster."""

    cluster: int
    share: float
    iou: float | None = None
    name: str = ""
    colour: Colour | None = None


@dataclass(frozen=True)
class GalleryItem:
    """One image of the gallery."""

    id: str
    split: str
    role: Role
    pictures: tuple[Picture, ...]
    parts: tuple[ClassPart, ...] = ()
    figures: tuple[tuple[str, str], ...] = ()
    accuracy: float | None = None
    confidence: float | None = None


@dataclass(frozen=True)
class Cutout:
    """A proposal that is typical of a cluster, cut out of its photograph."""

    source: str
    image_id: str
    split: str
    similarity: float


@dataclass(frozen=True)
class ClusterCard:
    """What is known of one cluster."""

    cluster: int
    name: str
    colour: Colour
    share: float | None = None
    iou: float | None = None
    iou_plain: float | None = None
    class_name: str | None = None
    nearest: int | None = None
    similarity: float | None = None
    cutouts: tuple[Cutout, ...] = ()


@dataclass(frozen=True)
class Series:
    """A score that needs no labels, of every epoch."""

    name: str
    unit: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """How a fit went."""

    loss: tuple[float, ...]
    usage: tuple[tuple[float, ...], ...]
    unit: str = "epoch"
    classes: tuple[tuple[int, float], ...] = ()
    classes_label: str = ""
    chosen: int | None = None
    scores: tuple[Series, ...] = ()


@dataclass(frozen=True)
class ReportContent:
    """Everything that the page says."""

    title: str
    notice: str
    facts: tuple[tuple[str, str], ...]
    settings_yaml: str
    commands: tuple[str, ...]
    metrics: dict[str, Any]
    gallery: tuple[GalleryItem, ...]
    curve: Curve
    clusters: tuple[ClusterCard, ...]
    warnings: tuple[str, ...]
    unusual: tuple[tuple[str, str], ...] = ()
    repeatability: str = ""
    sample_note: str = ""
    cutout_note: str = ""
    version: str = ""
    suggestions: tuple[tuple[str, tuple[str, ...]], ...] = ()
