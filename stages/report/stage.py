"""The report stage: what was evaluated -> one page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pipeline.compute.devices import resolve_device
from pipeline.compute.scheduler import announce
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory, choose_subject
from pipeline.run.evaluation import Evaluation, read_given_names
from pipeline.run.ledger import Ledger, ShardRecord, read_record
from pipeline.run.stage import Plan, ShardPlan, SubjectStage
from pipeline.run.status import NAMES
from pipeline.storage.files import fingerprint, write_text
from stages.report.settings import ReportSettings
from stages.scores import describe_labels, describe_metrics


class Report(SubjectStage[ReportSettings]):
    """An evaluation, and what it was made from -> ``report/index.html``."""

    name: ClassVar[str] = "report"
    unit: ClassVar[str] = "pages"
    verb: ClassVar[str] = "evaluate"
    settings_class = ReportSettings

    def inputs(self, run: RunDirectory, settings: ReportSettings) -> list[str]:
        """Return the evaluation, and the fit or head that it is one of."""
        return [f"evaluate/{settings.subject.title}", settings.subject.key]

    def resolve(self, run: RunDirectory, settings: ReportSettings) -> ReportSettings:
        """Name the fit."""
        subject = choose_subject(run.require(), settings.em, settings.head)
        return settings.replace(em=subject.name if subject.kind == "em" else None)

    def plan(self, run: RunDirectory, settings: ReportSettings, screen: Screen) -> Plan:
        """Plan the page, which is one shard: made from an evaluation and the names of clusters."""
        evaluate, made = self.inputs(run, settings)
        digests = {key: read_record(run, key).digest for key in (evaluate, made)}
        title = settings.subject.title
        given = read_given_names(run, title)
        names = {str(cluster): given[cluster] for cluster in sorted(given)}
        print_ = fingerprint(
            self.name, self.version, settings.output_settings(), list(digests.values()), names
        )
        old = Ledger(run.state(self.key(settings))).read_stage()
        if old is not None:
            again = old.shards != [print_] or not _page(run, settings).exists()
            if again and old.inputs.get(evaluate) == digests[evaluate]:
                # an evaluation that is passed over does not say its scores itself
                evaluation = Evaluation(run, settings.subject, read_record(run, evaluate))
                for line in describe_labels(evaluation.metrics):
                    screen.warn(line)
                for line in describe_metrics(evaluation.metrics):
                    screen.note(line)
        words = {NAMES: "names of the clusters"}
        return Plan([ShardPlan(print_, 1)], {NAMES: names}, words)

    def shares_work(self, settings: ReportSettings) -> bool:
        """Draw the page in this process: it takes all cores itself."""
        return True

    def prepare(self, run: RunDirectory, settings: ReportSettings, plan: Plan) -> None:
        """Allocate nothing: the page is written in one go."""

    def compute(self, run: RunDirectory, settings: ReportSettings, shard: int) -> dict[str, Any]:
        """Draw the page and write it."""
        # a finished report is passed over without matplotlib
        from stages.report.content import build_content
        from stages.report.page import fit_page, render_report

        content = build_content(run, settings)
        write_text(_page(run, settings), fit_page(content, render_report))
        announce(advance=1)
        return {"device": resolve_device(settings.device).type}

    def finish(
        self,
        run: RunDirectory,
        settings: ReportSettings,
        records: dict[int, ShardRecord],
        screen: Screen,
    ) -> list[str]:
        """Say where the page is."""
        return [f"{self.verb}: report in {_page(run, settings)}"]


def _page(run: RunDirectory, settings: ReportSettings) -> Path:
    return run.report(settings.subject.title) / "index.html"
