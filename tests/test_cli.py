"""The table of contents: every verb is there, explained, and loaded when it is called."""

from __future__ import annotations

import shlex
import statistics
import subprocess
import sys
import time

import click
import pytest
from click.testing import CliRunner, Result

from cli import CONTENTS, main
from commands.verbs import Verb

VERBS = [name for section in CONTENTS.values() for name in section]
STAGE_OPTIONS = (
    *("--workers", "--scheduler", "--force", "--dry-run", "--wait"),
    *("--progress", "--no-progress", "--json", "-v"),
)
CONTRACT = {
    "extract": (
        *("--dataset", "--root", "--split", "--backbone", "--weights", "--size", "--frame"),
        *("--limit", "--device", "--precision", "--shard-size", "--labels", *STAGE_OPTIONS),
    ),
    "masks": ("--threshold", "--crf", *STAGE_OPTIONS),
    "head": ("--method", "--classes", "--name", *STAGE_OPTIONS),
    "em": ("--classes", "--method", "--epochs", "--seed", "--name", *STAGE_OPTIONS),
    "evaluate": ("--em", "--head", "--split", "--crf", *STAGE_OPTIONS),
    "run": ("--workflow", "--set", *STAGE_OPTIONS),
    "demo": STAGE_OPTIONS,
    "review": ("--em", "--head", "--port", "--open"),
    "select": ("--images", "--proposals", "--split", "--out"),
    "score": (
        *("--predictions", "--labels", "--dataset", "--root", "--split", "--matching", "--crop"),
        *("--resize", "--ignore", "--boundaries", "--json", "-v"),
    ),
    "status": ("--json", "-v"),
    "verify": ("--repair", "--label-free", "--images", "--json", "--workers", "--scheduler", "-v"),
    "inspect": ("--em", "--head", "--out", "-v"),
    "compare": ("--em", "--head", "--out", "--images", "-v"),
    "export": ("--format", "--out", "--em", "--head", "--split", "--ids", "--images", "-v"),
    "correct": ("--from", "--points", "--format", "--classes", "--prefer", "--dry-run", "-v"),
    "predict": ("--prototypes", "--out", "--weights", "--crf", "--device", "-v"),
    "completion": (),
}
HEAVY = {"torch", "numba", "zarr", "timm", "matplotlib", "distributed", "sklearn", "pyarrow"}


def load(name: str) -> Verb:
    verb = main.get_command(click.Context(main), name)
    assert isinstance(verb, Verb)
    return verb


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def import_for(*arguments: str) -> set[str]:
    """Return the top-level packages that a call imports."""
    code = (
        "import sys; from cli import main\n"
        f"try: main({list(arguments)!r})\n"
        "except SystemExit: pass\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    return set(done.stderr.decode().split())


def test_the_contents_are_the_contract() -> None:
    assert set(VERBS) == set(CONTRACT)


@pytest.mark.parametrize("name", CONTRACT)
def test_every_promised_option_exists(name: str) -> None:
    names = {option for p in load(name).params for option in (*p.opts, *p.secondary_opts)}
    assert {*CONTRACT[name]} <= names


def test_the_list_of_verbs_imports_next_to_nothing() -> None:
    light = {"numpy", "pydantic", "rich", "yaml", "stages", "workflows"}
    assert import_for("--help") & (HEAVY | light) == set()


@pytest.mark.parametrize("name", VERBS)
def test_the_help_of_a_verb_imports_nothing_heavy(name: str) -> None:
    assert import_for(name, "--help") & (HEAVY | {"rich"}) == set()


def test_the_list_of_verbs_comes_at_once() -> None:
    """Below 0.3 s; five times as much for a busy machine."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "cli", "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    assert statistics.median(seconds) < 1.5


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_an_example_that_can_be_parsed(name: str) -> None:
    verb = load(name)
    assert verb.examples
    for command, does in verb.examples:
        program, called, *arguments = shlex.split(command)
        assert program == "primaps-pipe"
        load(called).make_context(called, arguments)
        assert does[0].isupper() or name == "completion"


@pytest.mark.parametrize("name", VERBS)
def test_every_option_is_explained_and_in_a_section(name: str) -> None:
    verb = load(name)
    context = click.Context(verb, info_name=name)
    for section, rows in verb.list_options(context).items():
        assert section
        assert all(rows.values()), rows
    text = call(name, "--help").output
    order = ["Usage:", "Examples:", "Arguments:", "What is shown:"]
    places = [text.index(heading) for heading in order if f"\n{heading}" in f"\n{text}"]
    assert places == sorted(places)
    assert all(command in text for command, _ in verb.examples)


def test_help_shows_defaults_and_ranges_from_the_settings() -> None:
    text = " ".join(call("em", "--help").output.split())
    assert "[default: 50; at least 1]" in text
    assert "[required at first]" in " ".join(call("extract", "--help").output.split())


def test_pipes_get_no_colours() -> None:
    assert "\x1b" not in call("--help").output
    assert "\x1b" not in call("masks", "--help").output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("extrat", "runs/a"), "There is no command 'extrat' (did you mean 'extract'?); there are"),
        (("zzz",), "There is no command 'zzz'; there are extract, masks,"),
        (("--verion",), "There is no option '--verion' (did you mean '--version'?)."),
        (
            ("masks", "r", "--treshold", "1"),
            "There is no option '--treshold' (did you mean '--threshold'?).",
        ),
        (("masks", "r", "--no-progres"), "(did you mean '--no-progress'?)."),
        (
            ("masks", "r", "--crf", "numbaa"),
            "Invalid value for '--crf': 'numbaa' (did you mean 'numba'?) is none of auto, numba",
        ),
        (("completion", "bsh"), "'bsh' (did you mean 'bash'?) is none of bash, zsh, fish."),
        (("export", "r", "--out", "x", "--format", "mmsegg"), "(did you mean 'mmseg'?)"),
        (("masks",), "Missing argument 'RUN'"),
    ],
)
def test_wrong_names_are_told_which_they_may_have_been_meant_for(
    arguments: tuple[str, ...], sentence: str
) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.split())
