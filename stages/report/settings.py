"""Settings of the report."""

from __future__ import annotations

from typing import ClassVar

from pipeline.run.directory import suffixed
from pipeline.run.stage import SubjectSettings
from pipeline.settings import execution_setting, setting


class ReportSettings(SubjectSettings):
    """What the report shows of an evaluation; the verb ``evaluate`` makes both."""

    version: ClassVar[int] = 1
    stage_class: ClassVar[str] = "stages.report.stage:Report"
    follows: ClassVar[str] = "evaluate"

    gallery: int = setting(
        12,
        "images of each split that the report shows: the worst, the best and an even sample; with "
        "0 it shows no cut-outs of the clusters either",
        ge=0,
    )
    device: str = execution_setting("auto", "auto, cpu, cuda or cuda:N")

    @classmethod
    def list_artefacts(cls, name: str) -> list[str]:
        """Return one page."""
        return [f"{suffixed('report', name)}/index.html"]
