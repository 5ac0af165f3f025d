"""Fixtures lie in ``tests/scenes.py``: tests of other rooms read the finished run, too."""

from __future__ import annotations

from tests.scenes import (
    FAST_EM,
    Invoke,
    draw_scene,
    hash_tree,
    invoke,
    list_times,
    write_scenes,
)

__all__ = [
    "FAST_EM",
    "Invoke",
    "draw_scene",
    "hash_tree",
    "invoke",
    "list_times",
    "write_scenes",
]
