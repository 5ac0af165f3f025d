"""Nothing is mixed: tables and arrays, a stage and what it reads, an owner and its successor."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.run import manifest
from pipeline.run.directory import RunDirectory
from pipeline.storage import locks
from stages.masks.stage import Masks
from tests.end_to_end.conftest import Invoke, draw_scene, hash_tree
from tests.end_to_end.test_staleness import make_run, read_status


@pytest.fixture
def run(invoke: Invoke, tmp_path: Path) -> Path:
    """A finished run of six scenes of its own, in two shards."""
    return make_run(tmp_path, invoke)


def change_image(folder: Path, seed: int) -> None:
    image = folder / "data/photographs/part 0/scene 0.png"
    Image.fromarray(draw_scene(seed, 130, 100)[0]).save(image)


def test_tables_that_are_written_again_are_in_the_ledger(
    run: Path, invoke: Invoke, tmp_path: Path
) -> None:
    image = tmp_path / "data/photographs/part 0/scene 0.png"
    content = image.read_bytes()
    image.unlink()
    image.write_bytes(content)
    before = (run / "manifest.parquet").read_bytes()
    assert "nothing to do" in invoke("extract", run, "--no-progress").output
    assert (run / "manifest.parquet").read_bytes() != before
    assert "all as written" in invoke("verify", run).output
    assert "nothing to do" in invoke("masks", run, "--no-progress").output


def test_tables_of_which_one_is_new_are_not_read(
    run: Path, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image more, the first of all: every row of both tables moves."""
    (tmp_path / "data/photographs/a broken one.png").write_bytes(b"\x89PNG")
    write, calls = manifest.write_changed, []

    def die_at_the_second(path: Path, content: bytes) -> Any:
        calls.append(path.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write_changed", die_at_the_second)
        invoke("extract", run, "--no-progress", code=130)
    assert calls == ["manifest.parquet", "windows.parquet"]
    assert read_status(run, invoke)["extract"][0] == "incomplete"
    message = invoke("masks", run, "--threshold", 0.35, "--no-progress", code=1).output
    assert "extract is incomplete" in message
    for stage in ("extract", "masks", "em", "evaluate"):
        invoke(stage, run, "--no-progress")
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    shutil.copytree(tmp_path / "data", fresh / "data")
    invoke("verify", run)
    other = make_run_again(fresh, invoke)
    assert hash_tree(run / "masks.zarr") == hash_tree(other / "masks.zarr")


def make_run_again(folder: Path, invoke: Invoke) -> Path:
    run = folder / "run"
    options = ["--root", folder / "data/photographs", "--dataset", "folder", "--size", 32]
    options += ["--backbone", "handcrafted", "--shard-size", 6, "--no-progress"]
    invoke("extract", run, *options)
    invoke("masks", run, "--crf", "none", "--no-progress")
    return run


def test_a_lost_shard_is_not_read_as_zeros(run: Path, invoke: Invoke) -> None:
    shutil.rmtree(run / "features.zarr/clean/c/1")
    state, reason = read_status(run, invoke)["extract"]
    assert state == "incomplete"
    assert "features.zarr/clean/c/1/0/0/0 is gone" in reason
    for stage in ("evaluate", "em", "masks"):
        message = invoke(stage, run, "--force", "--no-progress", code=1).output
        assert "is gone or was never written" in message, stage
    invoke("extract", run, "--no-progress")
    invoke("masks", run, "--force", "--no-progress")


def run_beside(
    monkeypatch: pytest.MonkeyPatch, shard: int, act: Callable[[], None], *, before: bool
) -> None:
    """Do something while masks computes a shard."""
    compute = Masks.compute

    def compute_and_act(
        self: Masks, run: RunDirectory, settings: Any, number: int
    ) -> dict[str, Any]:
        if number == shard and before:
            act()
        result = compute(self, run, settings, number)
        if number == shard and not before:
            act()
        return result

    monkeypatch.setattr(Masks, "compute", compute_and_act)


def test_what_a_stage_reads_may_not_change_beside_it(
    run: Path, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def extract_another() -> None:
        change_image(tmp_path, 77)
        invoke("extract", run, "--no-progress")

    with monkeypatch.context() as patch:
        run_beside(patch, 0, extract_another, before=False)
        message = invoke("masks", run, "--force", "--no-progress", code=1).output
    assert "extract in" in message
    assert "has changed while masks was computed from it" in message
    assert read_status(run, invoke)["masks"][0] != "fresh"
    invoke("masks", run, "--no-progress")
    assert read_status(run, invoke)["masks"][0] == "fresh"


def test_an_owner_that_lost_its_lock_writes_nothing(
    run: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_over() -> None:
        for claim in (run / "state/locks").glob("masks~*"):
            claim.unlink()

    before = hash_tree(run / "masks.zarr")
    monkeypatch.setattr(locks, "ASK_S", 0.0)
    with monkeypatch.context() as patch:
        run_beside(patch, 0, take_over, before=True)
        message = invoke("masks", run, "--threshold", 0.9, "--no-progress", code=1).output
    assert "another process has taken over masks" in message
    after = hash_tree(run / "masks.zarr")
    changed = {name for name in before if before[name] != after[name]}
    assert not [name for name in changed if "/c/" in name]
