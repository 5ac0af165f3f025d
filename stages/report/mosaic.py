"""Overlapping windows put together into one picture, without seams where they meet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_LARGEST = 255  # ids are bytes; those above start again at 1


def join_pictures(
    windows: NDArray[np.uint8],
    boxes: Sequence[tuple[int, int, int, int]],
    shape: tuple[int, ...],
) -> NDArray[np.uint8]:
    """Paste pictures of windows into one; where they overlap, one fades into the other."""
    total = np.zeros((*shape[:2], 3), np.float32)
    weights = np.zeros((*shape[:2], 1), np.float32)
    for window, (left, top, right, bottom) in zip(windows, boxes, strict=True):
        height, width = bottom - top, right - left
        weight = np.minimum.outer(_ramp(height), _ramp(width))[..., None]
        total[top:bottom, left:right] += weight * _enlarge(window, height, width)
        weights[top:bottom, left:right] += weight
    mean = np.divide(total, weights, out=np.zeros_like(total), where=weights > 0)
    return np.rint(mean).astype(np.uint8)


def join_proposals(
    windows: NDArray[np.uint8],
    boxes: Sequence[tuple[int, int, int, int]],
    shape: tuple[int, ...],
) -> NDArray[np.uint8]:
    """Paste the proposals of windows into one map; what two windows agree on keeps one id."""
    joined = np.zeros(shape[:2], np.int64)
    used = 0
    for window, (left, top, right, bottom) in zip(windows, boxes, strict=True):
        ids = _enlarge(window, bottom - top, right - left).astype(np.int64)
        before = joined[top:bottom, left:right]
        names, used = _match_ids(ids, before, used)
        before[...] = np.where(before > 0, before, names[ids])
    return np.where(joined > 0, (joined - 1) % _LARGEST + 1, 0).astype(np.uint8)


def _match_ids(
    ids: NDArray[np.int64], before: NDArray[np.int64], used: int
) -> tuple[NDArray[np.int64], int]:
    """Choose the joined id of every id of a window; return them and the largest one in use."""
    count = int(ids.max()) + 1
    shared = (ids > 0) & (before > 0)
    overlap = np.zeros((count, used + 1), np.int64)
    np.add.at(overlap, (ids[shared], before[shared]), 1)
    best = overlap.argmax(axis=1)
    agreed = 2 * overlap[np.arange(count), best] > overlap.sum(axis=1)
    names = np.where(agreed, best, 0)
    new = np.setdiff1d(np.unique(ids), [0])
    new = new[names[new] == 0]
    names[new] = used + 1 + np.arange(len(new))
    return names, used + len(new)


def _ramp(length: int) -> NDArray[np.float32]:
    """Return the distance of every pixel from the nearer end, half a pixel at the least."""
    position = np.arange(length, dtype=np.float32) + 0.5
    return np.minimum(position, length - position)


def _enlarge(window: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    rows = np.arange(height) * window.shape[0] // height
    columns = np.arange(width) * window.shape[1] // width
    return window[rows[:, None], columns]
