"""Settings of the report."""

from __future__ import annotations

from typing import ClassVar

from pipeline.run.directory import suffixed
from pipeline.run.subject import Subject, name_subject
from pipeline.settings import StageSettings, execution_setting, setting


class ReportSettings(StageSettings):
    """What the report shows of an evaluation; the verb ``evaluate`` makes both."""

    version: ClassVar[int] = 1
    stage_class: ClassVar[str] = "stages.report.stage:Report"
    follows: ClassVar[str] = "evaluate"

    em: str | None = setting(
        None, "name of the fit; `default`, or the only one there is, when not given"
    )
    head: str | None = setting(
        None, "name of a head whose cluster probe is evaluated, instead of a fit"
    )
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

    @property
    def subject(self) -> Subject:
        """Return the fit or head whose evaluation is shown; one of them has to be named."""
        return name_subject(self.em, self.head)
