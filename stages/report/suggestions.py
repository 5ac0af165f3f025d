"""What to try next: a few commands, chosen by what an evaluation came to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.run.directory import RunDirectory
from pipeline.run.subject import Subject
from pipeline.wording import count_of
from stages.clustering import UNUSED

# A fit with so much more classes is another view of the same images, and not the same again.
_MORE = 1.5


def suggest_steps(
    run: RunDirectory, subject: Subject, metrics: Mapping[str, Any], *, named: bool
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Suggest what to try next."""
    begin, classes = "primaps-pipe", int(metrics["classes"])
    steps: list[tuple[str, tuple[str, ...]]] = []
    if metrics["accuracy"] is None and not named:
        file = run.names_file(subject.title)
        text = f"Name the clusters in {file}, a line such as 7: water for each, and show them so"
        steps.append((text, (f"{begin} evaluate {run.quoted}{subject.options}",)))
    if subject.kind == "em":
        dead = sum(share < 100 * UNUSED for share in metrics["class_usage"])
        fewer = 0 < dead < classes - 1
        other = classes - dead if fewer else min(max(classes + 1, round(_MORE * classes)), 255)
        why = (
            f"{count_of(dead, 'clusters')} hardly used: fit fewer" if fewer else "Fit more classes"
        )
        name = f"k{other}"
        steps.append(
            (
                f"{why}, and look at both side by side; it costs only the fit",
                (
                    f"{begin} em {run.quoted} --classes {other} --name {name}",
                    f"{begin} evaluate {run.quoted} --em {name}",
                    f"{begin} compare {run.quoted} --em {subject.name} --em {name}",
                ),
            )
        )
    steps.append(
        (
            "Train on the labels: export --help lists the formats",
            (f"{begin} export {run.quoted}{subject.options} --format mmseg --out training",),
        )
    )
    return tuple(steps)
