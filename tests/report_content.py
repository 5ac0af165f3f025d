"""A report of drawn scenes that no run was needed for, plain and with hostile text everywhere."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.report.content import ClusterCard, Content, GalleryItem, draw_fit
from stages.report.pictures import Role, colour_errors, colour_proposals, make_thumbnail
from stages.report.typical import Cutout
from stages.scores import Part
from tests.scenes import draw_scene

HOSTILE = (
    "</script><script>alert('x')</script>\"><img src=https://evil.example/x onerror=y> & ümläut"
)
NAMES = ["sky", "field", "road"]
COLOURS = ((90, 140, 220), (70, 150, 60), (130, 64, 130), (200, 160, 40))
PALETTE = np.zeros((256, 3), np.uint8)
PALETTE[:4] = COLOURS
ASSIGNMENT: list[int | None] = [0, 1, 2, None]  # the class of every cluster
ACCURACY = (41.5, 97.25, 63.0, 81.0, 12.5, 99.0, 70.0, 75.5)
ROLES: tuple[Role, ...] = ("worst", "best", "sample", "sample")


def make_block(*, labels: bool = True, crf: bool = True) -> dict[str, Any]:
    """Make the figures of one split: three classes, four clusters."""
    confusion = [[90, 10, 0], [0, 60, 0], [5, 3, 80], [1, 25, 2]]
    both = labels and crf
    return {
        "images": 34,
        "labelled_images": 34 if labels else 0,
        "classes": 4,
        "accuracy": 76.51 if labels else None,
        "miou": 40.82 if labels else None,
        "accuracy_crf": 78.24 if both else None,
        "miou_crf": 42.13 if both else None,
        "class_names": NAMES,
        "per_class": [
            {
                "name": name,
                "iou": 31.25 + i if labels and i < 2 else None,
                "iou_crf": 51.25 + i if both and i < 2 else None,
            }
            for i, name in enumerate(NAMES)
        ],
        "assignment": ASSIGNMENT if labels else None,
        "assignment_crf": ASSIGNMENT if both else None,
        "confusion": confusion if labels else None,
        "confusion_crf": confusion if both else None,
        "class_usage": [40.0, 35.0, 24.95, 0.05],
        "coverage": 98.76,
        "confidence": 63.27,
    }


def make_content(*, labels: bool = True, crf: bool = True) -> Content:
    """Make a report of eight images in two splits."""
    splits = {s: make_block(labels=labels, crf=crf) for s in ("train", "val")}
    fit = {
        "loss": np.array((2.0, 1.0, 0.5)),
        "class_usage": np.array(((0.25,) * 4, (0.3,) * 4, (0.4, 0.35, 0.2495, 0.0005))),
        "score_silhouette": np.array((0.1, 0.2, 0.25)),
    }
    return {
        "title": "Photographs",
        "notice": "",
        "facts": (
            ("backbone", "vit_small_patch14_dinov2.lvd142m"),
            ("weights", "/data/weights/of/some/one/vit_small_patch14_dinov2.lvd142m.safetensors"),
            ("images", "train: 34, val: 34"),
        ),
        "settings_yaml": "em:\n  classes: 4\n",
        "commands": ("primaps-pipe extract run --dataset folder", "primaps-pipe evaluate run"),
        "metrics": {"em": "default", "split": "val", **splits["val"], "splits": splits},
        "gallery": tuple(_make_item(number, labels=labels, crf=crf) for number in range(8)),
        "certainty": None,
        "curves": draw_fit(fit, {"score_units": {"silhouette": "cosine"}}, COLOURS),
        "clusters": tuple(_make_card(cluster, labels=labels, crf=crf) for cluster in range(4)),
        "warnings": ("One class is hardly used.",),
        "names_file": "corrections/names.yaml",
        "given": {1: "meadow"},
        "review": "primaps-pipe review run",
        "unusual": (),
        "repeatability": "",
        "suggestions": (),
        "cutout_note": "Cut-outs: of all 68 windows.",
        "sample_note": "8 of 68 images: of every split the worst, the best and an even sample.",
        "version": "9.9",
    }


@cache
def _draw(number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return draw_scene(number, 160, 120)


def _make_item(number: int, *, labels: bool, crf: bool) -> GalleryItem:
    pixels, truth = _draw(number)
    plain = np.where(truth == 2, 3 - number % 2, truth).astype(np.uint8)
    blocks = np.repeat(np.repeat(pixels[::8, ::8], 8, 0), 8, 1)
    pictures = {
        "image": make_thumbnail(pixels, "photograph"),
        "features": make_thumbnail(blocks[..., ::-1], "map"),
        "proposals": make_thumbnail(colour_proposals(truth + 1), "map"),
        "label": make_thumbnail(PALETTE[plain], "map"),
    }
    if crf:
        pictures["label_crf"] = make_thumbnail(PALETTE[plain], "map")
    if labels:
        pictures["truth"] = make_thumbnail(PALETTE[truth], "map")
        pictures["errors"] = make_thumbnail(colour_errors(plain, truth), "map")
    found, counts = np.unique(plain, return_counts=True)
    parts = [
        Part(int(k), 100 * count / plain.size, 50.0 + k if labels and k < 3 else None)
        for k, count in zip(found, counts, strict=True)
    ]
    return GalleryItem(
        id=f"part {number % 2}/scene {number}",
        split="train" if number < 4 else "val",
        role=ROLES[number % 4],
        pictures=pictures,
        parts=tuple(sorted(parts, key=lambda part: -part.share)),
        names=(*NAMES, "cluster 3") if labels else tuple(f"cluster {k}" for k in range(4)),
        colours=COLOURS,
        figures=(("size", "160 x 120 px"), ("confidence", f"{60 + number} %")),
        accuracy=ACCURACY[number] if labels else None,
        confidence=60.0 + number,
    )


def _make_card(cluster: int, *, labels: bool, crf: bool) -> ClusterCard:
    matched = ASSIGNMENT[cluster] if labels else None
    pixels, _ = _draw(cluster)
    cutouts = tuple(
        Cutout(
            make_thumbnail(pixels[8 * n : 8 * n + 40, 4 * n : 4 * n + 50], "photograph"),
            f"part {n % 2}/scene {n}" if n < 8 else "not in the gallery",
            "train" if n < 4 else "val",
            0.9 - 0.01 * n,
        )
        for n in range(10)
    )
    return ClusterCard(
        cluster=cluster,
        name=f"cluster {cluster}" if matched is None else NAMES[matched],
        colour=COLOURS[cluster],
        share=(40.0, 35.0, 24.95, 0.05)[cluster],
        iou=51.25 + cluster if matched is not None and cluster < 2 else None,
        iou_plain=31.25 + cluster if crf and matched is not None and cluster < 2 else None,
        class_name=None if matched is None else NAMES[matched],
        nearest=(cluster + 1) % 4,
        similarity=0.25,
        cutouts=cutouts,
        stability=90.0 - 30 * cluster,
    )


def make_hostile() -> Content:
    """Make a report whose every text is an attack, names of splits and of images included."""
    content = make_content()
    block = make_block()
    block["class_names"] = [HOSTILE] * 3
    for entry in block["per_class"]:
        entry["name"] = HOSTILE
    first, *others = content["gallery"]
    fit = {"loss": np.array((2.0, 1.0)), "class_usage": np.full((1, 4), 0.25)}
    fit[f"score_{HOSTILE}"] = np.array((1.0, 2.0))
    attributes = {
        "unit": HOSTILE,
        "classes": 2,
        "classes_curve": ((2, 0.5),),
        "classes_label": HOSTILE,
        "score_units": {HOSTILE: HOSTILE},
    }
    evil = replace(
        first,
        id=HOSTILE,
        split=HOSTILE,
        figures=((HOSTILE, HOSTILE),),
    )
    cards = tuple(
        replace(
            card,
            name=HOSTILE,
            class_name=HOSTILE,
            cutouts=(replace(card.cutouts[0], image_id=HOSTILE, split=HOSTILE),),
        )
        for card in content["clusters"]
    )
    return dict(
        content,
        title=HOSTILE,
        notice=HOSTILE,
        facts=((HOSTILE, HOSTILE),),
        settings_yaml=HOSTILE,
        commands=(HOSTILE,),
        metrics={"em": HOSTILE, "split": HOSTILE, **block, "splits": {HOSTILE: block, "b": block}},
        gallery=tuple(replace(item, names=(HOSTILE,) * 4) for item in (evil, *others)),
        clusters=cards,
        warnings=(HOSTILE,),
        unusual=((HOSTILE, HOSTILE),),
        repeatability=HOSTILE,
        sample_note=HOSTILE,
        cutout_note=HOSTILE,
        version=HOSTILE,
        names_file=HOSTILE,
        given=dict.fromkeys(range(4), HOSTILE),
        review=HOSTILE,
        curves=draw_fit(fit, attributes, COLOURS),
    )
