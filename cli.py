"""The command line: a table of contents. Each verb is in ``commands``, imported when called."""

from __future__ import annotations

import click

from commands.verbs import CONTEXT, Contents, Entry

# first of all: a signal that comes while the rest is loaded ends the program without a traceback

CONTENTS = {
    "Stages, in their order": {
        "extract": Entry("commands.stages:extract", "images -> features of a frozen ViT"),
        "masks": Entry("commands.stages:masks", "features -> principal mask proposals"),
        "head": Entry("commands.stages:head", "optional: a STEGO or HP head on the features"),
        "em": Entry("commands.stages:em", "features and proposals -> class prototypes"),
        "evaluate": Entry("commands.stages:evaluate", "prototypes -> label PNGs, metrics, report"),
    },
    "All stages at once": {
        "demo": Entry("commands.stages:demo", "on photographs that come with the install"),
        "run": Entry("commands.stages:run", "from a recipe"),
    },
    "What came out": {
        "status": Entry("commands.results:status", "how every stage of a run stands"),
        "inspect": Entry("commands.results:inspect", "what every stage made of one image, as PNG"),
        "compare": Entry("commands.results:compare", "runs or fits side by side, on one page"),
        "verify": Entry("commands.results:verify", "check, and repair, every file of a run"),
    },
    "In and out": {
        "export": Entry("commands.exchange:export", "labels in a format that others read"),
        "predict": Entry("commands.exchange:predict", "label new images, without a run"),
        "completion": Entry("commands.completion:completion", "complete names in your shell"),
    },
}


@click.group(cls=Contents, entries=CONTENTS, context_settings=CONTEXT)
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
