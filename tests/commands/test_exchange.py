"""export and predict: what is handed on, and what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.run.directory import RunDirectory
from tests.commands.conftest import Call
from workflows import export, prediction
from workflows.export import job


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
