"""A comparison of drawn scenes that no run was needed for, plain and with hostile text."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from stages.report.comparison import ComparedImage, Row
from stages.report.content import Content
from stages.report.pictures import make_thumbnail
from stages.report.plots import draw_series
from tests.report_content import COLOURS, HOSTILE, NAMES, PALETTE
from tests.scenes import draw_scene

DIFFERENCES = (12.5, 60.0, None, 33.25)
SPLITS = ("train", "val", "val", "train")


@cache
def make_image(number: int, columns: int = 2) -> ComparedImage:
    """Draw a scene, its truth, and as many label maps."""
    pixels, truth = draw_scene(number, 160, 120)
    shifted = [np.roll(truth, 9 * (i + 1), axis=1) for i in range(columns)]
    return ComparedImage(
        id=f"part 0/scene {number}",
        split=SPLITS[number],
        role="most" if number < 2 else "sample",
        difference=DIFFERENCES[number],
        photograph=make_thumbnail(pixels, "photograph"),
        truth=make_thumbnail(PALETTE[truth], "map") if number != 2 else None,
        labels=tuple(make_thumbnail(PALETTE[ids], "map") for ids in shifted),
        accuracy=(81.5, None, 12.25, 99.0)[:columns],
    )


def make_column(name: str, facts: tuple[tuple[str, str], ...]) -> Content:
    """Say what is compared."""
    return {"name": name, "facts": facts}


def make_table(split: str, rows: tuple[Row, ...], note: str = "") -> Content:
    """Put rows under the name of a split."""
    return {"split": split, "rows": rows, "note": note}


def make_comparison(names: tuple[str, ...] = ("default", "k-means")) -> Content:
    """Make a comparison of two fits, or as many as there are names."""
    count = len(names)
    scores = (
        Row("Images", tuple(range(30, 30 + count))),
        Row("Mean IoU with CRF, %", tuple(40.5 + i for i in range(count)), (count - 1,)),
        Row("Confidence, %", (None,) * count),
    )
    classes = tuple(
        Row(name, tuple(50.0 - i for i in range(count)), (0,), colour)
        for name, colour in zip(NAMES, COLOURS, strict=False)
    )
    return {
        "title": f"Comparison of {', '.join(names)}",
        "verdict": "Highest mean IoU on val: k-means, 41.5 %, 1.0 points above the next.",
        "columns": [
            make_column(name, (("run", "/runs/mine"), ("clusters", "4"))) for name in names
        ],
        "notes": ("30 images are in common.",),
        "scores": (
            make_table("val", scores, "Not as many images in all."),
            make_table("train", scores),
        ),
        "classes": (make_table("val", classes),),
        "settings": (Row("em.method", ("primaps", "kmeans", "stego", None)[:count]),),
        "agreement": tuple(
            tuple(None if a == b else 71.25 for b in range(count)) for a in range(count)
        ),
        "compared": 30,
        "in_common": 30,
        "most_compared": 200,
        "gallery": tuple(make_image(number, count) for number in (1, 3, 0, 2)),
        "left_out": 0,
        "reference": names[0],
        "reference_by": "class",
        "borrowed": names[1:],
        "legend": tuple(zip(NAMES, COLOURS, strict=False)),
        "other_colours": True,
        "curves": tuple(
            (name, (("Loss", draw_series("Loss", (3.0, 2.0, 1.5))),)) for name in names
        ),
        "commands": tuple(f"primaps-pipe evaluate {name}" for name in names),
        "version": "1.2.3",
    }


def make_hostile() -> Content:
    """Make a comparison in which every text is hostile."""
    content = make_comparison((HOSTILE, "b"))
    gallery = tuple(replace(image, id=HOSTILE, split=HOSTILE) for image in content["gallery"])
    rows = tuple(Row(HOSTILE, (HOSTILE, None), (), (1, 2, 3)) for _ in range(2))
    return dict(
        content,
        verdict=HOSTILE,
        notes=(HOSTILE,),
        scores=(make_table(HOSTILE, rows, HOSTILE),),
        classes=(make_table(HOSTILE, rows),),
        settings=rows,
        gallery=gallery,
        reference=HOSTILE,
        borrowed=[HOSTILE],
        legend=((HOSTILE, (1, 2, 3)),),
        columns=[make_column(HOSTILE, ((HOSTILE, HOSTILE),)) for _ in content["columns"]],
        commands=(HOSTILE,),
        version=HOSTILE,
    )
