"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.scenes import extract_options, finished, invoke, scenes

__all__ = ["extract_options", "finished", "invoke", "scenes"]

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """Give the folder of real weights and samples, or skip: the tests must pass without it."""
    folder = Path(os.environ.get("PRIMAPS_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "datasets").is_dir():
        pytest.skip(f"no real samples at {folder} (set PRIMAPS_SHARED)")
    return folder
