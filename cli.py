"""The command line: a table of contents. Each verb is in ``commands``, imported when called."""

from __future__ import annotations

# first of all: a signal that comes while the rest is loaded ends the program without a traceback
from pipeline.compute import signals  # noqa: F401  # isort: skip

import click

from commands.verbs import CONTEXT, Contents

CONTENTS = {
    "Stages, in their order": {
        "extract": ("commands.stages", "images -> features of a frozen ViT"),
        "masks": ("commands.stages", "features -> principal mask proposals"),
        "head": ("commands.stages", "optional: a STEGO or HP head on the features"),
        "em": ("commands.stages", "features and proposals -> class prototypes"),
        "evaluate": ("commands.stages", "prototypes -> label PNGs, metrics, report"),
    },
    "All stages at once": {
        "demo": ("commands.stages", "on photographs that come with the install"),
        "run": ("commands.stages", "from a recipe"),
    },
    "What came out": {
        "status": ("commands.results", "how every stage of a run stands"),
        "inspect": ("commands.results", "what every stage made of one image, as PNG"),
        "review": ("commands.results", "name clusters and correct labels, on a local page"),
        "compare": ("commands.results", "runs or fits side by side, on one page"),
        "select": ("commands.results", "which images or proposals to label first"),
        "score": ("commands.results", "score anybody's label maps"),
        "verify": ("commands.results", "check, and repair, every file of a run"),
    },
    "In and out": {
        "export": ("commands.results", "labels in a format that others read"),
        "correct": ("commands.results", "take up what a person corrected elsewhere"),
        "predict": ("commands.results", "label new images, without a run"),
        "completion": ("commands.results", "complete names in your shell"),
    },
}


@click.group(cls=Contents, sections=CONTENTS, context_settings=CONTEXT)
@click.version_option(package_name="primaps-pipe")
def main() -> None:
    """From a folder of unlabelled photographs to semantic pseudo-label PNGs.

    The four stages work on one run directory, each on what those before it left there:

    \b
      primaps-pipe extract  RUN --dataset folder --root PHOTOS
      primaps-pipe masks    RUN
      primaps-pipe em       RUN --classes 12
      primaps-pipe evaluate RUN

    `primaps-pipe demo` shows all of it on a few photographs; `primaps-pipe VERB --help` has
    examples and every option of a verb.
    """


if __name__ == "__main__":
    main()
