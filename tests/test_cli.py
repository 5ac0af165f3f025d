"""The command line: names, errors of one sentence, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli import main

CONTRACT = {
    "extract": (
        *("--dataset", "--root", "--split", "--backbone", "--weights", "--size", "--frame"),
        *("--limit", "--device", "--precision", "--shard-size", "--labels"),
    ),
    "masks": ("--threshold", "--crf"),
    "em": ("--classes", "--method", "--epochs", "--seed", "--name"),
    "evaluate": ("--em", "--split", "--crf"),
    "run": ("--workflow", "--set"),
    "demo": (),
}
EVERYWHERE = ("--workers", "--scheduler", "--force", "--dry-run", "--progress", "--no-progress")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("command", CONTRACT)
def test_every_promised_option_exists(command: str) -> None:
    names = {name for p in main.commands[command].params for name in (*p.opts, *p.secondary_opts)}
    assert {*CONTRACT[command], *EVERYWHERE, "-v"} <= names


def test_help_shows_defaults_from_the_settings() -> None:
    text = " ".join(call("em", "--help").output.split())
    assert "[default: 50]" in text
    assert "[required at first]" in " ".join(call("extract", "--help").output.split())


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; from cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numba', 'zarr', 'timm', 'matplotlib', 'distributed'}\n"
        "heavy &= sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("extract", "{run}"), 2, ("extract needs --dataset",)),
        (("extract", "{run}", "--dataset", "camvi", "--root", "."), 2, ("camvi",)),
        (
            ("extract", "{run}", "--dataset", "folder", "--root", "{run}/no where"),
            1,
            ("no where",),
        ),
        (
            (
                *("extract", "{run}", "--dataset", "folder", "--root", "."),
                *("--backbone", "vit_smal_patch8_224.dino"),
            ),
            2,
            ("vit_smal_patch8_224.dino", "vit_small_patch8_224.dino"),
        ),
        (
            (
                *("extract", "{run}", "--dataset", "folder", "--root", "."),
                *("--backbone", "handcrafted", "--size", "65"),
            ),
            2,
            ("65", "64"),
        ),
        (
            (
                *("extract", "{run}", "--dataset", "folder", "--root", "."),
                *("--backbone", "handcrafted", "--device", "cuda:99"),
            ),
            2,
            ("cuda:99",),
        ),
        (("masks", "{run}"), 1, ("no run directory", "primaps-pipe extract")),
        (("masks", "{run}", "--threshold", "2"), 2, ("masks.threshold = 2.0", "less than")),
        (("em", "{run}", "--classes", "1"), 2, ("em.classes = 1",)),
        (("em", "{run}", "--classes", "3", "--name", "../x"), 2, ("'../x'",)),
        (("evaluate", "{run}"), 1, ("no run directory",)),
        (("status", "{run}"), 1, ("no run directory",)),
        (("run", "{run}", "--workflow", "camvit"), 2, ("camvit", "did you mean 'camvid'")),
        (("run", "{run}", "--workflow", "camvid", "--set", "x"), 2, ("stage.option=value",)),
        (
            (
                *("run", "{run}", "--workflow", "camvid", "--set", "extract.root=."),
                *("--set", "masks.treshold=1"),
            ),
            2,
            ("did you mean 'threshold'",),
        ),
        (("extract",), 2, ("Missing argument",)),
        (("extrat", "{run}"), 2, ("extrat",)),
    ],
)
def test_wrong_use_gets_one_clear_sentence(
    arguments: tuple[str, ...], code: int, words: tuple[str, ...], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    result = call(*(argument.format(run=run) for argument in arguments))
    assert result.exit_code == code, result.output
    assert all(word in result.output for word in words), result.output
    assert "Traceback" not in result.output
    assert not run.exists(), "a refused command leaves nothing behind"


def test_a_foreign_folder_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "a.png").write_bytes(b"")
    result = call("demo", tmp_path)
    assert result.exit_code == 1
    assert "is not empty" in result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "thesis.tex"]


def test_verbose_shows_the_traceback(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "cli", "masks", str(tmp_path / "none"), "-v"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    from tests.end_to_end.conftest import write_scenes

    write_scenes(tmp_path, 2)
    run = tmp_path / "run"
    result = call(
        *("extract", run, "--dataset", "folder", "--root", tmp_path / "photographs"),
        *("--backbone", "handcrafted", "--size", 64, "--dry-run"),
    )
    assert result.exit_code == 0, result.output
    assert "shards to compute" in result.output
    assert not run.exists()
