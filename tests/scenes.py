"""A small dataset of drawn scenes, and runs of the command line on it; fixtures of all tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

SKY, FIELD, ROAD = 0, 1, 2
COLOURS = np.array([(120, 170, 230), (60, 140, 50), (90, 90, 95)])
FAST_EM = ("--epochs", "3", "--init-steps", "6")

Invoke = Callable[..., Result]


def draw_scene(number: int, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw sky, field and road with noise; return uint8 [y, x, rgb] and labels [y, x]."""
    generator = np.random.default_rng(number)
    y, x = np.mgrid[:height, :width]
    horizon = height * generator.uniform(0.3, 0.6)
    labels = np.where(y < horizon, SKY, FIELD)
    middle = width * generator.uniform(0.3, 0.7)
    labels[(y >= horizon) & (abs(x - middle) < (y - horizon) * 0.7)] = ROAD
    noise = generator.normal(0, 1, (height, width, 1)) * np.array([4, 25, 10])[labels][..., None]
    pixels = COLOURS[labels] + noise
    return pixels.clip(0, 255).astype(np.uint8), labels.astype(np.uint8)


def write_scenes(folder: Path, count: int, *, width: int = 130, height: int = 100) -> None:
    """Write ``count`` scenes and their label maps below ``folder``."""
    for number in range(count):
        pixels, labels = draw_scene(number, width + 10 * (number % 3), height)
        for kind, values in (("photographs", pixels), ("labels", labels)):
            path = folder / kind / f"part {number % 2}" / f"scene {number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)


def write_split_scenes(folder: Path, counts: Mapping[str, int]) -> Path:
    """Write so many scenes of every split; return the table that lists them with their labels."""
    rows = ["image,label,split"]
    for split, count in counts.items():
        write_scenes(folder / split, count)
        for n in range(count):
            place = f"part {n % 2}/scene {n}.png"
            rows.append(f"{split}/photographs/{place},{split}/labels/{place},{split}")
    table = folder / "list.csv"
    table.write_text("\n".join(rows) + "\n")
    return table


def hash_tree(folder: Path) -> dict[str, str]:
    """Return relative path -> digest of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def list_times(folder: Path) -> dict[str, int]:
    """Return relative path -> modification time of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="session")
def invoke() -> Invoke:
    """Call the command line in this process."""

    # no test that does without commands waits for their imports
    from cli import main

    def call(*arguments: object, code: int | None = 0) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        if code is not None:
            assert result.exit_code == code, result.output
        return result

    return call


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine scenes with labels, under a name with a space and an umlaut."""
    folder = tmp_path_factory.mktemp("däta set")
    write_scenes(folder, 9)
    return folder


@pytest.fixture(scope="session")
def extract_options(scenes: Path) -> list[object]:
    """What extract needs for the scenes: three shards, no weights."""
    return [
        *("--dataset", "folder", "--root", scenes / "photographs", "--labels", scenes / "labels"),
        *("--backbone", "handcrafted", "--size", 64, "--shard-size", 6, "--no-progress"),
    ]


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, invoke: Invoke, extract_options: list[object]
) -> Iterator[Path]:
    """A run of all four stages on the scenes; tests may read it, not change it."""
    run = tmp_path_factory.mktemp("runs") / "finished run"
    invoke("extract", run, *extract_options)
    invoke("masks", run, "--no-progress")
    invoke("em", run, "--classes", 3, *FAST_EM, "--no-progress")
    invoke("evaluate", run, "--no-progress")
    before = hash_tree(run)
    yield run
    assert hash_tree(run) == before, "a test changed the shared run"
