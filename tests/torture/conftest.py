"""One workshop for all tests of this folder: its imports and undisturbed runs take the longest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.torture.workshop import Workshop, open_workshop


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """Tiny runs of the four stages, to be disturbed."""
    with open_workshop(tmp_path_factory.mktemp("workshop")) as shop:
        yield shop
