"""How sure every pixel of a label map is: a grey PNG beside it, 255 x probability, cut off."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UsageError

if TYPE_CHECKING:
    # which loads pyarrow, and help pages ask what is a map
    from pipeline.run.ledger import StageRecord
    from pipeline.run.manifest import Image, Manifest

SUFFIX = ".confidence.png"
# What a person has said.
CERTAIN = 255


def is_map(name: str, record: StageRecord | None) -> bool:
    """Whether a file that a stage of some record wrote is a label map, and not how sure one is.

    Without ``--confidence`` an image of any name has a label map, and so where no record tells.
    """
    sure = record is not None and record.settings.get("confidence")
    return name.endswith(".png") and not (sure and name.endswith(SUFFIX))


def confidence_file(folder: Path, image: Image) -> Path:
    """Return where it lies how sure the label map of an image is."""
    return folder / image.split / f"{image.id}{SUFFIX}"


def find_least(share: float) -> int:
    """Return the least byte that says a probability of at least ``share``."""
    # a share that is a whole number of bytes is not pushed to the next by its last digit
    return math.ceil(255 * share - 1e-9)


def require_names(manifest: Manifest) -> None:
    """Refuse images whose label maps would be taken for how sure those of others are."""
    for image in manifest.images:
        if f"{image.id}.png".endswith(SUFFIX):
            raise UsageError(
                f"--confidence: the label map of {image.path} would be called like how sure that "
                "of another is; give the image another name."
            )
