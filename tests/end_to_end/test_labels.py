"""Label maps as tools write them: what no score counts is told, at once by extract, too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.conftest import FAST_EM, Invoke, draw_scene

COLOURS = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)
COUNT = 4


@pytest.fixture(scope="module")
def run(invoke: Invoke, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on four scenes, with a fit, and label maps that are right."""
    folder = tmp_path_factory.mktemp("labels")
    write(folder, lambda ids: ids)
    for number in range(COUNT):
        Image.fromarray(draw_scene(number, 96, 64)[0]).save(folder / f"photographs/{number}.png")
    extract(folder, invoke)
    invoke("masks", folder / "run", "--crf", "none", "--no-progress")
    invoke("em", folder / "run", "--classes", 3, *FAST_EM, "--no-progress")
    return folder


def write(folder: Path, change: object, names: str = "") -> None:
    """Write label maps, changed, and the names of classes."""
    for name in ("photographs", "labels"):
        (folder / name).mkdir(exist_ok=True)
    for number in range(COUNT):
        ids = draw_scene(number, 96, 64)[1]
        Image.fromarray(change(ids)).save(folder / f"labels/{number}.png")  # type: ignore[operator]
    (folder / "labels" / "classes.txt").unlink(missing_ok=True)
    if names:
        (folder / "labels" / "classes.txt").write_text(names)


def extract(folder: Path, invoke: Invoke, *more: object) -> str:
    """List the images, and return what was said of their label maps."""
    where = more or ("--dataset", "folder", "--root", folder / "photographs")
    labels = ("--forget",) if more else ("--labels", folder / "labels")
    options = ("--backbone", "handcrafted", "--size", 32, "--no-progress")
    return " ".join(invoke("extract", folder / "run", *where, *labels, *options).output.split())


def evaluate(folder: Path, invoke: Invoke) -> tuple[str, dict[str, object], str]:
    """Score; return what was said, the figures, and the report."""
    output = invoke("evaluate", folder / "run", "--crf", "none", "--no-progress").output
    metrics = json.loads((folder / "run/report/metrics.json").read_text())
    page = (folder / "run/report/index.html").read_text()
    return " ".join(output.split()), metrics["splits"]["all"], " ".join(page.split())


def test_what_is_right_needs_no_word(run: Path, invoke: Invoke) -> None:
    write(run, lambda ids: ids)
    assert "label map" not in extract(run, invoke)
    said, block, _ = evaluate(run, invoke)
    assert "label pixels" not in said and block["refused"] is None
    assert block["accuracy"] is not None


@pytest.mark.parametrize(
    ("change", "names", "told"),
    [
        (lambda ids: np.array([0, 127, 255], np.uint8)[ids], "", "the greys 0, 127, 255"),
        (lambda ids: ((ids == 1) * 255).astype(np.uint8), "", "the greys 0, 255"),
        (lambda ids: ids, "sky\nfield\n", "values that no class has: 2 ("),
        (lambda ids: (ids.astype(np.uint16) + 7) * 1000, "", "values that no class has: "),
    ],
    ids=["greys", "binary", "beyond the list", "16 bit"],
)
def test_labels_that_mean_something_else_are_refused(
    run: Path, invoke: Invoke, change: object, names: str, told: str
) -> None:
    write(run, change, names)
    said = extract(run, invoke)
    assert "there would be no score, of 4 label maps looked at" in said and told in said
    assert "dataset YAML, `classes: [{name: ..., ids: " in said
    said, block, page = evaluate(run, invoke)
    assert "all is not scored: " in said and told in said
    assert "all: 4 images without a score" in said
    assert block["accuracy"] is None and told in str(block["refused"])
    assert "all is not scored" in page and told in page


def test_a_few_values_of_no_class_are_told_and_left_out(run: Path, invoke: Invoke) -> None:
    def stray(ids: np.ndarray) -> np.ndarray:
        changed = ids.copy()
        changed[0, :5] = 9
        changed[1, :7] = 255
        return changed

    write(run, stray, "sky\nfield\nroad\n")
    told = "have values that no class has: 9 (20 pixels)"
    assert told in extract(run, invoke)
    said, block, page = evaluate(run, invoke)
    assert f"of {4 * 96 * 64} label pixels 20 (0.1 %) {told}" in said and told in page
    assert "28 (0.1 %) are ignored: 255 (28 pixels)" in said
    assert block["accuracy"] is not None and block["refused"] is None
    pixels = block["label_pixels"]
    assert isinstance(pixels, dict)
    counted = [sum(pixels[kind].values()) for kind in ("scored", "ignored", "unknown")]
    assert pixels["pixels"] == pixels["outside"] + sum(counted) == 4 * 96 * 64


def test_colours_are_refused_with_the_way_or_read(run: Path, invoke: Invoke) -> None:
    write(run, lambda ids: ids)
    extract(run, invoke)
    expected = evaluate(run, invoke)[1]
    write(run, lambda ids: COLOURS[ids])
    said = extract(run, invoke)
    assert "of 4 label maps looked at, 4 cannot be scored" in said
    assert '`classes: [{name: ..., colour: "#000000"}' in said
    said, block, _ = evaluate(run, invoke)
    assert "none of its label maps can be read" in said and block["accuracy"] is None
    definition = run / "scenes.yaml"
    definition.write_text(
        'name: scenes\nimages: "photographs/*.png"\nlabels: "labels/*.png"\nclasses:\n'
        '  - {name: sky, colour: "#000000"}\n  - {name: field, colour: [128, 0, 0]}\n'
        '  - {name: road, colour: "#008000"}\n'
    )
    assert "label map" not in extract(run, invoke, "--dataset", definition, "--root", run)
    said, block, _ = evaluate(run, invoke)
    assert block["accuracy"] == expected["accuracy"] and block["miou"] == expected["miou"]


def test_what_is_cut_away_is_counted(run: Path, invoke: Invoke, tmp_path: Path) -> None:
    write(run, lambda ids: ids)
    invoke(
        *("extract", tmp_path / "run", "--dataset", "folder", "--root", run / "photographs"),
        *("--labels", run / "labels", "--backbone", "handcrafted", "--size", 32, "--frame"),
        *("centre", "--no-progress"),
    )
    invoke("masks", tmp_path / "run", "--crf", "none", "--no-progress")
    invoke("em", tmp_path / "run", "--classes", 3, *FAST_EM, "--no-progress")
    said = evaluate(tmp_path, invoke)[0]
    # 64 x 64 of 96 x 64
    assert f"of {4 * 96 * 64} label pixels {4 * 32 * 64} (33.3 %) lie outside the windows" in said
