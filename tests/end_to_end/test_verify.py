"""Corruption at rest: a flipped bit anywhere is found, named, and repaired without other work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.run.directory import RunDirectory
from pipeline.run.manifest import read_manifest
from tests.end_to_end.conftest import FAST_EM, Invoke, hash_tree, list_times

# Files that say when or how long, or who held a lock: they are not artefacts.
UNCHECKED = ("state/locks",)


def list_artefacts(run: Path) -> list[Path]:
    """List the files of a run that somebody may read."""
    files = (path for path in sorted(run.rglob("*")) if path.is_file())
    return [f for f in files if not str(f.relative_to(run)).startswith(UNCHECKED)]


def flip(file: Path, seed: int) -> None:
    """Flip one bit of a file."""
    content = bytearray(file.read_bytes())
    bit = int(np.random.default_rng(seed).integers(8 * len(content)))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


@pytest.fixture
def run(finished: Path, invoke: Invoke, tmp_path: Path) -> Path:
    """A copy of the finished run, whose report names its own folder."""
    target = tmp_path / "run"
    shutil.copytree(finished, target)
    (target / "report/index.html").unlink()
    invoke("evaluate", target, "--no-progress")
    return target


def artefacts(run: Path) -> dict[str, str]:
    """Hash what a run holds, but for the records, which say how long it took."""
    return {name: h for name, h in hash_tree(run).items() if not name.startswith("state/")}


def test_a_run_that_is_as_written(run: Path, invoke: Invoke) -> None:
    before = list_times(run)
    output = invoke("verify", run).output
    assert "all as written" in output
    assert list_times(run) == before
    report = json.loads(invoke("verify", run, "--json").stdout)
    assert report["damages"] == []
    # but for what checks itself: the ledger, run.yaml and the groups' own metadata
    assert report["files"] > 0.7 * len(list_artefacts(run)) - 30


def test_a_bit_in_any_file_is_found_and_repaired(run: Path, invoke: Invoke) -> None:
    wanted = artefacts(run)
    for number, file in enumerate(list_artefacts(run)):
        name = file.relative_to(run).as_posix()
        flip(file, number)
        output = invoke("verify", run, code=None).output
        assert name in output, f"{name} is not named: {output}"
        assert invoke("verify", run, "--repair", code=0).output.endswith("all as written\n"), name
    assert artefacts(run) == wanted


def test_a_shard_is_named_with_its_windows_and_images(run: Path, invoke: Invoke) -> None:
    file = run / "features.zarr/clean/c/1/0/0/0"
    content = bytearray(file.read_bytes())
    # the third window of the shard, in the middle of its chunk
    content[int(2.5 * (len(content) - 100) / 6)] ^= 16
    file.write_bytes(content)
    manifest = read_manifest(RunDirectory(run))
    shard = json.loads((run / "state/extract/stage.json").read_text())["shards"]
    assert len(shard) == 3
    output = invoke("verify", run, code=1).output
    image = manifest.images[manifest.windows[8].image]
    assert "extract, shard 1: features.zarr/clean/c/1/0/0/0 has other bytes" in output
    assert f"windows 8; images {image.path}" in output
    # whoever reads it refuses it
    message = invoke("masks", run, "--force", "--no-progress", code=1).output
    assert "damaged" in message
    assert "verify" in message


def test_a_whole_shard_in_the_place_of_another_is_found(run: Path, invoke: Invoke) -> None:
    wanted = artefacts(run)
    shard = run / "features.zarr/clean/c/0/0/0/0"
    # whole, and of the same size: every chunk's own checksum is right
    shutil.copy(run / "features.zarr/mirror/c/0/0/0/0", shard)
    output = invoke("verify", run, code=1).output
    assert "features.zarr/clean/c/0/0/0/0 has other bytes" in output
    invoke("verify", run, "--repair", "--no-progress")
    assert artefacts(run) == wanted


def test_repair_recomputes_the_damaged_shards_alone(run: Path, invoke: Invoke) -> None:
    wanted = artefacts(run)
    damaged = ["features.zarr/clean/c/1/0/0/0", "masks.zarr/proposals/c/0/0/0"]
    for seed, name in enumerate(damaged):
        flip(run / name, seed)
    before = list_times(run)
    invoke("verify", run, "--repair", "--no-progress")
    assert artefacts(run) == wanted
    after = list_times(run)
    changed = {name for name in after if after[name] != before[name]}
    arrays = {name for name in changed if "/c/" in name}
    shards = {
        *(f"features.zarr/{view}/c/1/0/0/0" for view in ("clean", "mirror")),
        *("masks.zarr/proposals/c/0/0/0", "masks.zarr/pooled/c/0/0/0", "masks.zarr/area/c/0/0"),
    }
    assert arrays == shards
    assert not [name for name in changed if name.startswith(("labels/", "em.zarr/", "report/"))]


def test_lost_files_are_found_and_made_again(run: Path, invoke: Invoke) -> None:
    wanted = artefacts(run)
    label = next((run / "labels").rglob("*.png"))
    label.unlink()
    shutil.rmtree(run / "em.zarr" / "default")
    (run / "manifest.parquet").unlink()
    output = invoke("verify", run, code=1).output
    for name in (label.relative_to(run).as_posix(), "em.zarr/default/zarr.json", "manifest.parq"):
        assert name in output
    invoke("verify", run, "--repair", "--no-progress")
    assert artefacts(run) == wanted


def test_what_cannot_come_out_again_is_not_begun(
    run: Path, invoke: Invoke, tmp_path: Path, scenes: Path
) -> None:
    # the same images elsewhere, one of them changed
    moved = tmp_path / "moved"
    shutil.copytree(scenes, moved)
    mine = tmp_path / "mine"
    options = ["--dataset", "folder", "--root", moved / "photographs", "--size", 64]
    options += ["--backbone", "handcrafted", "--shard-size", 6, "--no-progress"]
    invoke("extract", mine, *options)
    first = next((moved / "photographs").rglob("*.png"))
    flip(mine / "features.zarr/clean/c/1/0/0/0", 1)
    before = hash_tree(mine / "features.zarr")
    first.unlink()
    message = invoke("verify", mine, "--repair", "--no-progress", code=1).output
    assert "cannot be repaired alone" in message
    assert "primaps-pipe extract" in message
    assert hash_tree(mine / "features.zarr") == before


def test_both_copies_of_the_settings_gone(run: Path, invoke: Invoke) -> None:
    file, copy = run / "run.yaml", run / "state/run.yaml"
    text = file.read_text()
    for path in (file, copy):
        flip(path, 3)
    message = invoke("verify", run, "--repair", code=1).output
    assert "are both damaged" in message
    # as the message says
    file.write_text("".join(text.splitlines(keepends=True)[:-1]))
    invoke("verify", run, "--repair", "--no-progress")
    assert file.read_text() == copy.read_text() == text


def test_no_run(tmp_path: Path, invoke: Invoke) -> None:
    assert "is no run directory" in invoke("verify", tmp_path / "none", code=1).output


def test_a_changed_image_is_refused_beside_a_damaged_table(
    invoke: Invoke, tmp_path: Path, scenes: Path
) -> None:
    moved, mine = tmp_path / "moved", tmp_path / "mine"
    shutil.copytree(scenes, moved)
    options = ["--dataset", "folder", "--root", moved / "photographs", "--size", 64]
    options += ["--backbone", "handcrafted", "--shard-size", 6, "--no-progress"]
    invoke("extract", mine, *options)
    before = hash_tree(mine / "features.zarr")
    # alone, the table is made again
    flip(mine / "manifest.parquet", 2)
    invoke("verify", mine, "--repair", "--no-progress")
    assert hash_tree(mine / "features.zarr") == before
    first = next((moved / "photographs").rglob("*.png"))
    pixels = np.asarray(Image.open(first)).copy()
    pixels[10:40] = 0
    Image.fromarray(pixels).save(first)
    for table in ("manifest.parquet", "windows.parquet"):
        flip(mine / table, 2)
        message = invoke("verify", mine, "--repair", "--no-progress", code=1).output
        assert "cannot be repaired alone" in message
        assert hash_tree(mine / "features.zarr") == before
    # as the message says
    invoke("extract", mine, "--no-progress")
    assert hash_tree(mine / "features.zarr") != before
    invoke("verify", mine, "--no-progress")


def test_settings_edited_by_hand_stay_so(run: Path, invoke: Invoke) -> None:
    file, copy = run / "run.yaml", run / "state/run.yaml"
    text = "".join(file.read_text().splitlines(keepends=True)[:-1])
    file.write_text(f"# mine\n{text}".replace("epochs: 3", "epochs: 4"))
    assert "all as written" in invoke("verify", run).output
    flip(run / "em.zarr/zarr.json", 5)
    invoke("verify", run, "--repair", "--no-progress")
    assert "epochs: 4" in file.read_text()
    assert "# checksum" in file.read_text()
    assert copy.read_bytes() == file.read_bytes()


def test_a_lost_run_yaml_is_named_by_every_command(run: Path, invoke: Invoke) -> None:
    text = (run / "run.yaml").read_bytes()
    (run / "run.yaml").unlink()
    for command in ("status", "extract", "em"):
        message = invoke(command, run, code=1).output
        assert "run.yaml is gone" in message, command
        assert "--repair` restores it" in message, command
    invoke("verify", run, "--repair", "--no-progress")
    assert (run / "run.yaml").read_bytes() == text


def test_a_fit_that_was_stopped_before_its_end_is_no_damage(
    run: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(store: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.storage.arrays.consolidate", stop)
    invoke("em", run, "--name", "k4", "--classes", 4, *FAST_EM, "--no-progress", code=None)
    monkeypatch.undo()
    assert (run / "em.zarr/k4").is_dir()
    assert "all as written" in invoke("verify", run).output
    invoke("em", run, "--name", "k4", "--no-progress")
    assert "all as written" in invoke("verify", run).output
