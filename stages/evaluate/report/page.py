"""What the report's page says, as records: gathered from a run, then rendered to HTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

PictureKey = Literal["image", "features", "proposals", "label", "label_crf", "truth", "errors"]
Role = Literal["worst", "best", "sample"]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Picture:
    """One picture of an image.

    Attributes
    ----------
    key
        What it shows: ``image``, ``features``, ``proposals``, ``label`` (before the CRF),
        ``label_crf``, ``truth`` or ``errors``.
    caption
        The line below it.
    source
        ``data:`` URI of an image.
    """

    key: PictureKey
    caption: str
    source: str


@dataclass(frozen=True)
class ClassPart:
    """How much of an image belongs to a cluster.

    Attributes
    ----------
    cluster
        Number of the cluster.
    share
        Share of the image's labelled pixels in per cent.
    iou
        Intersection over union with the matched class in this image alone, in per cent; None
        without labels, without a match, and where neither of the two occurs.
    name, colour
        Of the cluster in this image's split, which is matched on its own; without, those of the
        cluster's card, which are of the main split.
    """

    cluster: int
    share: float
    iou: float | None = None
    name: str = ""
    colour: Colour | None = None


@dataclass(frozen=True)
class GalleryItem:
    """One image of the gallery.

    Attributes
    ----------
    id
        What the image is called.
    split
        The split that it belongs to.
    role
        Why it is shown: among the ``worst`` or the ``best`` of its split, or part of an even
        ``sample``.
    pictures
        In the order in which the stages made them.
    parts
        The clusters that occur in its final labels, the largest share first.
    figures
        (name, value) of every number of the image.
    accuracy
        Pixel accuracy of the final labels in per cent; None without labels.
    confidence
        Mean probability of the most likely cluster in per cent; None where it is not known.
    """

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
    """A proposal that is typical of a cluster, cut out of its photograph.

    Attributes
    ----------
    source
        ``data:`` URI of an image.
    image_id, split
        The photograph.
    similarity
        Cosine of the proposal's pooled feature and the cluster's prototype, -1..1.
    """

    source: str
    image_id: str
    split: str
    similarity: float


@dataclass(frozen=True)
class ClusterCard:
    """What is known of one cluster.

    Attributes
    ----------
    cluster
        Its number.
    name
        The user's name for it, else that of its class, else ``cluster 7``.
    colour
        Red, green, blue, 0..255: its colour in all pictures of labels.
    share
        Share of the pixels of the main split in per cent; None where it is not known.
    iou
        Intersection over union of the final labels with its class, in per cent; None without.
    iou_plain
        The same of the labels without CRF; None where no CRF was run, too.
    class_name
        The class that it is matched to, or None.
    nearest
        The cluster whose prototype is nearest by cosine; None where there is only one.
    similarity
        That cosine, -1..1.
    cutouts
        Its most typical proposals, at most ten, the most typical first.
    """

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
    """A score that needs no labels, of every epoch.

    Attributes
    ----------
    name
        What it is.
    unit
        In what it is measured, or nothing.
    values
        One of each epoch, the first epoch first; NaN where there was none.
    """

    name: str
    unit: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """How a fit went.

    Attributes
    ----------
    loss
        Mean loss of every epoch.
    usage
        Share of pixels per cluster, of every epoch.
    unit
        What is called an epoch: of a head, a round of steps.
    classes
        Number of classes and score, of every number that was tried; nothing where it was given.
    classes_label
        What the score is.
    chosen
        The number of classes of the fit.
    scores
        Scores without labels.
    """

    loss: tuple[float, ...]
    usage: tuple[tuple[float, ...], ...]
    unit: str = "epoch"
    classes: tuple[tuple[int, float], ...] = ()
    classes_label: str = ""
    chosen: int | None = None
    scores: tuple[Series, ...] = ()


@dataclass(frozen=True)
class ReportContent:
    """Everything that the page says.

    Attributes
    ----------
    title
        Heading of the page.
    notice
        What has to be known before all else, shown as the first line; or nothing.
    facts
        (name, value) of what was run: backbone, weights, images and so on.
    settings_yaml
        The resolved settings.
    commands
        The commands that reproduce the run.
    metrics
        What ``metrics.json`` holds.
    gallery
        Images to show.
    curve
        History of the fit.
    clusters
        Every cluster, in the order of their numbers.
    warnings
        One sentence each.
    unusual
        (what, how often) of all that did not go as usual.
    repeatability
        Whether the same commands give the same bytes again.
    sample_note
        Which images the gallery shows, and of how many.
    cutout_note
        What the cut-outs of the clusters were chosen from.
    version
        Of primaps-pipe.
    suggestions
        What to try next: what for, and the commands.
    """

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
