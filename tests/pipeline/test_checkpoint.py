"""Checkpoints: killed at any instant, the last whole one is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.checkpoint import Checkpoint
from pipeline.errors import DamageError


def make(folder: Path, fingerprint: str = "abc") -> Checkpoint:
    return Checkpoint(folder / "fit.npz", fingerprint)


def arrays(epoch: int) -> dict[str, np.ndarray]:
    return {
        "weight": np.full((3, 2), epoch, np.float32) / 3,
        "step": np.array(10 * epoch, np.int64),
        "none": np.zeros((0, 2), np.float64),
    }


def assert_epoch(saved: tuple[dict[str, np.ndarray], dict[str, Any]] | None, epoch: int) -> None:
    assert saved is not None
    loaded, values = saved
    assert values == {"epoch": epoch, "loss": [0.1] * epoch}
    assert sorted(loaded) == ["none", "step", "weight"]
    for name, array in arrays(epoch).items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array, strict=True)


def save(checkpoint: Checkpoint, epoch: int) -> None:
    checkpoint.save(arrays(epoch), {"epoch": epoch, "loss": [0.1] * epoch})


def test_the_last_one_is_loaded_exactly(tmp_path: Path) -> None:
    assert make(tmp_path).load() is None
    for epoch in range(1, 5):
        save(make(tmp_path), epoch)
        assert_epoch(make(tmp_path).load(), epoch)


def test_killed_in_a_save_the_older_one_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    save(make(tmp_path), 1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            save(make(tmp_path), 2)
    assert_epoch(make(tmp_path).load(), 1)


def test_one_of_something_else_is_ignored(tmp_path: Path) -> None:
    save(make(tmp_path), 1)
    assert make(tmp_path, "other").load() is None
    assert_epoch(make(tmp_path).load(), 1)
    save(make(tmp_path, "other"), 2)
    assert make(tmp_path).load() is None
    assert_epoch(make(tmp_path, "other").load(), 2)


def test_no_flipped_bit_is_loaded(tmp_path: Path) -> None:
    save(make(tmp_path), 3)
    whole = make(tmp_path).file.read_bytes()
    for bit in range(0, 8 * len(whole), 97):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        make(tmp_path).file.write_bytes(content)
        try:
            # a bit of a time or of padding changes nothing
            assert_epoch(make(tmp_path).load(), 3)
        except DamageError as error:
            assert "delete it to begin the fit again" in str(error)


def test_removed_it_is_gone(tmp_path: Path) -> None:
    save(make(tmp_path), 1)
    make(tmp_path).remove()
    make(tmp_path).remove()
    assert make(tmp_path).load() is None
    assert not any(tmp_path.iterdir())
