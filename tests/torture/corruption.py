"""Corruption at rest: bits flipped, files cut, emptied and removed; found, named, and repaired."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result

from cli import main
from tests.end_to_end.conftest import FAST_EM, hash_tree, write_scenes
from tests.torture.workshop import Trial

Damage = Callable[[Path, np.random.Generator], str]


def flip_bit(file: Path, generator: np.random.Generator) -> str:
    """Flip one bit of a file."""
    content = bytearray(file.read_bytes())
    bit = int(generator.integers(8 * len(content)))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    return f"bit {bit} flipped"


def flip_block(file: Path, generator: np.random.Generator) -> str:
    """Put noise where a disk has lost a sector."""
    content = bytearray(file.read_bytes())
    start = int(generator.integers(len(content)))
    stop = min(len(content), start + 512)
    content[start:stop] = bytes(255 - byte for byte in content[start:stop])
    file.write_bytes(content)
    return f"bytes {start} to {stop} inverted"


def cut_file(file: Path, generator: np.random.Generator) -> str:
    """Cut a file anywhere."""
    content = file.read_bytes()
    keep = int(generator.integers(len(content)))
    file.write_bytes(content[:keep])
    return f"cut to {keep} of {len(content)} bytes"


def remove(file: Path, generator: np.random.Generator) -> str:
    """Remove a file."""
    file.unlink()
    return "removed"


def take_twin(file: Path, generator: np.random.Generator) -> str:
    """Put a whole file of the same size in its place, as a disk that lost a write would."""
    content = file.read_bytes()
    store = next((up for up in file.parents if up.suffix == ".zarr"), file.parent)
    twins = [
        other
        for other in sorted(store.rglob("*"))
        if other.is_file() and other.stat().st_size == len(content)
    ]
    twins = [other for other in twins if other.read_bytes() != content]
    if not twins:
        return flip_bit(file, generator)
    twin = twins[int(generator.integers(len(twins)))]
    shutil.copyfile(twin, file)
    return f"{twin.name} of the same size in its place"


DAMAGES: tuple[Damage, ...] = (flip_bit, flip_block, cut_file, remove, take_twin)


def call(*arguments: object) -> Result:
    """Call the command line in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def make_run(folder: Path) -> Path:
    """Run all stages, the optional ones too, on small scenes."""
    write_scenes(folder / "data", 6)
    run = folder / "run"
    options = ["--root", folder / "data/photographs", "--labels", folder / "data/labels"]
    options += ["--dataset", "folder", "--backbone", "handcrafted", "--size", 64]
    quiet = "--no-progress"
    for command in (
        ("extract", run, *options, "--shard-size", 4, "--views", "clean,photometric", quiet),
        ("masks", run, quiet),
        ("head", run, "--method", "stego", "--classes", 3, "--steps", 20, quiet),
        ("em", run, "--classes", 3, *FAST_EM, quiet),
        ("evaluate", run, "--em", "default", quiet),
    ):
        result = call(*command)
        if result.exit_code:
            raise RuntimeError(f"{command[0]} ended with {result.exit_code}: {result.output}")
    return run


def list_files(run: Path) -> list[Path]:
    """List the files of a run, but for locks and their like, which are no artefacts."""
    files = (path for path in sorted(run.rglob("*")) if path.is_file())
    return [file for file in files if "locks" not in file.relative_to(run).parts]


def hash_artefacts(run: Path) -> dict[str, str]:
    """Hash what a run holds, but for the records, which say how long each shard took."""
    return {name: h for name, h in hash_tree(run).items() if not name.startswith("state/")}


def run_corruptions(folder: Path, *, seed: int, rounds: int = 1) -> Iterator[Trial]:
    """Damage every file of a run in every way, one at a time; verify, repair, compare.

    Parameters
    ----------
    folder
        An empty one.
    seed
        Chooses the bits.
    rounds
        How often every file is damaged in every way.

    Yields
    ------
    Trial
        One per damage.
    """
    run = make_run(folder)
    wanted = hash_artefacts(run)
    names = [file.relative_to(run) for file in list_files(run)]
    whole = folder / "whole"
    shutil.copytree(run, whole)
    generator = np.random.default_rng(seed)
    for _ in range(rounds):
        for name in names:
            for damage in DAMAGES:
                yield _try(run, whole, name, damage, generator, wanted)


def _try(
    run: Path,
    whole: Path,
    name: Path,
    damage: Damage,
    generator: np.random.Generator,
    wanted: dict[str, str],
) -> Trial:
    start = time.monotonic()
    what = f"{name}: {damage(run / name, generator)}"
    wrong = []
    found = call("verify", run, "--no-progress")
    if found.exit_code != 1 or name.as_posix() not in found.output:
        wrong.append(f"not found: {found.output}")
    repaired = call("verify", run, "--repair", "--no-progress")
    if repaired.exit_code != 0:
        wrong.append(f"not repaired: {repaired.output}")
    now = hash_artefacts(run)
    different = sorted(file for file in wanted | now if wanted.get(file) != now.get(file))
    if different:
        wrong.append(f"other bytes in {', '.join(different)}")
    if wrong or not (run / name).is_file():
        # the next trial begins with a whole run
        shutil.rmtree(run)
        shutil.copytree(whole, run)
    lost = sum((whole / file).stat().st_size for file in different if (whole / file).is_file())
    return Trial(what, True, wrong, lost, time.monotonic() - start)
