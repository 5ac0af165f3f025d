"""Pictures of the report: labels, proposals, features and errors in colour, as data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.colors import hsv_to_rgb
from numpy.typing import NDArray
from PIL import Image

from pipeline.datasets import IGNORE

RIGHT_COLOUR = (184, 224, 186)
WRONG_COLOUR = (200, 30, 45)
IGNORED_COLOUR = (128, 128, 128)
NO_PROPOSAL_COLOUR = (44, 44, 44)

_GOLDEN_RATIO = (5**0.5 - 1) / 2
_SAMPLED_POSITIONS = 65_536
_JPEG_QUALITY = 80


@dataclass(frozen=True)
class FeatureColours:
    """How features become colours, the same for all pictures that are compared."""

    basis: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def colour_labels(ids: NDArray[np.uint8], palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colour a label map."""
    return palette[ids]


def colour_proposals(ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colour a map of mask proposals by fixed distinct colours."""
    return _PROPOSAL_PALETTE[ids]


def colour_errors(
    prediction: NDArray[np.uint8], truth: NDArray[np.uint8], ignore: int = IGNORE
) -> NDArray[np.uint8]:
    """Colour where a prediction is right (light green), wrong (red) or not judged (grey)."""
    colours = np.array([WRONG_COLOUR, RIGHT_COLOUR, IGNORED_COLOUR], np.uint8)
    state = (prediction == truth).astype(np.intp)
    state[truth == ignore] = 2
    coloured: NDArray[np.uint8] = colours[state]
    return coloured


def fit_feature_colours(features: NDArray[Any]) -> FeatureColours:
    """Find the colours that show most of what differs in a sample of features."""
    positions = features.reshape(-1, features.shape[-1])
    step = -(-len(positions) // _SAMPLED_POSITIONS)
    sample = positions[::step].astype(np.float64)
    mean = sample.mean(axis=0)
    centred = sample - mean
    _, directions = np.linalg.eigh(centred.T @ centred)
    leading = directions[:, ::-1][:, :3]
    largest = leading[np.abs(leading).argmax(axis=0), np.arange(leading.shape[1])]
    basis = np.zeros((len(mean), 3))
    basis[:, : leading.shape[1]] = leading * np.where(largest < 0, -1.0, 1.0)
    low, high = np.percentile(centred @ basis, (1, 99), axis=0)
    return FeatureColours(basis, mean, low, high)


def colour_features(
    features: NDArray[Any],
    basis: NDArray[np.float64],
    mean: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
) -> NDArray[np.uint8]:
    """Colour features by their projections on three directions."""
    projected = (features.astype(np.float64) - mean) @ basis
    extent = high - low
    flat = extent <= np.finfo(np.float64).eps * np.maximum(np.abs(high), np.abs(low))
    scaled = (projected - low) / np.where(flat, 1.0, extent)
    shares = np.where(flat, 0.5, np.clip(scaled, 0.0, 1.0))
    coloured: NDArray[np.uint8] = np.rint(255 * shares).astype(np.uint8)
    return coloured


def make_thumbnail(
    pixels: NDArray[np.uint8], kind: Literal["photograph", "map"], side: int = 320
) -> str:
    """Shrink a picture and inline it."""
    if kind not in ("photograph", "map"):
        raise ValueError(f"a thumbnail is a photograph or a map, not {kind!r}")
    image = Image.fromarray(np.ascontiguousarray(pixels))
    scale = side / max(image.size)
    if scale < 1:
        width, height = (max(1, round(scale * length)) for length in image.size)
        image = image.resize(
            (width, height),
            Image.Resampling.LANCZOS if kind == "photograph" else Image.Resampling.NEAREST,
        )
    buffer = io.BytesIO()
    if kind == "photograph":
        image.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
        return _inline(buffer.getvalue(), "image/jpeg")
    _index_colours(image).save(buffer, "PNG", optimize=True)
    return _inline(buffer.getvalue(), "image/png")


def _index_colours(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image)
    # as one number each: sorting rows of three takes twenty times as long
    packed = pixels.reshape(-1, 3).astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    numbers, indices = np.unique(packed, return_inverse=True)
    if len(numbers) > 256:
        return image.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    colours = np.stack([numbers >> 16, numbers >> 8 & 255, numbers & 255], axis=1).astype(np.uint8)
    indexed = Image.fromarray(indices.reshape(pixels.shape[:2]).astype(np.uint8))
    indexed.putpalette(colours.tobytes())
    return indexed


def _inline(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def _make_proposal_palette() -> NDArray[np.uint8]:
    # hues a golden section apart: any run of consecutive ids, which is what an image has, is spread
    # evenly over the circle; saturation and value step slower, so that no two ids share a colour
    index = np.arange(255)
    hue = (0.58 + index * _GOLDEN_RATIO) % 1.0
    saturation = 0.75 - 0.15 * (index // 3 % 4)
    value = 0.98 - 0.14 * (index % 3)
    colours = np.rint(255 * hsv_to_rgb(np.stack([hue, saturation, value], axis=-1)))
    return np.concatenate([[NO_PROPOSAL_COLOUR], colours]).astype(np.uint8)


_PROPOSAL_PALETTE = _make_proposal_palette()
