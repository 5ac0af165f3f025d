"""kill -9 in the middle of each stage, then the same command again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.end_to_end.conftest import FAST_EM, Invoke, hash_tree

COMMANDS = {
    "masks": ("masks",),
    "em": ("em", "--classes", "3", *FAST_EM),
    "evaluate": ("evaluate",),
}
ARTEFACTS = {
    "extract": ("features.zarr",),
    "masks": ("masks.zarr",),
    "em": ("em.zarr",),
    "evaluate": ("labels", "report/metrics.json"),
}


def start(*arguments: object) -> subprocess.Popen[bytes]:
    """Start the command line in a process group of its own."""
    command = [sys.executable, "-m", "cli", *map(str, arguments), "--no-progress"]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)


def kill_when(process: subprocess.Popen[bytes], sign: Path) -> None:
    """Kill a process group as soon as a file exists."""
    limit = time.monotonic() + 120
    while not sign.exists():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < limit, f"{sign} never came"
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_killed_stages_go_on_to_the_same_bytes(
    finished: Path, invoke: Invoke, extract_options: list[object], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    signs = {
        "extract": run / "state/extract/shards/000000.json",
        "masks": run / "state/masks/shards/000000.json",
        "em": run / "state/em/default/fit.npz",
        "evaluate": run / "state/evaluate/default/shards/000000.json",
    }
    for stage, sign in signs.items():
        name, *options = COMMANDS.get(stage, ("extract", *extract_options[:-1]))
        process = start(name, run, *options)
        kill_when(process, sign)
        record = json.loads((sign.parents[0 if stage == "em" else 1] / "stage.json").read_text())
        assert not record["finished"]
        following = {"extract": "masks", "masks": "em", "em": "evaluate"}.get(stage)
        if following:
            extra = COMMANDS[following][1:]
            output = invoke(following, run, *extra, code=1).output
            assert "incomplete" in output
            assert f"primaps-pipe {stage}" in output
        before = sign.read_bytes()
        invoke(name, run, *options, "--no-progress")
        if stage != "em":
            # the palette of label maps is set at the end, and noted in their record
            kept, again = (json.loads(text)["seconds"] for text in (before, sign.read_bytes()))
            assert again == kept, "a finished shard was computed again"
        for artefact in ARTEFACTS[stage]:
            if (run / artefact).is_dir():
                assert hash_tree(run / artefact) == hash_tree(finished / artefact), artefact
            else:
                assert (run / artefact).read_bytes() == (finished / artefact).read_bytes()


@pytest.mark.parametrize("stage", ["masks", "em", "evaluate"])
def test_a_stage_before_its_inputs_says_what_to_run(
    stage: str, invoke: Invoke, tmp_path: Path
) -> None:
    name, *options = COMMANDS[stage]
    output = invoke(name, tmp_path / "none", *options, code=1).output
    assert "primaps-pipe extract" in output
    assert "Traceback" not in output
