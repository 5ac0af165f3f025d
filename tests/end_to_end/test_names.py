"""Names belong to a fit: they follow their clusters to the next one, or the fit is kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.evaluate import stage as evaluate_stage
from tests.end_to_end.conftest import FAST_EM, Invoke, hash_tree
from tests.end_to_end.test_staleness import make_run, read_status

QUIET = "--no-progress"
TEXT = "# mine\n0: first\n1: second\n2: third\n"
OLD = {0: "first", 1: "second", 2: "third"}


@pytest.fixture
def run(invoke: Invoke, tmp_path: Path) -> Path:
    """A finished run of six scenes, whose three clusters have names, and then a scene more."""
    run = make_run(tmp_path, invoke)
    (run / "names.yaml").write_text(TEXT)
    invoke("evaluate", run, QUIET)
    folder = tmp_path / "data/photographs/part 0"
    shutil.copy(folder / "scene 0.png", folder / "another.png")
    for stage in ("extract", "masks"):
        invoke(stage, run, QUIET)
    return run


def read_maps(run: Path) -> dict[str, np.ndarray]:
    labels = run / "labels/all"
    return {str(p.relative_to(labels)): np.array(Image.open(p)) for p in labels.rglob("*.png")}


def expect(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> dict[int, str]:
    """Say by hand which new cluster has which name: half of either lies in the other."""
    names = {}
    for old, name in OLD.items():
        for new in range(10):
            both = sum(((before[k] == old) & (after[k] == new)).sum() for k in before)
            first = sum((before[k] == old).sum() for k in before)
            second = sum((after[k] == new).sum() for k in before)
            if both and 2 * both > max(first, second):
                names[new] = name
    return names


def read_names(run: Path) -> dict[int, str]:
    lines = (run / "names.yaml").read_text().splitlines()
    pairs = (line.split(": ") for line in lines if not line.startswith("#"))
    return {int(number): name for number, name in pairs}


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("seed", [3, 5])
def test_names_follow_their_clusters(
    run: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, seed: int, killed: bool
) -> None:
    before = read_maps(run)
    invoke("em", run, "--seed", seed, "--classes", 4, QUIET)
    if killed:

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(evaluate_stage, "encode_counts", die)
            invoke("evaluate", run, QUIET, code=130)
    output = invoke("evaluate", run, QUIET).output
    wanted = expect(before, read_maps(run))
    assert wanted  # or the test shows nothing
    assert read_names(run) == wanted
    for name in wanted.values():
        assert name in output.partition("names carried over to the new em/default: ")[2]
    for old, name in OLD.items():
        if name not in wanted.values():
            assert f"{name} ({old})" in output.partition("names in doubt")[2]
            assert (
                f"# in doubt: {name}, which was cluster {old}" in (run / "names.yaml").read_text()
            )
    if wanted != OLD:
        (kept,) = run.glob("names.yaml.*")
        assert kept.read_text() == TEXT
    # said once, and nothing moves any more
    now = (run / "names.yaml").read_text()
    assert "carried" not in invoke("evaluate", run, "--force", QUIET).output
    assert (run / "names.yaml").read_text() == now
    assert "all as written" in invoke("verify", run).output


def test_names_of_clusters_that_there_are_no_more(run: Path, invoke: Invoke) -> None:
    before = read_maps(run)
    invoke("em", run, "--classes", 2, QUIET)
    output = invoke("evaluate", run, QUIET).output
    assert read_names(run) == expect(before, read_maps(run))
    assert "names in doubt" in output


def test_names_without_the_old_clusters_are_kept_and_doubted(run: Path, invoke: Invoke) -> None:
    for file in (run / "state/evaluate/default").glob("names-*.npz"):
        file.unlink()
    invoke("em", run, QUIET)
    output = invoke("evaluate", run, QUIET).output
    assert "names in doubt" in output
    assert read_names(run) == {}
    assert next(run.glob("names.yaml.*")).read_text() == TEXT


def test_em_keep_labels_more_photographs_by_the_same_clusters(run: Path, invoke: Invoke) -> None:
    before, fit = hash_tree(run / "labels"), hash_tree(run / "em.zarr")
    assert read_status(run, invoke)["em/default"][0] == "stale"
    invoke("em", run, "--keep", QUIET)
    assert hash_tree(run / "em.zarr") == fit
    assert read_status(run, invoke)["em/default"][0] == "fresh"
    output = invoke("evaluate", run, QUIET).output
    assert "names" not in output
    after = hash_tree(run / "labels")
    assert after.keys() - before.keys() == {"all/part 0/another.png"}
    assert {name: after[name] for name in before} == before
    assert (run / "names.yaml").read_text() == TEXT
    # remembered, and neither given up without a word
    assert "nothing to do" in invoke("em", run, QUIET).output
    message = invoke("em", run, "--force", QUIET, code=2).output
    assert "would be fitted anew (--force)" in message
    message = invoke("em", run, "--classes", 4, QUIET, code=2).output
    assert "em/default cannot stay as it is (classes 3 -> 4)" in message
    assert hash_tree(run / "em.zarr") == fit
    invoke("em", run, "--no-keep", QUIET)
    assert hash_tree(run / "em.zarr") != fit


def test_em_keep_needs_a_fit_of_the_same_features(run: Path, invoke: Invoke) -> None:
    message = invoke("em", run, "--keep", "--name", "b", "--classes", 3, QUIET, code=2).output
    assert "there is no finished fit em/b to keep" in message
    invoke("extract", run, "--size", 40, QUIET)
    invoke("masks", run, QUIET)
    message = invoke("em", run, "--keep", *FAST_EM, QUIET, code=2).output
    assert "em/default cannot stay as it is (the features have changed)" in message
