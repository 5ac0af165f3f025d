"""What a terminal is sent: names of files do not steer it, and are not taken for markup."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Invoke, write_scenes

# a closing tag to rich, and a colour to the terminal
NAME = "a[/b] \x1b[31mred.png"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """One of two scenes, under a name made to do harm."""
    write_scenes(tmp_path, 2)
    image = tmp_path / "photographs" / NAME
    image.parent.mkdir()
    (tmp_path / "photographs/part 0/scene 0.png").rename(image)
    return image


@pytest.fixture
def run(invoke: Invoke, tmp_path: Path, image: Path) -> Path:
    run = tmp_path / "run"
    dataset = ("--dataset", "folder", "--root", tmp_path / "photographs")
    invoke("extract", run, *dataset, "--backbone", "handcrafted", "--size", 64, "--no-progress")
    return run


def test_status_shows_names_as_they_are(invoke: Invoke, run: Path, image: Path) -> None:
    os.utime(image)
    output = invoke("status", run).output
    assert "\x1b" not in output
    # the table breaks lines anywhere
    letters = "".join(output.split())
    assert "a[/b]" in letters
    assert r"\x1b[31mred.png" in letters


def test_verify_shows_names_as_they_are(invoke: Invoke, run: Path) -> None:
    features = run / "features.zarr/clean/c/0/0/0/0"
    content = bytearray(features.read_bytes())
    content[10] ^= 16
    features.write_bytes(content)
    output = invoke("verify", run, code=1).output
    assert r"a[/b] \x1b[31mred.png" in output
    assert "\x1b" not in output
