"""How sure every pixel of a label map is: a grey PNG beside it, 255 x probability, cut off."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UsageError

if TYPE_CHECKING:
    # which loads pyarrow, and help pages ask what is a map
    from pipeline.run.manifest import Image, Manifest

SUFFIX = ".confidence.png"
# What a person has said.
CERTAIN = 255


def is_map(name: str) -> bool:
    """Whether a file among label maps is one, and not how sure one is."""
    return name.endswith(".png") and not name.endswith(SUFFIX)


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
        if not is_map(f"{image.id}.png"):
            raise UsageError(
                f"--confidence: the label map of {image.path} would be called like how sure that "
                "of another is; give the image another name."
            )
