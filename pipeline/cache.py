"""Where files are kept for all runs: weights that were converted, images that were unpacked."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def find_cache(name: str) -> Path:
    """Return one folder of the cache: below $PRIMAPS_CACHE_DIR, or the user's own.

    Parameters
    ----------
    name
        What is kept in it.
    """
    chosen = os.environ.get("PRIMAPS_CACHE_DIR")
    root = Path(chosen) if chosen else Path(platformdirs.user_cache_dir("primaps-pipe"))
    return root / name
