"""Every command in the documentation works as it is written.

Commands of ``primaps-pipe`` run in a sandbox, page by page; what takes too long for that is parsed,
and stands in `NOT_RUN` with the reason. A command that is in neither list fails the test.
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cli import main
from tests.conftest import REPOSITORY
from tests.docs.pages import find_blocks, leave_out_blocks, list_pages, load_hook
from tests.docs.sandbox import PROGRAM, run_line, split_line, write_home

# page -> the page that a reader comes from, whose results are there; None: from a new clone
OWN = "docs/own-photographs.md"
RUN_PAGES: dict[str, str | None] = {
    OWN: None,
    "README.md": None,
    "docs/index.md": "README.md",
    "docs/datasets/index.md": None,
    "docs/datasets/own.md": None,
    "docs/stages/extract.md": None,
    "docs/stages/masks.md": "docs/stages/extract.md",
    "docs/stages/head.md": OWN,
    "docs/stages/em.md": "docs/results/correct.md",
    "docs/stages/evaluate.md": OWN,
    "docs/stages/run.md": OWN,
    "docs/results/status.md": OWN,
    "docs/results/verify.md": OWN,
    "docs/results/inspect.md": OWN,
    "docs/results/review.md": OWN,
    "docs/results/compare.md": OWN,
    "docs/results/select.md": OWN,
    "docs/results/score.md": OWN,
    "docs/results/export.md": OWN,
    "docs/results/correct.md": OWN,
    "docs/annotation-tools.md": OWN,
    "docs/results/predict.md": OWN,
    "docs/results/python.md": OWN,
    "docs/results/terminal.md": OWN,
    "docs/run-directory.md": OWN,
    "docs/troubleshooting.md": OWN,
}

# start of a command -> why it is parsed instead of run
NOT_RUN = {
    "primaps-pipe review ": "it serves until it is stopped: tests/browser/test_review.py visits it",
    "primaps-pipe demo": "26 photographs of full size: make demo and .ci/run do it",
    "primaps-pipe extract runs/mine --workers 4": "tests/end_to_end/test_cluster.py runs workers",
    'primaps-pipe "$stage" "$RUN"': "a SLURM job: tests/end_to_end/test_cluster.py has a cluster",
    "primaps-pipe extract s3://": "tests/object_store runs a stage in a store of its own",
    "primaps-pipe verify runs/camvid --label-free": "tests/workflows/test_label_free.py does it",
    "primaps-pipe score --predictions theirs": "tests/workflows/test_scoring.py has such folders",
    "primaps-pipe correct runs/mine --from colleague": "tests/workflows/correct has two people",
    "primaps-pipe evaluate runs/camvid --em named-0": "a fit of benchmarks.naming: minutes",
    "python -m": "benchmarks take minutes: their --help is run, and has the options",
    "primaps-pipe correct runs/mine --from ~/Downloads": "tests/workflows/correct has such files",
    "primaps-pipe correct runs/mine --from ~/exports/from-fiftyone": "a database, for FiftyOne",
    "make ": "each installs or runs for minutes: make -n says that there is such a target",
}

# lines of other programs, which readers may or may not have
FOREIGN = re.compile(
    r"\. \.venv/bin/activate|pip install |#!/bin/bash|#SBATCH |export RUN=|dask scheduler |"
    r"export LABEL_STUDIO_|label-studio start|labelme ~|python ~/exports/fiftyone/|"
    r"srun dask worker |until \[ -s |ADDRESS=|for stage in |done$|git clone |cd "
)

# blocks of YAML and CSV that a page tells the reader to save, in their order
SAVED = {
    "docs/datasets/index.md": ("photographs.csv",),
    OWN: ("runs/mine/corrections/names.yaml", "points.csv"),
    "docs/stages/evaluate.md": (
        "runs/mine/corrections/names.yaml",
        "runs/mine/corrections/names-many.yaml",
    ),
    "docs/results/correct.md": ("points.csv",),
}

# pages whose Python is run where the reader is; the others' wants a cluster
PYTHON = ("docs/results/python.md",)
PYTHON_NOT_RUN = {"docs/scale.md": "dask-jobqueue and the dask operator want SLURM and Kubernetes"}


def find_lines(text: str) -> list[str]:
    """Return the lines of a page's shell blocks."""
    return [
        line.strip()
        for language, block in find_blocks(text)
        if language == "sh"
        for line in block.splitlines()
        if line.strip()
    ]


def find_reason(line: str) -> str | None:
    """Return why a command is parsed instead of run; None where it is run."""
    plain = " ".join(line.split())
    return next((why for start, why in NOT_RUN.items() if plain.startswith(start)), None)


