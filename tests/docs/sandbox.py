"""A place as a reader of the documentation has it, and a shell that runs its commands there.

The home folder holds small drawn photographs, label maps, datasets, and weights of the default
backbone, drawn at random: so the commands run as they are written. What would take minutes is made
shorter by options behind those of the page (`SHORTER`); nothing of a page is taken away.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import numpy as np
import timm
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from cli import main
from tests.conftest import REPOSITORY
from tests.scenes import draw_scene

PROGRAM = "primaps-pipe"
BACKBONE = "vit_small_patch14_dinov2.lvd142m"
PHOTOGRAPHS = 12
SIDE = 84

SHORTER = {
    "extract": ("--size", str(SIDE)),
    "em": ("--epochs", "2", "--init-steps", "4", "--clusterings", "8"),
    "head": ("--steps", "3"),
    "run": (
        *("--set", f"extract.size={SIDE}", "--set", "em.epochs=2", "--set", "em.init_steps=4"),
    ),
}


def write_home(home: Path) -> None:
    """Write what the pages find in a reader's home folder, and the repository's folders to work in.

    Parameters
    ----------
    home
        An empty folder.
    """
    for number in range(PHOTOGRAPHS):
        pixels, labels = draw_scene(number, SIDE, SIDE)
        name = f"IMG_{number:04}"
        _save(home / "photographs" / f"{name}.jpg", pixels)
        _save(home / "labels" / f"{name}.png", labels)
        split = "train" if number < PHOTOGRAPHS - 4 else "val"
        _save(home / "data" / "camvid" / split / f"{name}.png", pixels)
        _save(home / "data" / "camvid" / f"{split}annot" / f"{name}.png", labels)
    write_own_dataset(home / "orchard")
    _write_weights(home / "weights" / f"{BACKBONE}.safetensors")
    (home / "cache").mkdir()
    clone = home / "primaps-pipe"
    clone.mkdir()
    for folder in ("docs", "workflows", "benchmarks"):
        (clone / folder).symlink_to(REPOSITORY / folder)


def write_own_dataset(root: Path) -> None:
    """Write images and label maps where the example of a definition looks for them."""
    raw = np.array([1, 2, 9], np.uint8)
    for number in range(PHOTOGRAPHS):
        pixels, labels = draw_scene(number, SIDE, SIDE)
        split = "train" if number < PHOTOGRAPHS - 4 else "val"
        _save(root / split / "photographs" / f"{number:04}.jpg", pixels)
        _save(root / split / "masks" / f"{number:04}.png", raw[labels])


def _save(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _write_weights(path: Path) -> None:
    torch.manual_seed(0)
    state = timm.create_model(BACKBONE, pretrained=False, num_classes=0).state_dict()
    path.parent.mkdir(parents=True)
    save_file({name: tensor.half() for name, tensor in state.items()}, path)


def split_line(line: str) -> list[str]:
    """Return the words of a line as a shell gives them: comments, ``~`` and variables replaced."""
    words = shlex.split(line, comments=True)
    # as text: a path object makes s3:/ of s3://
    return [os.path.expandvars(os.path.expanduser(word)) for word in words]  # noqa: PTH111


def run_line(line: str) -> Result:
    """Run a line of ``primaps-pipe`` in this process, in the folder at hand."""
    _, *arguments = split_line(line)
    verb = arguments[0] if arguments else ""
    more = () if "--help" in arguments else SHORTER.get(verb, ())
    return CliRunner().invoke(main, [*arguments, *more])
