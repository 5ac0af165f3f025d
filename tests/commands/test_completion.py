"""Completion, as click's own machinery calls it, and the scripts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete, split_arg_string

from cli import main
from commands.results import SHELLS, VARIABLE
from commands.verbs import PROGRAM
from tests.commands.conftest import Call


def complete(*words: object, incomplete: str = "") -> list[str]:
    shell = ShellComplete(main, {}, PROGRAM, VARIABLE)
    found = shell.get_completions([str(word) for word in words], incomplete)
    return [item.value for item in found]


def test_verbs_are_completed_without_loading_them() -> None:
    assert complete(incomplete="ex") == ["extract", "export"]
    assert complete(incomplete="zz") == []


def test_options_and_choices() -> None:
    assert complete("masks", "runs/a", incomplete="--thr") == ["--threshold"]
    assert complete("masks", "runs/a", "--crf", incomplete="n") == ["numba", "none"]
    assert complete("em", "runs/a", "--classes", incomplete="") == ["auto"]
    assert complete("export", "runs/a", "--ids", incomplete="cl") == ["classes", "clusters"]
    assert "mmseg" in complete("export", "runs/a", "--format", incomplete="mm")
    assert complete("completion", incomplete="z") == ["zsh"]


def test_recipes_and_datasets() -> None:
    assert complete("run", "runs/a", "--workflow", incomplete="camv") == ["camvid"]
    assert "camvid" in complete("extract", "runs/a", "--dataset", incomplete="cam")


def test_names_of_fits_and_images_of_the_run(finished: Path) -> None:
    for verb in ("evaluate", "export", "inspect", "compare"):
        assert complete(verb, finished, "--em", incomplete="def") == ["default"]
        assert complete(verb, finished, "--head") == []
    found = complete("inspect", finished, incomplete="part 0/")
    assert found == [f"part 0/scene {n}" for n in range(0, 9, 2)]


@pytest.mark.parametrize("words", [("evaluate", "{run}", "--em"), ("inspect", "{run}")])
def test_what_is_no_run_completes_nothing(words: tuple[str, ...], tmp_path: Path) -> None:
    assert complete(*(word.format(run=tmp_path) for word in words)) == []
    (tmp_path / "manifest.parquet").write_text("no parquet")
    assert complete(*(word.format(run=tmp_path) for word in words)) == []


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_calls_the_program(call: Call, shell: str) -> None:
    if shutil.which("bash") is None and shell == "bash":
        pytest.skip("no bash")
    result = call("completion", shell)
    assert result.exit_code == 0, result.output
    assert VARIABLE in result.output
    assert f"{shell}_complete" in result.output


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_reads_its_script(call: Call, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(call("completion", "bash").output)
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize(
    ("words", "found", "imported"),
    [
        ("evalu", "plain,evaluate", set()),
        ("evaluate '{run}' --em d", "plain,default", {"pydantic"}),
        ("inspect '{run}' 'part 1/scene 1", "plain,part 1/scene 1", {"pydantic", "pyarrow"}),
    ],
)
def test_the_program_answers_the_script_and_loads_little_for_it(
    words: str, found: str, imported: set[str], finished: Path
) -> None:
    line = f"{PROGRAM} {words.format(run=finished)}"
    count = len(split_arg_string(line)) - 1
    variables = {VARIABLE: "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(count)}
    code = (
        f"import sys; sys.argv[0] = {PROGRAM!r}; from cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [found], done.stderr
    heavy = {"torch", "numba", "zarr", "distributed", "rich", "pyarrow", "pydantic"}
    assert heavy & set(done.stderr.split()) == imported
