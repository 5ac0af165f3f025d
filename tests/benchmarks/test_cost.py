"""The cost of larger runs, scaled from the figures of a small one."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.cost import SCALES, main, scale_costs
from pipeline.run.ledger import Condition


def test_figures_grow_with_the_images() -> None:
    rows = [
        Condition("extract", "fresh", 1, 1, seconds=36.0, bytes=1000),
        Condition("masks", "fresh", 1, 1, seconds=18.0, bytes=500),
    ]
    million = {cost.name: cost for cost in scale_costs(rows, images=100)}["1 M"]
    assert million.hours == pytest.approx({"extract": 100.0, "masks": 50.0})
    assert million.disk == pytest.approx(15e6)
    assert len(SCALES) == 4


def test_a_run_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("format: 2\nstages: {}\n")
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert result.exit_code == 1
    assert "not finished" in result.output
