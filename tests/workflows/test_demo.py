"""The demo goes on without weights, and says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.compute.scheduler import Execution
from pipeline.errors import WeightsError
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.settings import StageSettings
from workflows import demo


def test_offline_it_goes_on_handcrafted_and_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backbones = []

    def run_recipe(run: RunDirectory, settings: dict[str, StageSettings], *_: Any) -> Path:
        backbones.append(settings["extract"].model_dump()["backbone"])
        if len(backbones) == 1:
            raise WeightsError("no source answers.")
        return run.path / "report" / "index.html"

    monkeypatch.setattr(demo, "run_recipe", run_recipe)
    report = demo.run_demo(RunDirectory(tmp_path / "run"), Execution(), Screen())
    assert backbones == ["vit_small_patch14_dinov2.lvd142m", "handcrafted"]
    assert report.name == "index.html"
    screen = capsys.readouterr().err
    assert "no source answers" in screen
    assert "hand-crafted" in screen
