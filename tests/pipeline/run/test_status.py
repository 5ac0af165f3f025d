"""A stage that nobody but its registry knows: status, verify and repair read what it declares."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from pipeline.compute.scheduler import Execution
from pipeline.errors import UsageError
from pipeline.progress import Counter, Screen
from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import Condition, StageRecord
from pipeline.run.runner import run_named
from pipeline.run.stage import Plan, ShardPlan, Stage, Stages
from pipeline.run.status import (
    WEIGHTS,
    _check_weights,
    describe_file,
    describe_row,
    inspect_run,
)
from pipeline.run.verification import Damage, repair_run, verify_run
from pipeline.settings import StageSettings, setting
from pipeline.storage.arrays import ArraySpec, prepare_arrays, write_shard
from pipeline.storage.files import fingerprint, write_bytes

HERE = __name__
STAGES = Stages(
    "stage", "nobody.stages", {"paint": f"{HERE}:PaintSettings", "frame": f"{HERE}:FrameSettings"}
)


class PaintSettings(StageSettings):
    stage_class: ClassVar[str] = f"{HERE}:Paint"
    coats: int = setting(2, "how many coats")

    @classmethod
    def list_artefacts(cls, name: str) -> list[str]:
        return ["canvas.zarr", "sketch"]


class FrameSettings(PaintSettings):
    optional: ClassVar[bool] = True


class Paint(Stage[PaintSettings]):
    name: ClassVar[str] = "paint"
    unit: ClassVar[str] = "rows"
    settings_class = PaintSettings

    def plan(self, run: RunDirectory, settings: PaintSettings, screen: Screen) -> Plan:
        return Plan([ShardPlan(fingerprint(settings.coats, shard), 2) for shard in range(2)])

    def prepare(self, run: RunDirectory, settings: PaintSettings, plan: Plan) -> None:
        spec = ArraySpec((1,), ("row", "colour"), "int16", compress=False)
        prepare_arrays(run.path / "canvas.zarr", {"colours": spec}, 4, 2, {"coats": settings.coats})

    def compute(self, run: RunDirectory, settings: PaintSettings, shard: int) -> dict[str, Any]:
        block = np.full((2, 1), settings.coats + shard, np.int16)
        write_shard(run.path / "canvas.zarr", {"colours": block}, shard, 2)
        if shard == 0:
            write_bytes(run.path / "sketch", b"a pencil was here")
        return {}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run_named(STAGES, "paint", run, PaintSettings(), Execution(), Screen(progress=False))
    return run


def look(run: RunDirectory) -> Condition:
    (row,) = inspect_run(run, STAGES)
    return row


def verify(run: RunDirectory) -> tuple[Damage, ...]:
    return verify_run(run, lambda total: Counter()).damages


def test_a_row_says_what_it_takes(run: RunDirectory) -> None:
    row = look(run)
    files = [path for path in (run.path / "canvas.zarr").rglob("*") if path.is_file()]
    assert row.bytes == sum(path.stat().st_size for path in files) + len(b"a pencil was here")
    assert describe_row(row)["state"] == "fresh" and describe_row(row)["stage"] == "paint"


@pytest.mark.parametrize(
    ("artefact", "reason"),
    [
        ("sketch", "sketch is gone; the same"),
        ("canvas.zarr/colours/c/1/0", "c/1/0 is gone or"),
    ],
)
def test_what_is_gone_is_named(run: RunDirectory, artefact: str, reason: str) -> None:
    (run.path / artefact).unlink()
    condition = look(run)
    assert condition.state == "incomplete" and reason in condition.reason


@pytest.mark.parametrize("file", ["sketch", "canvas.zarr/colours/c/1/0", "canvas.zarr/zarr.json"])
def test_what_is_damaged_is_made_again(run: RunDirectory, file: str) -> None:
    whole = (run.path / file).read_bytes()
    assert verify(run) == ()
    (run.path / file).write_bytes(whole[:-3] + b"???")
    damages = verify(run)
    assert [damage.file for damage in damages] == [file]
    repair_run(run, STAGES, damages, Execution(), Screen(progress=False))
    assert verify(run) == ()
    assert (run.path / file).read_bytes() == whole


def test_a_stage_that_nobody_knows_has_no_row_and_one_sentence(run: RunDirectory) -> None:
    fewer = Stages("stage", "nobody.stages", {"frame": f"{HERE}:FrameSettings"})
    assert inspect_run(run, fewer) == []
    assert fewer.list_artefacts("paint") == []
    with pytest.raises(UsageError, match="unknown stage 'paint'"):
        fewer.load("paint")


def test_a_file_of_parts_changes_with_each(tmp_path: Path) -> None:
    index, shard = tmp_path / "model.safetensors.index.json", tmp_path / "model-1.safetensors"
    index.write_text("{}")
    shard.write_bytes(b"x")
    described = describe_file(index, [shard])
    record = StageRecord.__new__(StageRecord)
    object.__setattr__(record, "sources", {WEIGHTS: described})
    assert _check_weights(record) == ""
    shard.write_bytes(b"yy")
    assert _check_weights(record) == f"the weights {index} have changed"
    object.__setattr__(record, "sources", {WEIGHTS: describe_file(index)})
    assert _check_weights(record) == "", "as an earlier version noted it"
