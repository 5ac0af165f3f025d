"""One way in which stages are run: what is missing or stale is computed, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from pipeline.compute.scheduler import Done, Execution, announce
from pipeline.errors import ImageError, PipelineError, RunError, ShardError, StaleError
from pipeline.progress import Screen
from pipeline.run import runner
from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import Ledger, ShardRecord, inspect_stage, read_record, require_fresh
from pipeline.run.runner import _describe_device, run_stage
from pipeline.run.stage import Plan, ShardPlan, Stage
from pipeline.settings import StageSettings, execution_setting, setting
from pipeline.storage.arrays import ArraySpec, open_arrays, prepare_arrays, write_shard
from pipeline.storage.files import fingerprint

ROWS = 2
SQUARES = ArraySpec((2,), ("row", "column"), "int64", compress=True, fill=-1)
DOUBLES = ArraySpec((2,), ("row", "column"), "int64", compress=True, fill=-1)


class SquareSettings(StageSettings):
    """Settings of `Square`."""

    length: int = setting(5, "rows", ge=1)
    power: int = setting(2, "power")
    note: str = setting("", "changes no shard")
    speed: int = execution_setting(1, "changes nothing")
    device: str = execution_setting("cpu", "where")


class Trouble:
    """What goes wrong in a test, and what was called; classes, as instances hold no state."""

    calls: ClassVar[list[Any]] = []
    on_shard: ClassVar[dict[int, BaseException]] = {}
    before_write: ClassVar[dict[int, BaseException]] = {}
    on_finish: ClassVar[list[BaseException]] = []
    redo: ClassVar[frozenset[int]] = frozenset()
    why: ClassVar[str] = ""
    version: ClassVar[int] = 1


class Square(Stage[SquareSettings]):
    """Rows of powers, two rows per shard."""

    name: ClassVar[str] = "square"
    unit: ClassVar[str] = "rows"
    settings_class = SquareSettings

    @property
    def version(self) -> int:
        return Trouble.version

    def plan(self, run: RunDirectory, settings: SquareSettings, screen: Screen) -> Plan:
        shards = [
            ShardPlan(
                fingerprint(settings.power, self.version, min(ROWS, settings.length - start)),
                min(ROWS, settings.length - start),
            )
            for start in range(0, settings.length, ROWS)
        ]
        again = {"redo": Trouble.redo, "why": Trouble.why}
        return Plan(shards, {"grid": [2, 2]}, **again, payload=settings.length)  # type: ignore[arg-type]

    def prepare(self, run: RunDirectory, settings: SquareSettings, plan: Plan) -> None:
        Trouble.calls.append("prepare")
        prepare_arrays(run.features, {"squares": SQUARES}, plan.payload, ROWS, {})

    def compute(self, run: RunDirectory, settings: SquareSettings, shard: int) -> dict[str, Any]:
        Trouble.calls.append(shard)
        assert Ledger(run.state("square")).read_shard(shard) is None
        if shard in Trouble.before_write:
            raise Trouble.before_write[shard]
        start, stop = shard * ROWS, min((shard + 1) * ROWS, settings.length)
        block = np.repeat(np.arange(start, stop)[:, None] ** settings.power, 2, axis=1)
        write_shard(run.features, {"squares": block}, shard, ROWS)
        announce(advance=len(block), say=f"shard {shard}")
        if shard in Trouble.on_shard:
            raise Trouble.on_shard[shard]
        return {"sum": int(block.sum())}

    def finish(
        self,
        run: RunDirectory,
        settings: SquareSettings,
        records: dict[int, ShardRecord],
        screen: Screen,
    ) -> list[str]:
        Trouble.calls.append("finish")
        if Trouble.on_finish:
            raise Trouble.on_finish[0]
        return [f"sum {sum(record.result['sum'] for record in records.values())}"]


class Double(Stage[StageSettings]):
    """Twice what `Square` wrote, shard by shard."""

    name: ClassVar[str] = "double"
    unit: ClassVar[str] = "rows"
    settings_class = StageSettings

    def inputs(self, run: RunDirectory, settings: StageSettings) -> list[str]:
        return ["square"]

    def plan(self, run: RunDirectory, settings: StageSettings, screen: Screen) -> Plan:
        prints = read_record(run, "square").shards
        return Plan([ShardPlan(fingerprint("double", print_), ROWS) for print_ in prints])

    def prepare(self, run: RunDirectory, settings: StageSettings, plan: Plan) -> None:
        length = open_arrays(run.features, ["squares"])["squares"].shape[0]
        prepare_arrays(run.masks, {"doubles": DOUBLES}, length, ROWS, {})

    def compute(self, run: RunDirectory, settings: StageSettings, shard: int) -> dict[str, Any]:
        Trouble.calls.append(("double", shard))
        rows = slice(shard * ROWS, (shard + 1) * ROWS)
        block = 2 * np.asarray(open_arrays(run.features, ["squares"])["squares"][rows])
        write_shard(run.masks, {"doubles": block}, shard, ROWS)
        return {}


@pytest.fixture(autouse=True)
def _no_trouble() -> None:
    Trouble.calls, Trouble.on_shard, Trouble.before_write = [], {}, {}
    Trouble.on_finish, Trouble.redo, Trouble.why, Trouble.version = [], frozenset(), "", 1


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def square(run: RunDirectory, *, execution: Execution | None = None, **settings: Any) -> list[Any]:
    """Run `Square` and return what was called."""
    Trouble.calls.clear()
    chosen = SquareSettings(**settings)
    run_stage(Square(), run, chosen, execution or Execution(), Screen(progress=False))
    return list(Trouble.calls)


def double(run: RunDirectory) -> list[Any]:
    Trouble.calls.clear()
    run_stage(Double(), run, StageSettings(), Execution(), Screen(progress=False))
    return list(Trouble.calls)


def squares(run: RunDirectory) -> list[int]:
    array = np.asarray(open_arrays(run.features, ["squares"])["squares"][...])
    assert (array[:, 0] == array[:, 1]).all()
    return array[:, 0].tolist()


def files(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_a_first_run_computes_all_shards(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert square(run) == ["prepare", 0, 1, 2, "finish"]
    assert squares(run) == [0, 1, 4, 9, 16]
    record = read_record(run, "square")
    assert record.finished
    assert record.settings == {"length": 5, "power": 2, "note": ""}
    assert run.read_settings("square") == {
        "length": 5,
        "power": 2,
        "note": "",
        "speed": 1,
        "device": "cpu",
    }
    records = Ledger(run.state("square")).read_shards()
    assert [(r.items, r.result) for r in records.values()] == [
        (2, {"sum": 2}),
        (2, {"sum": 26}),
        (1, {"sum": 32}),
    ]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "square: 3 of 3 shards to compute (5 rows in all)",
        "sum 60",
    ]


def test_a_second_run_touches_no_file(run: RunDirectory) -> None:
    square(run)
    before = files(run.path)
    assert square(run) == ["prepare"]
    assert files(run.path) == before


def test_execution_settings_recompute_nothing(run: RunDirectory) -> None:
    square(run)
    assert square(run, speed=9) == ["prepare"]
    assert run.read_settings("square")["speed"] == 9


def test_missing_shards_alone_are_computed(run: RunDirectory) -> None:
    square(run)
    Ledger(run.state("square")).drop(1)
    assert square(run) == ["prepare", 1, "finish"]


def test_settings_make_shards_stale(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    square(run)
    capsys.readouterr()
    assert square(run, power=3) == ["prepare", 0, 1, 2, "finish"]
    assert squares(run) == [0, 1, 8, 27, 64]
    assert "square: 3 shards are stale: power 2 -> 3" in capsys.readouterr().err


def versions(**numbers: int) -> Any:
    """Stages as far as the ledger asks for them."""
    return {name: SimpleNamespace(version=number) for name, number in numbers.items()}


def test_a_version_makes_shards_stale(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    square(run)
    Trouble.version = 2
    condition = inspect_stage(run, "square", versions(square=2))
    assert (condition.state, condition.reason) == ("stale", "square is now version 2, was 1")
    capsys.readouterr()
    assert square(run) == ["prepare", 0, 1, 2, "finish"]
    assert "3 shards are stale: version 1 -> 2" in capsys.readouterr().err
    assert inspect_stage(run, "square", versions(square=2)).state == "fresh"


def test_more_rows_keep_whole_shards(run: RunDirectory) -> None:
    square(run)
    assert square(run, length=7) == ["prepare", 2, 3, "finish"]
    assert squares(run) == [0, 1, 4, 9, 16, 25, 36]


def test_shards_beyond_the_plan_are_dropped(run: RunDirectory) -> None:
    square(run, length=8)
    assert square(run, length=4) == ["prepare", "finish"]
    assert list(Ledger(run.state("square")).read_shards()) == [0, 1]
    assert squares(run) == [0, 1, 4, 9]
    assert require_fresh(run, "square").settings["length"] == 4
    assert square(run, length=8) == ["prepare", 2, 3, "finish"]
    assert squares(run) == [i * i for i in range(8)]


def test_force_computes_all(run: RunDirectory) -> None:
    square(run)
    assert square(run, execution=Execution(force=True)) == ["prepare", 0, 1, 2, "finish"]


def test_the_plan_may_ask_for_a_shard_again(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    square(run)
    Trouble.redo = frozenset({1})
    assert square(run) == ["prepare", 1, "finish"]
    assert "1 shard is stale: its input files have changed" in capsys.readouterr().err
    Trouble.why = "squares were rounded before"
    assert square(run) == ["prepare", 1, "finish"]
    assert "1 shard is stale: squares were rounded before" in capsys.readouterr().err
    assert square(run, note="x") == ["prepare", 1, "finish"]
    said = capsys.readouterr().err
    assert "1 shard is stale: note '' -> 'x'; squares were rounded before" in said


@pytest.mark.parametrize("force", [False, True])
def test_a_dry_run_writes_nothing(
    run: RunDirectory, force: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    dry = Execution(dry_run=True, force=force)
    assert square(run, execution=dry) == []
    assert not run.path.exists()
    square(run)
    before = files(run.path)
    capsys.readouterr()
    assert square(run, execution=dry, power=3, length=9) == []
    assert files(run.path) == before
    assert "square: 5 of 5 shards to compute (9 rows in all)" in capsys.readouterr().err


def test_a_failing_shard_leaves_the_others(run: RunDirectory) -> None:
    Trouble.on_shard = {1: ValueError("broken")}
    with pytest.raises(ShardError) as caught:
        square(run)
    assert str(caught.value) == (
        "square: 1 of 3 shards failed, the others are kept; shard 1: ValueError: broken"
    )
    assert Trouble.calls == ["prepare", 0, 1, 2]
    with pytest.raises(RunError, match="2 of 3 shards are finished"):
        require_fresh(run, "square")
    Trouble.on_shard = {}
    assert square(run) == ["prepare", 1, "finish"]
    assert squares(run) == [0, 1, 4, 9, 16]


def test_what_is_left_early_is_closed_at_once(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    def compute(*_: Any, **__: Any) -> Iterator[Done]:
        try:
            yield Done(0, error=RunError("the disk is full"))
            yield Done(1)
        finally:
            closed.append("closed")

    monkeypatch.setattr(runner, "compute_shards", compute)
    with pytest.raises(ShardError, match="the disk is full") as caught:
        square(run)
    assert closed == ["closed"], "although the error holds its frames"
    assert caught.value.__cause__ is not None


def test_a_lone_shard_raises_its_own_sentence(run: RunDirectory) -> None:
    Trouble.on_shard = {0: ImageError("too dark")}
    with pytest.raises(ImageError, match=r"^too dark$"):
        square(run, length=2)
    Trouble.on_shard = {0: KeyError("x")}
    with pytest.raises(ShardError, match="1 of 1 shard failed"):
        square(run, length=2)


def test_a_record_is_dropped_before_its_bytes_change(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # compute() asserts the same of every shard, those that --force computes again, too
    square(run)
    seen: list[list[int]] = []

    def look(self: Square, run: RunDirectory, settings: SquareSettings, plan: Plan) -> None:
        seen.append(list(Ledger(run.state("square")).read_shards()))
        record = Ledger(run.state("square")).read_stage()
        assert record is not None
        assert not record.finished
        prepare_arrays(run.features, {"squares": SQUARES}, plan.payload, ROWS, {})

    monkeypatch.setattr(Square, "prepare", look)
    square(run, length=7)
    square(run, power=3)
    square(run, power=3, execution=Execution(force=True))
    assert seen == [[0, 1], [], [0, 1, 2]]


def test_force_forgets_a_shard_as_its_computation_starts(run: RunDirectory) -> None:
    square(run)
    Trouble.on_shard = {1: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        square(run, execution=Execution(force=True))
    assert list(Ledger(run.state("square")).read_shards()) == [0, 2]
    assert inspect_stage(run, "square").state == "incomplete"
    Trouble.on_shard = {}
    assert square(run) == ["prepare", 1, "finish"]


@pytest.mark.parametrize(
    ("execution", "settings", "said"),
    [
        (Execution(scheduler="tcp://127.0.0.1:1"), {}, "no dask scheduler answers"),
        (Execution(scheduler="127.0.0.1"), {}, "no dask scheduler answers"),
        (Execution(), {"device": "cuda:77"}, "cuda"),
        (Execution(workers=2), {"device": "cuda:77"}, "cuda"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_what_cannot_be_run_forgets_nothing(
    run: RunDirectory, execution: Execution, settings: dict[str, Any], said: str, force: bool
) -> None:
    square(run)
    before = files(run.path)
    with pytest.raises(PipelineError, match=said):
        square(
            run,
            execution=replace(execution, force=force),
            power=2 if force else 3,
            **settings,
        )
    assert files(run.path) == before
    assert Trouble.calls == []
    assert inspect_stage(run, "square").state == "fresh"


def test_a_stage_of_one_that_is_incomplete_is_not_fresh(run: RunDirectory) -> None:
    square(run)
    double(run)
    Trouble.on_shard = {1: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        square(run, execution=Execution(force=True))
    condition = inspect_stage(run, "double")
    assert (condition.state, condition.reason) == ("stale", "square is incomplete")
    Trouble.on_shard = {}
    square(run)
    assert inspect_stage(run, "double").state == "fresh"
    assert double(run) == []
    Ledger(run.state("square")).drop(1)
    assert inspect_stage(run, "double").reason == "square is incomplete"


@pytest.mark.parametrize("place", ["before_write", "on_shard"])
@pytest.mark.parametrize("shard", [0, 1, 2])
def test_an_interrupted_run_goes_on(run: RunDirectory, place: str, shard: int) -> None:
    square(run, power=3)
    setattr(Trouble, place, {shard: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        square(run)
    assert inspect_stage(run, "square").done == shard
    setattr(Trouble, place, {})
    assert square(run) == ["prepare", *range(shard, 3), "finish"]
    assert squares(run) == [0, 1, 4, 9, 16]


def test_an_interrupted_run_may_go_back_to_the_old_settings(run: RunDirectory) -> None:
    square(run, power=3)
    Trouble.on_shard = {1: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        square(run, power=2)
    Trouble.on_shard = {}
    assert square(run, power=3) == ["prepare", 0, 1, 2, "finish"]
    assert squares(run) == [0, 1, 8, 27, 64]


def test_finish_runs_again_after_a_crash_before_its_end(run: RunDirectory) -> None:
    Trouble.on_finish = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        square(run)
    condition = inspect_stage(run, "square")
    assert (condition.state, condition.done, condition.total) == ("incomplete", 3, 3)
    with pytest.raises(RunError, match="square is incomplete"):
        require_fresh(run, "square")
    Trouble.on_finish = []
    assert square(run) == ["prepare", "finish"]
    require_fresh(run, "square")


def test_a_setting_that_changes_no_shard_is_recorded(run: RunDirectory) -> None:
    square(run)
    assert square(run, note="for the paper") == ["prepare", "finish"]
    assert require_fresh(run, "square").settings["note"] == "for the paper"
    assert square(run, note="for the paper") == ["prepare"]


def test_require_fresh_asks_for_a_run(run: RunDirectory) -> None:
    with pytest.raises(RunError, match=r"is no run directory"):
        require_fresh(run, "square")


@pytest.mark.parametrize(
    ("key", "command"),
    [("square", "square {run}"), ("em/k12", "em {run}")],
)
def test_require_fresh_says_what_was_not_run(run: RunDirectory, key: str, command: str) -> None:
    run.create()
    with pytest.raises(RunError) as caught:
        require_fresh(run, key)
    text = command.format(run=run.path)
    assert str(caught.value) == (
        f"{key} has not been run in {run.path}; run `primaps-pipe {text}` first."
    )
    with pytest.raises(RunError, match="has not been run"):
        read_record(run, key)


def test_a_stage_needs_its_inputs(run: RunDirectory) -> None:
    run.create()
    with pytest.raises(RunError, match="square has not been run"):
        double(run)
    Trouble.on_shard = {1: ValueError("broken")}
    with pytest.raises(PipelineError):
        square(run)
    with pytest.raises(RunError, match=r"square is incomplete .* 2 of 3 shards are finished; run"):
        double(run)
    assert run.keys() == ["square"]


def test_changed_inputs_make_stale(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    square(run)
    double(run)
    assert double(run) == []
    square(run, length=7)
    with pytest.raises(StaleError) as caught:
        require_fresh(run, "double")
    assert str(caught.value) == (
        f"double is stale in {run.path} (square has changed); "
        f"run `primaps-pipe double {run.path}` again."
    )
    capsys.readouterr()
    assert double(run) == [("double", 2), ("double", 3)]
    assert "1 shard is stale: square has changed" in capsys.readouterr().err
    doubles = np.asarray(open_arrays(run.masks, ["doubles"])["doubles"][:, 0])
    assert doubles.tolist() == [0, 2, 8, 18, 32, 50, 72]
    assert require_fresh(run, "double").inputs == {"square": read_record(run, "square").digest}


def test_staleness_is_found_upstream(run: RunDirectory) -> None:
    square(run)
    double(run)
    assert inspect_stage(run, "double", versions(square=1, double=1)).state == "fresh"
    assert (
        inspect_stage(run, "double", versions(square=2)).reason == "square is now version 2, was 1"
    )
    shutil.rmtree(run.state("square"))
    assert inspect_stage(run, "double").reason == "square is gone"
    assert inspect_stage(run, "square").state == "missing"


def test_inputs_that_change_no_shard_do_not_stay_stale(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(self: Double, run: RunDirectory, settings: StageSettings, screen: Screen) -> Plan:
        return Plan([ShardPlan("always the same", ROWS)])

    monkeypatch.setattr(Double, "plan", plan)
    square(run, length=2)
    double(run)
    square(run, length=2, power=3)
    assert inspect_stage(run, "double").state == "stale"
    double(run)
    assert inspect_stage(run, "double").state == "fresh"


def test_records_hold_plain_values(run: RunDirectory) -> None:
    square(run)
    record = read_record(run, "square")
    assert asdict(record)["facts"] == {"grid": [2, 2]}
    assert all(len(print_) == 32 for print_ in record.shards)


def test_progress_reaches_the_screen(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    run_stage(Square(), run, SquareSettings(), Execution(), Screen())
    assert "square: 5/5 rows, " in capsys.readouterr().err


def test_no_more_workers_are_named_than_there_are_shards() -> None:
    settings: Any = SimpleNamespace(device="cpu")
    words = [_describe_device(settings, Execution(workers=8), shards) for shards in (1, 2, 9)]
    assert words == ["1 worker on cpu", "2 workers on cpu", "8 workers on cpu"]
