"""The report's images and clusters, prepared for the templates: names, links and filters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stages.report.gallery import IGNORED_COLOUR, RIGHT_COLOUR, WRONG_COLOUR
from stages.report.page import ClusterCard, GalleryItem, ReportContent
from stages.report.rendering import (
    check_picture,
    format_colour,
    format_number,
    is_number,
    name_fragment,
)
from stages.report.scoreboard import IN_USE

_LAYERS = {
    "features": "features (PCA)",
    "proposals": "proposals",
    "label": "label",
    "label_crf": "label + CRF",
    "truth": "ground truth",
    "errors": "errors",
}
_MARKS = tuple(
    (name, format_colour(colour))
    for name, colour in (
        ("right", RIGHT_COLOUR),
        ("wrong", WRONG_COLOUR),
        ("not judged", IGNORED_COLOUR),
    )
)


# Without labels nobody knows which labels are good.
_ROLE_NAMES = {"worst": "least confident", "best": "most confident"}


def make_gallery(content: ReportContent) -> dict[str, Any]:
    """Prepare the gallery."""
    items = content.gallery
    score = next(
        (name for name in ("accuracy", "confidence") if any(_score(i, name) for i in items)), ""
    )
    cards = {card.cluster: card for card in content.clusters}
    keys = {picture.key for item in items for picture in item.pictures}
    present = {part.cluster for item in items for part in item.parts}
    return {
        "entries": [_make_entry(item, score, cards) for item in items],
        "splits": list(dict.fromkeys(item.split for item in items)),
        "roles": [r for r in ("worst", "best", "sample") if any(i.role == r for i in items)],
        "layers": [(key, name) for key, name in _LAYERS.items() if key in keys],
        "clusters": [
            (c.cluster, label_cluster(c)) for c in content.clusters if c.cluster in present
        ],
        "score": score,
        "role_names": _ROLE_NAMES if score == "confidence" else {},
        "marks": _MARKS if "errors" in keys else (),
    }


def _make_entry(item: GalleryItem, score: str, cards: dict[int, ClusterCard]) -> dict[str, Any]:
    for picture in item.pictures:
        check_picture(picture.source, f"{picture.caption!r} of {item.id!r}")
    value = _score(item, score)
    return {
        "item": item,
        "fragment": name_item(item.split, item.id),
        "score": value,
        "shares": " ".join(f"{part.cluster}:{part.share:.3g}" for part in item.parts),
        "parts": [
            {
                "cluster": part.cluster,
                "name": part.name or cards[part.cluster].name,
                "colour": format_colour(part.colour or cards[part.cluster].colour),
                "share": format_number(part.share),
                "length": f"{part.share:.1f}",
                "iou": format_number(part.iou),
            }
            for part in item.parts
            if part.cluster in cards
        ],
        "has_iou": any(is_number(part.iou) for part in item.parts),
    }


def _score(item: GalleryItem, name: str) -> str | None:
    value = getattr(item, name) if name else None
    return f"{value:.1f}" if is_number(value) else None


def name_item(split: str, image: str) -> str:
    """Name the page of an image: what stands behind ``#`` in the address."""
    return name_fragment("image", split, image)


def label_cluster(card: ClusterCard) -> str:
    """Name a cluster where its number must be seen, too."""
    numbered = card.name.startswith("cluster ") or card.name == str(card.cluster)
    return card.name if numbered else f"{card.name} ({card.cluster})"


def make_clusters(content: ReportContent) -> list[dict[str, Any]]:
    """Prepare the clusters: those with a class in the order of the classes, then by size."""
    names = list(content.metrics.get("class_names") or [])
    cards = {card.cluster: card for card in content.clusters}
    pages = {(item.split, item.id) for item in content.gallery}
    largest = max((c.share for c in content.clusters if is_number(c.share)), default=0.0)
    return [
        _make_cluster(card, cards, pages, largest)
        for card in sorted(content.clusters, key=lambda card: _rank(card, names))
    ]


def _rank(card: ClusterCard, names: Sequence[str]) -> tuple[bool, int, float, int]:
    matched = card.class_name in names
    place = names.index(card.class_name) if matched and card.class_name else 0
    return not matched, place, -(card.share or 0.0), card.cluster


def _make_cluster(
    card: ClusterCard,
    cards: dict[int, ClusterCard],
    pages: set[tuple[str, str]],
    largest: float,
) -> dict[str, Any]:
    for cutout in card.cutouts:
        check_picture(cutout.source, f"of cluster {card.cluster} in {cutout.image_id!r}")
    nearest = cards.get(card.nearest) if card.nearest is not None else None
    share = card.share if is_number(card.share) else None
    return {
        "card": card,
        "label": label_cluster(card),
        "name": card.name,
        "cluster": card.cluster,
        "colour": format_colour(card.colour),
        "share": format_number(share, 1 if share is None or share >= 0.1 else 2),
        "length": f"{100 * share / largest:.1f}" if share and largest else "0",
        "iou": format_number(card.iou),
        "iou_plain": format_number(card.iou_plain) if is_number(card.iou_plain) else "",
        "iou_length": f"{card.iou:.1f}" if is_number(card.iou) else "0",
        "nearest": nearest
        and {
            "label": label_cluster(nearest),
            "cluster": nearest.cluster,
            "colour": format_colour(nearest.colour),
        },
        "similarity": format_number(card.similarity, 2),
        "cutouts": [
            {
                "cutout": cutout,
                "similarity": format_number(cutout.similarity, 2),
                "fragment": name_item(cutout.split, cutout.image_id)
                if (cutout.split, cutout.image_id) in pages
                else "",
            }
            for cutout in card.cutouts
        ],
    }


def make_strip(content: ReportContent) -> list[dict[str, Any]]:
    """Prepare the clusters that cover something, the largest first."""
    covering = [c for c in content.clusters if is_number(c.share) and c.share >= IN_USE]
    return [
        {
            "cluster": card.cluster,
            "name": card.name,
            "colour": format_colour(card.colour),
            "share": format_number(card.share),
        }
        for card in sorted(covering, key=lambda card: (-(card.share or 0.0), card.cluster))
    ]


def list_unfound(content: ReportContent) -> list[str]:
    """List the classes that no cluster is matched to; none where there are no labels."""
    if not any(card.class_name for card in content.clusters):
        return []
    found = {card.class_name for card in content.clusters}
    return [name for name in content.metrics.get("class_names") or [] if name not in found]
