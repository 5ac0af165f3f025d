"""How sure labels are: maps beside them, thresholds, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.run.confidence import find_least
from tests.end_to_end.conftest import Invoke
from tests.end_to_end.test_staleness import make_run

QUIET = "--no-progress"


@pytest.fixture
def run(invoke: Invoke, tmp_path: Path) -> Path:
    """A run of six scenes whose eight clusters are named as two classes."""
    run = make_run(tmp_path, invoke)
    invoke("em", run, "--classes", 2, "--clusters", 8, "--method", "robust", QUIET)
    # names belong to the fit that was evaluated last
    invoke("evaluate", run, QUIET)
    names = "".join(f"{k}: {'even' if k % 2 == 0 else 'odd'}\n" for k in range(8))
    (run / "corrections").mkdir(exist_ok=True)
    (run / "corrections/names.yaml").write_text(names)
    return run


def read(run: Path, suffix: str = "") -> dict[str, np.ndarray]:
    folder = run / "labels"
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*.png")}
    sure = {name: p for name, p in files.items() if name.endswith(".confidence.png")}
    chosen = sure if suffix else {n: p for n, p in files.items() if n not in sure}
    return {n.removesuffix(suffix or ".png"): np.array(Image.open(p)) for n, p in chosen.items()}


def test_confidence_lies_beside_the_labels_and_goes_with_its_option(
    run: Path, invoke: Invoke
) -> None:
    invoke("evaluate", run, QUIET)
    labels = read(run)
    assert not read(run, ".confidence.png")
    output = invoke("evaluate", run, "--confidence", QUIET).output
    assert "did not write" not in output
    again, sure = read(run), read(run, ".confidence.png")
    assert sure.keys() == labels.keys()
    for name, map_ in labels.items():
        np.testing.assert_array_equal(again[name], map_, "labels do not depend on it")
        assert sure[name].dtype == np.uint8
        assert sure[name].shape == map_.shape
    metrics = json.loads((run / "report/metrics.json").read_text())
    levels = metrics["levels"]["pixels"]
    assert sum(levels) == sum(metrics["levels"]["labelled"]), "every pixel has a true class"
    assert 0 <= metrics["calibration"]["floor"] <= 0.5
    assert len(metrics["noise"]["expected"]) == len(metrics["label_names"]) == 2
    page = (run / "report/index.html").read_text()
    assert 'id="certainty"' in page
    invoke("verify", run)
    # without the option they would say how sure other labels are
    invoke("evaluate", run, "--no-confidence", QUIET)
    assert not read(run, ".confidence.png")
    assert 'id="certainty"' not in (run / "report/index.html").read_text()


def test_less_sure_pixels_are_left_out(run: Path, invoke: Invoke, tmp_path: Path) -> None:
    invoke("evaluate", run, "--confidence", QUIET)
    labels, sure = read(run), read(run, ".confidence.png")
    values = np.concatenate([each.ravel() for each in sure.values()])
    share = float(values.max()) / 255
    least = find_least(share)
    out = tmp_path / "out"
    output = invoke(
        "export", run, "--format", "mmseg", "--out", out, "--min-confidence", share, QUIET
    ).output
    assert "sure are 255" in output
    exported = [np.array(Image.open(p)) for p in sorted(out.rglob("ann_dir/**/*.png"))]
    kept = sum(int((each != 255).sum()) for each in exported)
    assert kept == int((values >= least).sum())
    assert 0 < kept < len(values)
    output = invoke("evaluate", run, "--min-confidence", share, QUIET).output
    left = 100 * (1 - kept / len(values))
    assert f"{left:.1f} % of the pixels are less sure than {share:g}, and are 255" in output
    again = read(run)
    for name, map_ in labels.items():
        expected = np.where(sure[name] < least, 255, map_)
        np.testing.assert_array_equal(again[name], expected)


def test_what_a_person_said_is_certain(run: Path, invoke: Invoke) -> None:
    from pipeline.run.corrections import NOT_SAID, Corrections
    from pipeline.run.directory import RunDirectory
    from pipeline.run.manifest import read_manifest

    directory = RunDirectory(run)
    image = read_manifest(directory).images[0]
    said = np.full((image.height, image.width), NOT_SAID, np.uint8)
    said[:5] = 0
    Corrections(directory).write_map(image, said, ["odd"])
    invoke("evaluate", run, "--min-confidence", 1, QUIET)
    name = f"{image.split}/{image.id}"
    labels, sure = read(run)[name], read(run, ".confidence.png")[name]
    assert (sure[:5] == 255).all()
    assert (labels[:5] == 1).all()
    # what is said of the windows' coarser pixels reaches a little further
    assert (labels[10:] == 255).all(), "nothing else is as sure"


def test_a_changed_confidence_is_a_damage_and_no_work_of_a_person(
    run: Path, invoke: Invoke
) -> None:
    invoke("evaluate", run, "--confidence", QUIET)
    before = {p: p.read_bytes() for p in (run / "labels").rglob("*.confidence.png")}
    first, second, *_ = sorted(before)
    shutil.copy(second, first)
    assert "by hand" not in invoke("verify", run, code=1).output
    invoke("verify", run, "--repair", QUIET)
    assert first.read_bytes() == before[first]


@pytest.mark.parametrize("option", ["--confidence", "--min-confidence=0.5"])
def test_a_confidence_that_means_nothing_is_refused(run: Path, invoke: Invoke, option: str) -> None:
    (run / "corrections/names.yaml").unlink()
    output = invoke("evaluate", run, option, QUIET, code=2).output
    assert "nothing says how sure em/default is" in output
    assert "--clusters auto" in output


def test_an_export_by_confidence_needs_one(run: Path, invoke: Invoke, tmp_path: Path) -> None:
    invoke("evaluate", run, QUIET)
    words = ("export", run, "--out", tmp_path / "out", "--min-confidence", 0.5, "--format")
    output = invoke(*words, "mmseg", code=2).output
    assert "was evaluated without confidence" in output
    assert f"evaluate {run} --confidence`" in output
    assert "writes no label maps" in invoke(*words, "prototypes", code=2).output
