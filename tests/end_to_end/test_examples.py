"""The examples of the help pages work as written, in the order of the table of contents."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli import CONTENTS, main
from commands.verbs import Verb
from tests.scenes import write_scenes

# what a run of the demo needs that the tests have no network and no time for
HANDCRAFTED = ("--backbone", "handcrafted", "--size", "64")
SMALL = {
    "extract runs/mine --dataset": HANDCRAFTED,
    "run": ("--set", "extract.backbone=handcrafted", "--set", "extract.size=64"),
    "em": ("--epochs", "2", "--init-steps", "6"),
    "head": ("--steps", "3", "--dim", "8"),
}


def list_examples() -> list[str]:
    verbs = [main.get_command(click.Context(main), n) for rows in CONTENTS.values() for n in rows]
    lines = [line for verb in verbs if isinstance(verb, Verb) for line, _ in verb.examples]
    # the run that the other examples take is made by the demo; a review ends when it is told to,
    # and tests/browser visits one; scenes here have no labels, tests/workflows scores such as have
    labelled = ("primaps-pipe score", "primaps-pipe verify runs/camvid --label-free")
    left_out = ("primaps-pipe demo", "primaps-pipe review", *labelled)
    return list(dict.fromkeys(line for line in lines if not line.startswith(left_out)))


def shorten(line: str) -> list[str]:
    """Return the words of an example, with options that make it quick."""
    words = shlex.split(line)[1:]
    extra = next(
        (more for start, more in SMALL.items() if line.startswith(f"primaps-pipe {start} ")), ()
    )
    return [*words, *extra]


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a run in the place of the demo's, of scenes instead of photographs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRIMAPS_CACHE_DIR", str(tmp_path / "cache"))
    # enough proposals to count classes
    write_scenes(tmp_path / "scenes", 8)
    images = tmp_path / "runs/demo/photographs/images"
    images.mkdir(parents=True)
    for number in range(8):
        name = "astronaut" if number == 0 else f"scene {number}"
        scene = tmp_path / "scenes/photographs" / f"part {number % 2}" / f"scene {number}.png"
        shutil.copy(scene, images / f"{name}.png")
    shutil.move(tmp_path / "runs/demo/photographs", tmp_path / "photographs")
    place = ("--dataset", "folder", "--root", "photographs/images", *HANDCRAFTED)
    result = CliRunner().invoke(main, ["extract", "runs/demo", *place])
    assert result.exit_code == 0, result.output
    # as the demo leaves them: below the run
    shutil.move(tmp_path / "photographs", tmp_path / "runs/demo/photographs")
    moved = ("--root", "runs/demo/photographs/images")
    result = CliRunner().invoke(main, ["extract", "runs/demo", *moved])
    assert result.exit_code == 0, result.output


@pytest.mark.usefixtures("demo")
def test_the_examples_work_as_written() -> None:
    Path("points.csv").write_text("split,image,x,y,class\nall,astronaut,1,1,person\n")
    for line in list_examples():
        result = CliRunner().invoke(main, shorten(line))
        assert result.exit_code == 0, f"{line}\n{result.output}"
