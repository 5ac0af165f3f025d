"""Features that are not finite: found, put into words, and laid to the image or to the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RunError, WeightsError
from stages.extract.passes import extract_clean

if TYPE_CHECKING:
    from stages.extract.backbones import Backbone

_SHOWN = 3
_REMEDY = "try --precision float32, or other weights with --weights"


def find_faulty(blocks: Mapping[str, NDArray[np.float16]]) -> NDArray[np.int64]:
    """Find the windows of which any value of any array is not finite.

    Parameters
    ----------
    blocks
        Name to float16 [window, ...], as many windows in each.

    Returns
    -------
    numpy.ndarray
        int64 [window], ascending: their places in the blocks.
    """
    faulty = np.zeros(len(next(iter(blocks.values()))), np.bool_)
    for block in blocks.values():
        # one pass tells the usual case, in which no window is looked at by itself
        if not np.isfinite(block).all():
            faulty |= ~np.isfinite(block).reshape(len(block), -1).all(axis=1)
    return np.flatnonzero(faulty)


def describe_faults(blocks: Mapping[str, NDArray[np.float16]], places: Sequence[int]) -> str:
    """Say what is not finite in the windows of one image.

    Parameters
    ----------
    blocks
        Name to float16 [window, row, column, channel].
    places
        The image's windows in the blocks, at least one of them faulty.

    Returns
    -------
    str
        Such as ``NaN in 1 of 529 positions``, of the first array that has any.
    """
    for name, block in blocks.items():
        values = block[list(places)]
        kinds = {"NaN": np.isnan(values), "infinity": np.isinf(values)}
        counts = {kind: int(found.any(axis=-1).sum()) for kind, found in kinds.items()}
        if any(counts.values()):
            where = "" if name == "clean" else f" of {name}"
            found = " and ".join(f"{kind} in {count}" for kind, count in counts.items() if count)
            return f"{found} of {values[..., 0].size} positions{where}"
    raise ValueError("none of these windows has a value that is not finite")


def check_finite(
    blocks: Mapping[str, NDArray[np.float16]], images: Sequence[str], stage: str
) -> None:
    """Refuse features that are not finite, where their images cannot be rejected any more.

    Parameters
    ----------
    blocks
        Name to float16 [window, row, column, channel].
    images
        Path of the image of every window.
    stage
        Name of the stage that computed them.

    Raises
    ------
    RunError
        There are some.
    """
    faulty = find_faulty(blocks)
    if not len(faulty):
        return
    paths = list(dict.fromkeys(images[place] for place in faulty))
    first = [int(place) for place in faulty if images[place] == paths[0]]
    shown = ", ".join(paths[:_SHOWN]) + (", ..." if len(paths) > _SHOWN else "")
    raise RunError(
        f"{stage}: the features of {len(paths)} images are not finite in float16 ({shown}; "
        f"{describe_faults(blocks, first)} of the first): take these images out of the folder and "
        f"run `primaps-pipe extract` again, or {_REMEDY}."
    )


def check_backbone(backbone: Backbone, size: int) -> None:
    """Refuse a backbone that gives nothing finite for a plain picture, whatever the images are.

    Parameters
    ----------
    backbone
        The frozen backbone.
    size
        Side of a window, pixels.

    Raises
    ------
    WeightsError
        It does: the weights are damaged, or overflow in the precision.
    """
    ramp = np.linspace(64, 192, size).astype(np.uint8)
    picture = np.broadcast_to(ramp[None, None, :, None], (1, size, size, 3))
    features = {"clean": extract_clean(backbone, np.ascontiguousarray(picture))}
    if len(find_faulty(features)):
        raise WeightsError(
            f"the weights of {backbone.name} are damaged, or overflow in {backbone.precision}: "
            f"even a plain grey picture has features that are not finite "
            f"({describe_faults(features, [0])}); {_REMEDY}."
        )
