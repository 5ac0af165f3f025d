"""The verbs that look at a run, or carry something elsewhere.

They are status, verify, inspect, review, compare, select, score; and export, correct, predict,
completion.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from shutil import get_terminal_size
from textwrap import wrap
from typing import Any

import click
from click.shell_completion import get_completion_class

from commands.options import (
    AS_JSON,
    CRF_TYPE,
    PROGRESS,
    RUN,
    RUN_TEXT,
    SCHEDULER,
    VERBOSE,
    WORKERS,
    ChoiceType,
    NumberType,
    PlaceType,
    complete_datasets,
    complete_images,
    em_option,
    head_option,
    screen_options,
    settings_options,
)
from commands.verbs import PROGRAM, argument, how, shown, verb, what
from pipeline.compute.scheduler import Execution
from pipeline.errors import UsageError, count_of
from pipeline.progress import Screen, show_bytes, show_controls, show_seconds
from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import Condition
from pipeline.settings import Bounds
from stages import FOLLOWED_BY, SETTINGS
from workflows.correct import FORMATS as CORRECTIONS
from workflows.correct import describe_formats as describe_corrections
from workflows.export import FORMATS, GEOTIFF, PNG, describe_formats

VARIABLE = "_PRIMAPS_PIPE_COMPLETE"
SHELLS = {
    "bash": 'eval "$(primaps-pipe completion bash)"   # in ~/.bashrc',
    "zsh": 'eval "$(primaps-pipe completion zsh)"    # in ~/.zshrc, after compinit',
    "fish": "primaps-pipe completion fish > ~/.config/fish/completions/primaps-pipe.fish",
}
"""Shell -> how its script is read."""

COLOURS = {"fresh": "green", "stale": "yellow", "incomplete": "yellow", "missing": "bright_black"}
TITLES = ("stage", "state", "shards", "size", "time", "CRF")
_RIGHT = {2, 3, 4}


def print_status(rows: Sequence[Condition], run: RunDirectory) -> None:
    """Print one row a stage, below it why it is stale, and at the end which command is the next."""
    table = [TITLES, *map(_list_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    # click.echo takes the codes of colours out where there is no terminal
    click.echo(click.style("  ".join(_align(TITLES, widths)).rstrip(), bold=True))
    # piped, one remark is one line, for grep
    width = max(get_terminal_size().columns, 40) if sys.stdout.isatty() else 10_000
    for row, line in zip(rows, table[1:], strict=True):
        state, cells = row.state, _align(line, widths)
        cells[1] = cells[1].replace(state, click.style(state, fg=COLOURS.get(state)))
        click.echo("  ".join(cells).rstrip())
        for part in wrap(show_controls(row.reason), width - 4, break_on_hyphens=False):
            click.echo(f"    {part}")
    # a stage that was left out is missed by none of those that were run after it
    run_last = max((n for n, c in enumerate(rows) if c.record is not None), default=-1)
    behind = (
        row
        for number, row in enumerate(rows)
        if row.state != "fresh" and (row.record or number > run_last)
    )
    if first := next(behind, None):
        key = first.first or first.key
        chosen = next(row for row in rows if row.key == key)
        click.echo(f"next: {chosen.command or _name_command(chosen, run)}")
    if remark := run.describe_store():
        click.echo(f"warning: {remark}")


def _name_command(condition: Condition, run: RunDirectory) -> str:
    """Return the command that brings a stage up to date."""
    stage, options = condition.key.partition("/")[0], ""
    # one that follows another has its verb
    verb = next((verb for verb, other in FOLLOWED_BY.items() if other == stage), stage)
    if condition.record is not None:
        verb, options = condition.record.command, condition.record.options
    return f"primaps-pipe {verb} {run.quoted}{options}"


def _list_cells(row: Condition) -> tuple[str, ...]:
    if row.record is None:
        return (show_controls(row.key), row.state, "", "", "", "")
    return (
        show_controls(row.key),
        row.state,
        f"{row.done}/{row.total}" if row.total else "",
        show_bytes(row.bytes),
        show_seconds(row.seconds),
        show_controls(row.crf),
    )


def _align(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.rjust(width) if number in _RIGHT else cell.ljust(width)
        for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]


@verb(
    events=False,
    examples="""
    primaps-pipe status runs/demo
        One row a stage, and why what is stale is stale.
    primaps-pipe status runs/demo --json
        The same for programs.
    """,
)
@RUN
@AS_JSON
@VERBOSE
def status(run: Path, as_json: bool) -> None:
    """Show how every stage of a run stands.

    \b
    missing     it was never run
    incomplete  some shards are finished; the same command goes on with the others
    stale       what it was made from has changed since
    fresh       finished, and made from what is there
    """
    from pipeline.run.status import describe_row, inspect_run

    rows = inspect_run(RunDirectory(run), SETTINGS)
    if as_json:
        remark = RunDirectory(run).describe_store()
        # a row as any other: whoever reads rows meets it
        store = [describe_row(Condition("store", "warning", 0, 0, 0.0, remark))] if remark else []
        click.echo(json.dumps([*map(describe_row, rows), *store], indent=1))
        return

    print_status(rows, RunDirectory(run))


@verb(
    events=False,
    examples="""
    primaps-pipe verify runs/demo
        Exits with 1 where something is damaged.
    primaps-pipe verify runs/demo --repair
        Computes again what is, and nothing else.
    primaps-pipe verify runs/camvid --label-free
        Proves that no label reaches what is made without them.
    """,
)
@RUN
@what("--repair", is_flag=True, help="make again what is damaged, and nothing else")
@what(
    "--label-free",
    is_flag=True,
    help="instead, run all stages again on some images, elsewhere, with their labels permuted, "
    "shifted and removed: all but the scores must come out with the same bytes",
)
@what(
    "--images",
    type=NumberType(int, Bounds(least=2)),
    default=12,
    help="how many images --label-free takes, spread over the splits  [default: 12; at least 2]",
)
@WORKERS
@SCHEDULER
@PROGRESS
@AS_JSON
@VERBOSE
def verify(
    run: Path,
    repair: bool,
    label_free: bool,
    images: int,
    as_json: bool,
    workers: int,
    scheduler: str | None,
    progress: bool,
) -> None:
    """Check every file of a run against the checksums in its ledger."""
    if label_free:
        if repair:
            raise UsageError("--label-free repairs nothing: leave --repair out.")
        _verify_label_free(run, images, as_json=as_json, screen=Screen(progress=progress))
        return
    from pipeline.run.verification import Findings, repair_run, verify_run

    screen = Screen(progress=progress)

    def check() -> Findings:
        findings = verify_run(
            RunDirectory(run), lambda total: screen.count("verify", total, "files")
        )
        if not as_json:
            for damage in findings.damages:
                click.echo(show_controls(damage.describe()))
            verdict = f"{len(findings.damages)} damaged" if findings.damages else "all as written"
            files = count_of(findings.files, "files")
            click.echo(f"{files}, {show_bytes(findings.bytes)}: {verdict}")
        return findings

    findings = check()
    if findings.damages and repair:
        execution = Execution(workers=workers, scheduler=scheduler)
        repair_run(RunDirectory(run), SETTINGS, findings.damages, execution, screen)
        findings = check()
    if as_json:
        click.echo(json.dumps(asdict(findings), indent=1))
    if findings.damages:
        sys.exit(1)


def _verify_label_free(run: Path, images: int, *, as_json: bool, screen: Screen) -> None:
    from workflows.label_free import prove_label_free

    proof = prove_label_free(RunDirectory(run), images, screen)
    if as_json:
        click.echo(json.dumps(asdict(proof), indent=1))
    else:
        for line in proof.describe():
            click.echo(show_controls(line))
    if proof.leaks:
        sys.exit(1)


@verb(
    examples="""
    primaps-pipe inspect runs/demo astronaut --out astronaut.png
        The image, its features, proposals and labels, side by side.
    """
)
@RUN
@argument(
    "image",
    shell_complete=complete_images,
    text="the image's id, split/id, the photograph's path, or the last part of it",
)
@em_option(help="the fit whose labels are drawn; the run's own when not given")
@head_option(help="the head whose labels are drawn, instead of a fit's")
@shown(
    "--out",
    type=PlaceType(),
    help="the PNG to write  [default: NAME-inspect.png, in the folder you are in]",
)
@screen_options
def inspect(
    run: Path, image: str, em: str | None, head: str | None, out: Path | None, screen: Screen
) -> None:
    """Draw what every stage has made of one image, into one PNG."""
    from stages.report.inspection import inspect_image

    # no name that an image or its label map has
    place = out or Path(f"{Path(image).name}-inspect.png")
    written = inspect_image(RunDirectory(run), image, place, em=em, head=head)
    screen.result(str(written), picture=written)


@verb(
    examples="""
    primaps-pipe review runs/demo
        Prints an address of this machine; open it in a browser, and press Ctrl-C when you are done.
    primaps-pipe review runs/demo --port 8800
        The same port every time, to reach another machine by `ssh -L 8800:127.0.0.1:8800`.
    """
)
@RUN
@em_option(help="the fit whose clusters you name; the run's own when not given")
@head_option(help="the head whose clusters you name, instead of a fit's")
@how(
    "--port",
    type=NumberType(int, Bounds(least=0, most=65535)),
    default=0,
    help="port of 127.0.0.1, 0 for any that is free  [default: 0]",
)
@shown("--open", "open_", is_flag=True, help="open the page in your browser, too")
@screen_options
def review(
    run: Path, em: str | None, head: str | None, port: int, open_: bool, screen: Screen
) -> None:
    """Name the clusters, and correct labels, on a page that this machine alone can see.

    What you say is saved at once, in RUN/corrections; evaluate makes the labels of it.
    """
    from workflows.review.server import serve_review

    opened = click.launch if open_ else None
    serve_review(RunDirectory(run), screen, em=em, head=head, port=port, opened=opened)


@verb(
    examples="""
    primaps-pipe compare runs/demo runs/mine --out comparison.html
        Two runs, the same images in the same rows.
    primaps-pipe compare runs/demo --em default --em auto
        Two fits of one run.
    """
)
@argument(
    "runs",
    nargs=-1,
    required=True,
    type=PlaceType(folder=True),
    metavar="RUN...",
    text=f"{RUN_TEXT}; one or more",
)
@em_option(help="a fit, repeatable; each of each run is compared", multiple=True)
@head_option(help="a head, repeatable; each of each run is compared", multiple=True)
@shown(
    "--images",
    type=NumberType(int, Bounds(least=0)),
    default=12,
    help="images of each split that are shown side by side: half of them those that differ most  "
    "[default: 12; at least 0]",
)
@shown(
    "--out",
    type=PlaceType(),
    default="comparison.html",
    help="the page to write  [default: comparison.html]",
)
@screen_options
def compare(
    runs: tuple[Path, ...],
    em: tuple[str, ...],
    head: tuple[str, ...],
    images: int,
    out: Path,
    screen: Screen,
) -> None:
    """Compare runs, or fits of one run, on one page: scores, classes, images side by side.

    Without names, the fit that evaluate would take of each run is compared.
    """
    names: list[tuple[str | None, str | None]] = [(name, None) for name in em]
    names += [(None, name) for name in head]
    subjects = [(RunDirectory(run), *name) for run, name in product(runs, names or [(None, None)])]
    if len(subjects) < 2:
        raise UsageError("compare takes two runs or more, or two names of one run (--em, --head).")
    from stages.report.comparison import compare_runs

    page = compare_runs(subjects, out, images=images, screen=screen)
    screen.result(f"the comparison is at {page.absolute()}", page=page.absolute())


@verb(
    events=False,
    examples="""
    primaps-pipe select runs/demo --images 8
        The eight images that are worth labelling first.
    primaps-pipe select runs/demo --proposals 60 --out to-name
        Sixty proposals, with their photographs and a list to fill in.
    """,
)
@RUN
@what(
    "--images",
    type=NumberType(int, Bounds(least=1)),
    metavar="N",
    help="choose so many images  [at least 1]",
)
@what(
    "--proposals",
    type=NumberType(int, Bounds(least=1)),
    metavar="N",
    help="choose so many proposals, each by a pixel that lies in it  [at least 1]",
)
@what(
    "--split",
    "splits",
    multiple=True,
    help="split to choose from, repeatable; train where there is one, else all",
)
@em_option(help="the fit since which what was added comes first; the run's own when not given")
@shown(
    "--out",
    type=PlaceType(),
    help="a new or empty folder for the photographs and their list",
)
@PROGRESS
@AS_JSON
@VERBOSE
def select(
    run: Path,
    images: int | None,
    proposals: int | None,
    splits: tuple[str, ...],
    em: str | None,
    out: Path | None,
    progress: bool,
    as_json: bool,
) -> None:
    """Choose the images, or the proposals, whose label would teach most.

    It needs features and proposals, and no fit. What RUN/corrections says is known already.
    """
    from workflows.selection import describe_pick, select, write_selection

    place = RunDirectory(run)
    selection = select(place, images=images, proposals=proposals, splits=splits, em=em)
    if as_json:
        click.echo(json.dumps(selection.describe(), indent=1, ensure_ascii=False))
    else:
        for pick in selection.picks:
            click.echo(show_controls(describe_pick(pick)))
    lines = [f"select: {selection.why}"]
    if out is not None:
        lines.append(f"select: {write_selection(place, selection, out, Screen(progress=progress))}")
    for line in lines:
        click.echo(show_controls(line), err=True)


@verb(
    events=False,
    examples="""
    primaps-pipe score --predictions runs/demo/labels --dataset camvid --root data/camvid \
    --split val
        Label maps of a run, or of any other program, one for each image of a dataset.
    primaps-pipe score --predictions theirs --labels truth --matching none
        Two folders of label maps with the same names; the numbers are classes already.
    """,
)
@what(
    "--predictions",
    type=PlaceType(folder=True),
    required=True,
    help="folder of the label maps to score: PNG, TIFF or NPY, called as the label maps are, or as "
    "SPLIT/ID or ID of a dataset",
)
@what("--labels", type=PlaceType(folder=True), help="folder of the true label maps")
@what(
    "--dataset",
    shell_complete=complete_datasets,
    metavar="NAME",
    help="the dataset whose label maps are the truth, instead of --labels",
)
@what("--root", type=PlaceType(folder=True), help="folder of that dataset")
@what(
    "--split",
    "splits",
    multiple=True,
    help="split to score, repeatable; those that extract would take when not given",
)
@what(
    "--matching",
    type=ChoiceType(("one-to-one", "many-to-one", "none")),
    default="one-to-one",
    help="how clusters become classes, over the whole split; none: they are classes  "
    "[default: one-to-one]",
)
@what(
    "--crop",
    type=ChoiceType(("none", "centre")),
    default="none",
    help="what of each label map is scored: all, or the centred square of papers  [default: none]",
)
@what(
    "--resize",
    type=ChoiceType(("none", "nearest")),
    default="none",
    help="what becomes of predictions of another size than their label map: they are refused, or "
    "brought to it by the nearest pixel  [default: none]",
)
@what(
    "--ignore",
    multiple=True,
    type=NumberType(int, None),
    metavar="VALUE",
    help="value of the label maps that is in no score, repeatable; 255 and -1 never are",
)
@what("--boundaries", is_flag=True, help="score boundaries, too: F within 2 and 5 pixels")
@PROGRESS
@AS_JSON
@VERBOSE
def score(
    predictions: Path,
    matching: str,
    crop: str,
    resize: str,
    ignore: tuple[int, ...],
    boundaries: bool,
    progress: bool,
    as_json: bool,
    **source: Any,
) -> None:
    """Score anybody's label maps as evaluate scores its own; no run is needed.

    A labelled pixel without a prediction counts as wrong, and an image without one ends it.
    """
    from workflows.scoring import Rules, describe_doubts, describe_scores, score_folder

    screen = Screen(progress=progress)
    rules = Rules(matching, crop, resize, ignore, boundaries)
    result = score_folder(predictions, rules=rules, screen=screen, **source)
    for line in describe_doubts(result):
        screen.warn(line)
    if as_json:
        click.echo(json.dumps(result, indent=1, ensure_ascii=False))
        return
    for line in describe_scores(result):
        click.echo(show_controls(line))


@verb(
    lists=lambda: {"Formats": describe_formats()},
    examples="""
    primaps-pipe export runs/demo --format mmseg --out exports/demo-mmseg
        Images and labels as mmsegmentation reads them.
    primaps-pipe export runs/demo --format prototypes --out exports/demo.safetensors
        What `primaps-pipe predict` labels other images with.
    """,
)
@RUN
@what(
    "--format",
    "format_",
    required=True,
    type=ChoiceType(FORMATS),
    metavar="FORMAT",
    help="one of those below",
)
@em_option(help="the fit whose labels are exported; the run's own when not given")
@head_option(help="the head whose labels are exported, instead of a fit's")
@what(
    "--split",
    "splits",
    multiple=True,
    help="split to export, repeatable; all that are labelled when not given",
)
@what(
    "--ids",
    type=ChoiceType(("auto", "classes", "majority", "clusters")),
    default="auto",
    help="what the numbers in the label maps are: the dataset's classes, matched one to one; "
    "majority: each cluster as the class of most of its pixels; clusters; auto: classes where "
    "clusters are matched to them, else clusters  [default: auto]",
)
@what(
    "--images",
    type=ChoiceType(("copy", "link", "none")),
    default="copy",
    help="what becomes of the photographs themselves  [default: copy]",
)
@what(
    "--min-confidence",
    type=NumberType(float, Bounds(least=0, most=1)),
    default=0.0,
    help="leave out (255) what is less sure than this, of an evaluation with --confidence",
)
@what(
    "--out",
    type=PlaceType(),
    required=True,
    help="where to: a new or empty folder, or a file for prototypes",
)
@screen_options
def export(run: Path, format_: str, out: Path, screen: Screen, **options: Any) -> None:
    """Write the labels of a run in a format that other programs read."""
    from workflows.export.job import export_run

    for line in export_run(RunDirectory(run), format_, out, screen=screen, **options):
        screen.result(line, out=out)


@verb(
    lists=lambda: {"Formats": describe_corrections()},
    examples="""
    primaps-pipe correct runs/demo --from runs/demo/labels
        Takes up the label maps that were changed by hand.
    primaps-pipe correct runs/demo --from points.csv --dry-run
        Says how many clicks and boxes would be.
    """,
)
@RUN
@what(
    "--from",
    "--points",
    "place",
    type=PlaceType(),
    required=True,
    help="the file or folder that says what is right",
)
@what(
    "--format",
    "format_",
    type=ChoiceType(("auto", *CORRECTIONS)),
    metavar="FORMAT",
    default="auto",
    help="one of those below; auto: the first of them that knows the file or folder  "
    "[default: auto]",
)
@what(
    "--classes",
    type=PlaceType(),
    help="names of the numbers in label PNGs, as YAML, JSON or a name a line; a file classes.* "
    "beside them, or those of the run's label maps, when not given",
)
@em_option(help="the fit whose numbers label PNGs hold; the run's own when not given")
@head_option(help="the head whose numbers label PNGs hold, instead of a fit's")
@what(
    "--prefer",
    type=ChoiceType(("ours", "theirs")),
    help="whose word counts where the run says otherwise; conflicts are listed when not given",
)
@how("--dry-run", is_flag=True, help="say what would be taken up, and stop")
@screen_options
def correct(
    run: Path, place: Path, format_: str, dry_run: bool, screen: Screen, **options: Any
) -> None:
    """Take up what a person has corrected elsewhere, into RUN/corrections.

    Exits with 1 where something could not be taken up: the lines say what, and why.
    """
    from workflows.correct.job import correct_run, describe_outcome, require_complete

    directory = RunDirectory(run)
    outcome = correct_run(directory, place, format_, dry_run=dry_run, screen=screen, **options)
    for line in (*outcome.faults, *outcome.conflicts):
        screen.warn(line)
    for line in describe_outcome(outcome, directory, dry_run=dry_run):
        screen.result(line)
    require_complete(outcome)


@verb(
    examples="""
    primaps-pipe predict runs/demo/photographs/images --prototypes exports/demo.safetensors \
    --out labels
        Labels photographs with what `primaps-pipe export --format prototypes` wrote.
    """
)
@argument("images", type=PlaceType(folder=True), text="a folder of images, of any depth")
@what(
    "--prototypes",
    type=PlaceType(),
    required=True,
    help="the .safetensors file that export --format prototypes wrote",
)
@what("--out", type=PlaceType(), required=True, help="folder of the labels")
@what(
    "--format",
    type=ChoiceType((PNG, GEOTIFF)),
    default=PNG,
    help="files of the labels: png; or geotiff, which keeps the georeference of photographs "
    "that have one  [default: png]",
)
@what("--crf", type=CRF_TYPE, default="auto", help="refinement of the labels  [default: auto]")
@settings_options(SETTINGS["extract"], names=("weights", "device", "batch_size"), remembered=False)
@screen_options
def predict(images: Path, prototypes: Path, out: Path, screen: Screen, **options: Any) -> None:
    """Label new images with prototypes; no run directory is needed."""
    from workflows.prediction import predict_folder

    for line in predict_folder(images, prototypes, out, screen=screen, **options):
        screen.result(line, out=out)


@verb(
    events=False,
    examples="\n".join(f"{PROGRAM} completion {name}\n    {does}" for name, does in SHELLS.items()),
)
@argument("shell", type=ChoiceType(SHELLS), text="the shell that reads the script")
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes verbs, options and names in a shell."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, PROGRAM, VARIABLE).source())