class Reader:
    """Someone who works through pages in a clone of the repository.

    Every page begins with what the page before it has left in ``runs/``, whatever other pages did;
    all else that was written is gone.
    """

    def __init__(self, states: Path) -> None:
        self._states = states
        self._given = {folder: set(folder.iterdir()) for folder in (Path.home(), Path.cwd())}

    def work_through(self, page: str) -> Path:
        """Run the commands of a page; return a copy of the runs as they are then."""
        state = self._states / page.replace("/", "-")
        if state.is_dir():
            return state
        before = RUN_PAGES[page]
        begin = None if before is None else self.work_through(before)
        self._clear()
        if begin is not None:
            shutil.copytree(begin, "runs")
        saved = iter(SAVED.get(page, ()))
        for language, block in find_blocks(list_pages()[page]):
            if language in ("yaml", "csv") and page in SAVED:
                file = Path(next(saved))
                file.parent.mkdir(exist_ok=True)
                file.write_text(block, encoding="utf-8")
            if language == "sh":
                for line in filter(None, map(str.strip, block.splitlines())):
                    self._run(page, line)
            if language == "python" and page in PYTHON:
                exec(compile(block, page, "exec"), {})
        if Path("runs").is_dir():
            shutil.copytree("runs", state)
        return state

    def _clear(self) -> None:
        for folder, given in self._given.items():
            for path in set(folder.iterdir()) - given:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def _run(self, page: str, line: str) -> None:
        if line.startswith(PROGRAM) and find_reason(line) is None:
            result = run_line(line)
            assert result.exit_code == 0, f"{page}: {line}\n{result.output}\n{result.exception!r}"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    home = tmp_path_factory.mktemp("home")
    write_home(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("PRIMAPS_WEIGHTS_DIR", str(home / "weights"))
        patch.setenv("PRIMAPS_CACHE_DIR", str(home / "cache"))
        patch.chdir(home / "primaps-pipe")
        yield Reader(tmp_path_factory.mktemp("states"))


@pytest.mark.xdist_group("docs")
@pytest.mark.parametrize("page", RUN_PAGES)
def test_the_commands_of_a_page_run(page: str, reader: Reader) -> None:
    reader.work_through(page)


@pytest.mark.parametrize("page", list_pages())
def test_no_command_is_passed_over(page: str) -> None:
    for line in find_lines(list_pages()[page]):
        known = FOREIGN.match(line) or line.startswith("#") or find_reason(line)
        runs = line.startswith(PROGRAM) and page in RUN_PAGES
        assert known or runs, f"{page}: run this, or say in NOT_RUN why not: {line}"


@pytest.mark.parametrize("page", list_pages())
def test_commands_stand_in_blocks_that_are_run(page: str) -> None:
    text = list_pages()[page]
    assert not {"bash", "console", "shell", "shell-session"} & {
        kind for kind, _ in find_blocks(text)
    }
    plain = leave_out_blocks(text)
    assert not re.findall(r"^(?: {4}|\t)(?:\$ )?(?:primaps-pipe|python -m|make) .*$", plain, re.M)
    others = [block for kind, block in find_blocks(text) if kind in ("", "text")]
    assert not [b for b in others if re.search(r"^\s*(?:\$ )?(?:primaps-pipe|python -m) ", b, re.M)]


def test_no_python_is_passed_over() -> None:
    for page, text in list_pages().items():
        if any(language == "python" for language, _ in find_blocks(text)):
            assert page in PYTHON or page in PYTHON_NOT_RUN, page


@pytest.mark.parametrize("start", NOT_RUN)
def test_every_exception_is_one(start: str) -> None:
    lines = [" ".join(line.split()) for t in list_pages().values() for line in find_lines(t)]
    assert any(line.startswith(start) for line in lines), f"no page has it any more: {start}"


def _not_run(start: str) -> list[str]:
    lines = {line for text in list_pages().values() for line in find_lines(text)}
    return sorted(line for line in lines if line.startswith(start) and find_reason(line))


def parse(words: list[str]) -> None:
    """Parse a command line of ``primaps-pipe`` without running it."""
    verb, *arguments = words
    with click.Context(main) as context:
        command = main.get_command(context, verb)
        assert command is not None, verb
        command.make_context(verb, arguments, parent=context)


@pytest.mark.parametrize("line", _not_run(PROGRAM))
def test_what_is_not_run_is_parsed(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN", "runs/mine")
    monkeypatch.setenv("ADDRESS", "tcp://host:8786")
    command = line.split("||")[0].replace("s3://", "").replace('"$stage"', "masks")
    parse(split_line(command)[1:])


def test_an_option_that_does_not_exist_is_found() -> None:
    with pytest.raises(click.UsageError):
        parse(["masks", "runs/mine", "--no-such-option", "3"])


@pytest.mark.parametrize("line", _not_run("python -m"))
def test_benchmarks_have_the_options_that_pages_give(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, module, *arguments = split_line(line)
    assert importlib.util.find_spec(module) is not None
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert all(word in shown for word in arguments if word.startswith("--")), shown


@pytest.mark.parametrize("line", _not_run("make "))
def test_make_has_the_targets_that_pages_name(line: str) -> None:
    done = subprocess.run(
        ["make", "-n", *split_line(line)[1:]],
        cwd=REPOSITORY,
        env={**os.environ, "MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", list_pages())
def test_commands_within_the_text_have_verbs_and_options_that_exist(page: str) -> None:
    text = leave_out_blocks(list_pages()[page])
    with click.Context(main) as context:
        verbs = main.list_commands(context)
        for line in re.findall(r"`primaps-pipe ([a-z][^`]*)`", text):
            verb, *words = line.split()
            assert verb in verbs, f"{page}: {line}"
            parameters = main.get_command(context, verb).params
            known = {o for p in parameters for o in (*p.opts, *p.secondary_opts)} | {"--help"}
            given = {w.partition("=")[0] for w in words if w.startswith("--") and w != "--…"}
            assert given <= known, f"{page}: {line}"


def test_the_commands_of_the_datasets_pages_are_parsed() -> None:
    from workflows.recipes import read_recipe

    hook = load_hook("datasets")
    for name, definition in hook.read_definitions().items():
        lines = find_lines("\n".join(hook.describe_dataset(name, definition)))
        assert len(lines) == 2
        for line in lines:
            parse(split_line(line)[1:])
        assert read_recipe(name)["extract"]["dataset"] == name


def test_the_examples_of_every_help_page_are_parsed() -> None:
    with click.Context(main) as context:
        for verb in main.list_commands(context):
            command = main.get_command(context, verb)
            for line, _ in getattr(command, "examples", ()):
                if line.startswith(f"{PROGRAM} {verb}"):
                    parse(split_line(line)[1:])
