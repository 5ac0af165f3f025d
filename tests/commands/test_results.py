"""status, inspect, compare: tables, and what is handed on."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from commands import results
from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import Condition
from tests.commands.conftest import Call
from workflows import export, prediction
from workflows.export import job


def test_status_is_a_table(call: Call, finished: Path) -> None:
    result = call("status", finished)
    assert result.exit_code == 0
    title, *rows = [line.split() for line in result.output.splitlines()]
    assert title == ["stage", "state", "shards", "size", "time", "CRF"]
    assert [row[:2] for row in rows] == [
        ["extract", "fresh"],
        ["masks", "fresh"],
        ["em/default", "fresh"],
        ["evaluate/default", "fresh"],
        ["report/default", "fresh"],
    ]
    assert all(re.fullmatch(r"\d+/\d+", row[2]) for row in rows)
    assert max(map(len, result.output.splitlines())) <= 80
    assert "\x1b" not in result.output


def test_status_for_programs(call: Call, finished: Path) -> None:
    rows = json.loads(call("status", finished, "--json").output)
    assert [row["stage"] for row in rows] == [
        *("extract", "masks", "em/default", "evaluate/default", "report/default")
    ]
    names = {
        *("stage", "state", "shards_done", "shards_total"),
        *("bytes", "seconds", "crf", "reason"),
    }
    assert all(set(row) == names for row in rows)


def test_a_store_without_locks_has_a_row_of_its_own(
    call: Call, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunDirectory, "describe_store", lambda _: "one command at a time")
    *rows, last = json.loads(call("status", finished, "--json").output)
    assert (last["stage"], last["state"]) == ("store", "warning")
    assert last["reason"] == "one command at a time" and set(last) == set(rows[0])


REASON = "its photographs have changed: a very long name of a file.png is new, and 12 more of them"


@pytest.fixture
def rows() -> list[Condition]:
    """Return one row of every state."""
    return [
        Condition("extract", "fresh", 3, 3, 61.0, bytes=1_420_000_000),
        Condition("masks", "stale", 2, 3, 1.0, REASON, bytes=10),
        Condition("em/fresh", "missing", 0, 0, 0.0, bytes=0),
    ]


def test_why_a_stage_is_stale_is_one_line_when_piped(
    rows: list[Condition], capsys: pytest.CaptureFixture[str]
) -> None:
    results.print_status(rows, RunDirectory(Path("my run")))
    lines = capsys.readouterr().out.splitlines()
    assert f"    {REASON}" in lines
    assert lines[-1] == "next: primaps-pipe masks 'my run'"


def test_why_a_stage_is_stale_wraps_in_a_terminal_and_states_have_colours(
    rows: list[Condition],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(results.click, "echo", print)
    results.print_status(rows, RunDirectory(Path("my run")))
    lines = capsys.readouterr().out.splitlines()
    plain = [re.sub(r"\x1b\[\d+m", "", line) for line in lines]
    assert max(map(len, plain)) <= 60
    assert " ".join(line.strip() for line in plain[3:5]) == REASON
    assert "\x1b[33mstale\x1b[0m" in lines[2]
    assert lines[-2].startswith("em/fresh")
    assert "\x1b[90mmissing\x1b[0m" in lines[-2]


def test_a_comparison_takes_every_run_with_every_name(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from stages.report import comparison

    seen: dict[str, Any] = {}

    def compare_runs(subjects: Any, out: Path, *, images: int, screen: Any) -> Path:
        seen.update(subjects=subjects, out=out, images=images)
        return out

    monkeypatch.setattr(comparison, "compare_runs", compare_runs)
    a, b = RunDirectory(Path("a")), RunDirectory(Path("b"))
    out = tmp_path / "page.html"
    result = call("compare", "a", "b", "--em", "x", "--head", "y", "--images", 3, "--out", out)
    assert result.exit_code == 0, result.output
    names = [("x", None), (None, "y")]
    assert seen["subjects"] == [(run, *name) for run in (a, b) for name in names]
    assert (seen["out"], seen["images"]) == (out, 3)
    assert str(out) in result.stdout
    assert call("compare", "a", "b").exit_code == 0
    assert seen["subjects"] == [(a, None, None), (b, None, None)]


def test_one_run_alone_is_no_comparison(call: Call) -> None:
    result = call("compare", "a")
    assert result.exit_code == 2
    assert "two runs or more" in result.output


def test_inspect_writes_one_picture(call: Call, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "picture.png"
    result = call("inspect", finished, "part 0/scene 0", "--out", out)
    assert result.exit_code == 0, result.output
    assert out.read_bytes().startswith(b"\x89PNG")
    assert result.stdout.strip() == str(out)


def test_inspect_names_the_picture_after_the_image(
    call: Call, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("inspect", finished, "part 0/scene 0", "--json")
    assert result.exit_code == 0, result.output
    done = json.loads(result.stdout.splitlines()[-1])
    assert Path(done["results"]["picture"]).name == "scene 0-inspect.png"
    assert (tmp_path / "scene 0-inspect.png").is_file()


def test_verify_counts_and_repairs(call: Call, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    result = call("verify", run, "--no-progress")
    assert result.exit_code == 0
    assert re.fullmatch(r"\d+ files, [\d.]+ [kM]B: all as written", result.output.strip())
    label = next((run / "labels").rglob("*.png"))
    label.write_bytes(b"")
    assert call("verify", run, "--no-progress").exit_code == 1
    assert call("verify", run, "--repair", "--no-progress").exit_code == 0


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what the functions behind the verbs were called with."""
    calls: dict[str, Any] = {}

    def note(*values: Any, **named: Any) -> list[str]:
        calls.update(values=values, **named)
        return ["one line", "another"]

    monkeypatch.setattr(job, "export_run", note)
    monkeypatch.setattr(prediction, "predict_folder", note)
    return calls


def test_export_hands_everything_on(call: Call, seen: dict[str, Any]) -> None:
    options = ("--em", "k12", "--split", "train", "--split", "val", "--ids", "clusters")
    result = call("export", "a", "--format", "mmseg", "--out", "o", *options, "--images", "link")
    assert result.exit_code == 0, result.output
    assert result.stdout == "one line\nanother\n"
    assert seen["values"] == (RunDirectory(Path("a")), "mmseg", Path("o"))
    del seen["values"], seen["screen"]
    assert seen == {
        "em": "k12",
        "head": None,
        "splits": ("train", "val"),
        "ids": "clusters",
        "images": "link",
        "min_confidence": 0.0,
    }


def test_every_format_has_a_line_in_the_help(call: Call) -> None:
    text = " ".join(call("export", "--help").output.split())
    assert all(f"{name} {line}" in text for name, line in export.LINES.items())


def test_predict_hands_everything_on(call: Call, seen: dict[str, Any]) -> None:
    files = ("--prototypes", "p.safetensors", "--out", "o", "--weights", "w.pth")
    result = call("predict", "photos", *files, "--crf", "none", "--batch-size", 4)
    assert result.exit_code == 0, result.output
    assert seen["values"] == (Path("photos"), Path("p.safetensors"), Path("o"))
    assert (seen["weights"], seen["crf"]) == (Path("w.pth"), "none")
    assert (seen["device"], seen["batch_size"]) == ("auto", 4)
