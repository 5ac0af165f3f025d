"""The page: one self-contained file of HTML, which any browser opens, whatever the run holds."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from stages.report.content import ClusterCard, Content, GalleryItem
from stages.report.pictures import (
    CAPTIONS,
    IGNORED_COLOUR,
    RIGHT_COLOUR,
    ROLES,
    WRONG_COLOUR,
    sample_evenly,
)
from stages.report.plots import draw_confusion
from stages.report.words import (
    IN_USE,
    count_effectively,
    format_number,
    format_percent,
    is_number,
    list_confusions,
    list_others,
)

PAGE_BYTES = 25_000_000
_BREAKS = "/\\_.-"  # after these a path or an id may go on in the next line
_STYLES = ("style.css", "scores.css", "gallery.css", "clusters.css")
_SCRIPTS = ("common.js", "gallery.js", "clusters.js", "naming.js", "pointer.js", "viewer.js")
_MARKS = (("right", RIGHT_COLOUR), ("wrong", WRONG_COLOUR), ("not judged", IGNORED_COLOUR))
# Without labels nobody knows which labels are good.
_ROLE_NAMES = {"worst": "least confident", "best": "most confident"}


def render_report(content: Content) -> str:
    """Render the page."""
    gallery, cards, metrics = content["gallery"], content["clusters"], content["metrics"]
    for item in gallery:
        for key, source in item.pictures.items():
            check_picture(source, f"{CAPTIONS[key]!r} of {item.id!r}")
    for card in cards:
        for cutout in card.cutouts:
            check_picture(cutout.source, f"of cluster {card.cluster} in {cutout.image_id!r}")
    blocks = metrics.get("splits") or {metrics["split"]: metrics}
    others = {name: list_others(block) for name, block in blocks.items()}
    suffix = "_crf" if metrics["confusion_crf"] is not None else ""
    counts, assignment = (metrics[f"{name}{suffix}"] for name in ("confusion", "assignment"))
    classes = metrics["class_names"]
    by_number = {card.cluster: card for card in cards}
    names = [
        by_number[k].name if k in by_number else f"cluster {k}" for k in range(metrics["classes"])
    ]
    confusion, confusions = "", []
    if counts and assignment and classes:
        confusion = draw_confusion(np.array(counts, np.int64), assignment, classes)
        confusions = list_confusions(counts, assignment, classes, names)
    joined = join_cards(cards)
    covering = [card for card in joined if card.share >= IN_USE]
    found = {card.class_name for card in cards if card.class_name}
    return render_page(
        "report.html.j2",
        styles=_STYLES,
        scripts=_SCRIPTS,
        content=content,
        metrics=metrics,
        blocks=blocks,
        has_labels=any(is_number(block["accuracy"]) for block in blocks.values()),
        has_headline=is_number(metrics["accuracy"]),
        has_crf=any(is_number(block["accuracy_crf"]) for block in blocks.values()),
        in_use=IN_USE,
        others=others,
        notes=list(dict.fromkeys(note for scored in others.values() for *_, note in scored)),
        gallery=list_choices(gallery, cards),
        captions=CAPTIONS,
        pages={(item.split, item.id) for item in gallery},
        cards=by_number,
        clusters=sort_clusters(cards, classes),
        joined=sort_clusters(joined, classes),
        strip=sorted(covering, key=lambda card: (-card.share, card.cluster)),
        # none where there are no labels
        unfound=[name for name in classes if found and name not in found],
        confusion=confusion,
        confusions=confusions,
    )


def list_choices(items: Sequence[GalleryItem], cards: Sequence[ClusterCard]) -> Content:
    """List what the images of the gallery can be chosen and sorted by."""
    score = ""
    for name in ("confidence", "accuracy"):
        if any(is_number(getattr(item, name)) for item in items):
            score = name
    keys = {key for item in items for key in item.pictures}
    present = {part.cluster for item in items for part in item.parts}
    return {
        "splits": list(dict.fromkeys(item.split for item in items)),
        "roles": [role for role in ROLES if any(item.role == role for item in items)],
        "layers": [(key, name) for key, name in CAPTIONS.items() if key in keys - {"image"}],
        "clusters": [card for card in cards if card.cluster in present],
        "score": score,
        "role_names": _ROLE_NAMES if score == "confidence" else {},
        "marks": _MARKS if "errors" in keys else (),
    }


def join_cards(cards: Sequence[ClusterCard]) -> list[ClusterCard]:
    """Join the clusters of one name, which are one class, into the first of each."""
    joined: dict[str, ClusterCard] = {}
    for card in cards:
        first = joined.get(card.name, replace(card, share=0.0))
        joined[card.name] = replace(first, share=first.share + card.share)
    return list(joined.values())


def sort_clusters(cards: Sequence[ClusterCard], class_names: Sequence[str]) -> list[ClusterCard]:
    """Sort the clusters: those with a class in the order of the classes, then by size."""
    last = len(class_names)

    def rank(card: ClusterCard) -> tuple[int, float, int]:
        place = class_names.index(card.class_name) if card.class_name in class_names else last
        return place, -card.share, card.cluster

    return sorted(cards, key=rank)


# --- a page that is not too large -----------------------------------------------------------------


def fit_page(content: Content, render: Callable[[Content], str], most: int = PAGE_BYTES) -> str:
    """Render the page; pictures are left out where it would be too large, and that is said."""
    chosen, said = len(content["gallery"]), content["sample_note"]
    limit = f"so that the page stays below {most / 1e6:.0f} MB"
    page = render(content)
    while (over := len(page.encode()) - most) > 0:
        if content["gallery"]:
            kept = _keep_images(content["gallery"], over)
            note = f"Only {len(kept)} of the {chosen} chosen images are shown, {limit}. {said}"
            content = {**content, "gallery": kept, "sample_note": note.strip()}
        elif any(card.cutouts for card in content["clusters"]):
            bare = [replace(card, cutouts=()) for card in content["clusters"]]
            left = f"There are no cut-outs, {limit}."
            content = {**content, "clusters": bare, "cutout_note": left}
        else:
            break
        page = render(content)
    return page


def _keep_images(gallery: Sequence[GalleryItem], over: int) -> list[GalleryItem]:
    """Keep an even sample of the images, smaller by some bytes at least."""
    share = 1 - over / max(sum(item.size for item in gallery), 1)
    # a page may hold a picture more than once: no more than half are left out at a time
    count = min(len(gallery) - 1, max(int(share * len(gallery)), len(gallery) // 2))
    return [gallery[i] for i in sample_evenly(len(gallery), count)]


# --- pages that need nothing but themselves, which comparisons are, too ---------------------------


def render_page(
    template: str,
    *,
    styles: Sequence[str] = ("style.css",),
    scripts: Sequence[str] = ("common.js",),
    **values: Any,
) -> str:
    """Render a template that extends ``base.html.j2``."""
    script = "".join(_read(name) for name in scripts)
    page = _ENVIRONMENT.get_template(template).render(
        style=Markup("".join(_read(name) for name in styles)),
        script=Markup(script),
        script_digest=_digest(script),
        **values,
    )
    # a file name that is no valid Unicode reaches us as lone surrogates, which no encoding takes
    return _mend(page)


def check_picture(source: str, what: str) -> None:
    """Refuse a picture that would have to be fetched."""
    if not source.startswith("data:image/"):
        raise ValueError(f"the picture {what} is no data URI of an image")


def format_colour(colour: Sequence[int]) -> str:
    """Format red, green and blue, 0..255, as CSS does."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def name_fragment(*parts: object) -> str:
    """Name a place in the page, such as ``image/val/a%20b``, from texts of any content."""
    return "/".join(quote(_mend(str(part)), safe="") for part in parts)


def break_path(text: object) -> Markup:
    """Let a path or an id be broken after its separators, and nowhere else if that will do."""
    escaped = []
    for character in str(text):
        escaped.append(escape(character))
        if character in _BREAKS:
            escaped.append(Markup("<wbr>"))
    return Markup("").join(escaped)


def _mend(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _digest(text: str) -> str:
    """Name a script in a content policy, so that no other one may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _read(name: str) -> str:
    """Read a file of the folder as it is: braces in a style are no template."""
    return _LOADER.get_source(_ENVIRONMENT, name)[0]


_LOADER = PackageLoader("stages.report")
_ENVIRONMENT = Environment(
    loader=_LOADER,
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {
    "number": format_number,
    "percent": format_percent,
    "effective": count_effectively,
    "colour": format_colour,
    "breakable": break_path,
}
_ENVIRONMENT.globals["fragment"] = name_fragment
