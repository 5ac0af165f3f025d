"""Where the cache lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cache import find_cache


def test_the_environment_says_where_the_cache_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIMAPS_CACHE_DIR", str(tmp_path))
    assert find_cache("weights") == tmp_path / "weights"


def test_without_a_word_it_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRIMAPS_CACHE_DIR", raising=False)
    assert find_cache("datasets").parent.name == "primaps-pipe"
