"""What the report is made of: figures of every image, names of clusters, pictures that are chosen.

Other names and another gallery make the report anew, and compute nothing.
"""

from __future__ import annotations

import json
import re
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.run.directory import RunDirectory
from pipeline.run.evaluation import open_evaluation
from pipeline.run.ledger import Ledger
from tests.end_to_end.conftest import Invoke, hash_tree, list_times


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def read_page(run: Path) -> str:
    return (run / "report/index.html").read_text(encoding="utf-8")


def test_images_add_up_to_the_scores(finished: Path) -> None:
    metrics = json.loads((finished / "report/metrics.json").read_text())
    rows = pq.read_table(finished / "report/images.parquet").to_pylist()
    assert len(rows) == metrics["images"] == 9
    assert [row["image"] for row in rows] == list(range(9))
    weights = [row["labelled_pixels"] for row in rows]
    for name in ("accuracy", "accuracy_crf"):
        mean = np.average([row[name] for row in rows], weights=weights)
        assert mean == pytest.approx(metrics[name], abs=0.006)
        assert all(0 <= row[name] <= 100 for row in rows)
    assert all(0 < row["miou_crf"] <= 100 for row in rows)
    # the images are of three sizes, and their windows of nearly one
    assert np.mean([row["confidence"] for row in rows]) == pytest.approx(
        metrics["confidence"], abs=1
    )
    assert {row["coverage"] for row in rows} == {100.0}


def test_the_page_shows_the_worst_the_best_and_cutouts(finished: Path) -> None:
    page = read_page(finished)
    assert page.count("data:image/jpeg") >= 9 + 3
    assert re.search(
        r"9 of 9 images: the 3 with the lowest accuracy, the 3 with the highest, "
        r"3 evenly spaced among the others",
        page,
    )
    assert "Cut-outs: the proposals of the cluster that are nearest to its prototype" in page


def test_names_make_the_report_anew_and_nothing_else(run: Path, invoke: Invoke) -> None:
    labels, state = list_times(run / "labels"), hash_tree(run / "state/evaluate/default")
    assert "nothing to do" in invoke("evaluate", run, "--no-progress").output
    (run / "names.yaml").write_text("0: tarmac <b>\n", encoding="utf-8")
    row = json.loads(invoke("status", run, "--json").stdout)[-1]
    assert (row["stage"], row["state"]) == ("report/default", "incomplete"), row["reason"]
    assert row["shards_done"] == row["shards_total"] == 1
    assert "names.yaml is not what the report was made with" in row["reason"]
    output = invoke("evaluate", run, "--no-progress").output
    assert "evaluate/default: fresh, nothing to do" in output
    assert "report/default: 1 of 1 shard to compute" in output
    page = read_page(run)
    assert "tarmac &lt;b&gt;" in page and "tarmac <b>" not in page
    assert list_times(run / "labels") == labels
    assert hash_tree(run / "state/evaluate/default") == state
    rows = json.loads(invoke("status", run, "--json").stdout)
    assert {row["state"] for row in rows} == {"fresh"}
    assert "nothing to do" in invoke("evaluate", run, "--no-progress").output
    invoke("verify", run, "--no-progress")
    described = open_evaluation(RunDirectory(run), "default", None)
    assert described.look().names[0] == "tarmac <b>"
    (run / "names.yaml").write_text("[")
    assert "is not YAML" in json.loads(invoke("status", run, "--json").stdout)[-1]["reason"]
    (run / "names.yaml").unlink()
    invoke("evaluate", run, "--no-progress")
    assert "tarmac" not in read_page(run)


def test_what_the_screen_said_of_dead_classes_is_at_the_top(run: Path, invoke: Invoke) -> None:
    ledger = Ledger(run / "state/em/default")
    record = ledger.read_shard(0)
    assert record is not None
    said = {"usage": [0.9995, 0.0005, 0.0], "warnings": ["em/default: --classes auto took 3."]}
    ledger.commit(replace(record, result={**record.result, **said}))
    invoke("evaluate", run, "--gallery", 0, "--no-progress")
    page = read_page(run)
    top = page[: page.index("What ran")]
    assert "em/default: 2 of 3 classes are hardly used (under 0.1 % of the pixels: 1, 2)" in top
    assert "em/default: --classes auto took 3." in top
    assert "2 clusters hardly used: fit fewer" not in page, "with two of three there is no fewer"


def read_palettes(run: Path) -> set[tuple[tuple[int, ...], ...]]:
    """The colours of the three clusters in the palettes of all label maps."""
    found = set()
    for file in (run / "labels").rglob("*.png"):
        with Image.open(file) as image:
            colours = np.reshape(image.getpalette(), (-1, 3)).tolist()
            assert len(colours) == 256 and colours[255] == [0, 0, 0]
        found.add(tuple(map(tuple, colours[:3])))
    return found


def read_pixels(run: Path) -> list[bytes]:
    files = sorted((run / "labels").rglob("*.png"))
    return [np.asarray(Image.open(file)).tobytes() for file in files]


def test_label_maps_have_the_colours_of_the_report_and_of_exports(
    run: Path, invoke: Invoke, tmp_path: Path
) -> None:
    pixels = read_pixels(run)
    (palette,) = read_palettes(run)
    look = open_evaluation(RunDirectory(run), "default", None).look()
    assert palette == look.colours
    assert all("#{:02x}{:02x}{:02x}".format(*colour) in read_page(run) for colour in palette)
    invoke("export", run, "--format", "mmseg", "--out", tmp_path / "out", "--no-progress")
    classes = json.loads((tmp_path / "out/classes.json").read_text())["classes"]
    assert look.classes is not None
    assert [tuple(classes[label or 0]["colour"]) for label in look.classes] == list(palette)
    # one class of two clusters has one colour, and what is left out none
    (run / "names.yaml").write_text("0: meadow\n2: meadow\n1: ignore\n")
    output = invoke("evaluate", run, "--no-progress").output
    assert "evaluate/default: shards are fresh, the summary is made again" in output
    ((first, second, third),) = read_palettes(run)
    assert first == third == palette[0] and second == (0, 0, 0)
    assert read_pixels(run) == pixels
    assert "nothing to do" in invoke("evaluate", run, "--no-progress").output
    invoke("verify", run, "--no-progress")


def test_a_label_map_that_somebody_has_changed_is_not_repainted(run: Path, invoke: Invoke) -> None:
    file = next((run / "labels").rglob("*.png"))
    edited = bytearray(file.read_bytes())
    # another palette of the same length
    edited[41:44] = bytes(value ^ 255 for value in edited[41:44])
    edited[809:813] = zlib.crc32(edited[37:809]).to_bytes(4)
    file.write_bytes(edited)
    (run / "names.yaml").write_text("0: meadow\n2: meadow\n")
    message = invoke("evaluate", run, "--no-progress", code=1).output
    assert "was changed by hand" in message
    assert file.read_bytes() == edited


def test_a_kill_while_colours_are_changed_loses_nothing(
    run: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "names.yaml").write_text("0: meadow\n2: meadow\n")

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stages.evaluate.stage.repaint_png", kill)
    invoke("evaluate", run, "--no-progress", code=None)
    monkeypatch.undo()
    invoke("evaluate", run, "--no-progress")
    assert len(read_palettes(run)) == 1
    invoke("verify", run, "--no-progress")


@pytest.mark.parametrize(
    ("text", "words"),
    [("- a\n", "does not map clusters"), ("3: sea\n", "names cluster 3"), ("0: [\n", "not YAML")],
)
def test_names_that_are_none_are_refused_before_anything_is_done(
    run: Path, invoke: Invoke, text: str, words: str
) -> None:
    before = hash_tree(run)
    (run / "names.yaml").write_text(text)
    result = invoke("evaluate", run, "--no-progress", "--force", code=1)
    assert words in result.output.replace("\n", " ")
    (run / "names.yaml").unlink()
    assert hash_tree(run) == before


def test_scores_are_told_whenever_something_is_made(run: Path, invoke: Invoke) -> None:
    def evaluate(*options: object) -> list[str]:
        lines = invoke("evaluate", run, *options, "--no-progress").output.splitlines()
        return [line for line in lines if line.startswith("all: accuracy ")]

    assert evaluate() == [], "there is nothing to do"
    (scores,) = evaluate("--force")
    (run / "names.yaml").write_text("0: tarmac\n", encoding="utf-8")
    # the evaluation itself is passed over each time
    assert evaluate() == [scores]
    assert evaluate("--gallery", 2) == [scores]
    (run / "report/index.html").unlink()
    assert evaluate() == [scores]
    assert evaluate() == []
    (run / "report/metrics.json").unlink()
    assert evaluate() == [scores], "said by the evaluation"


def test_another_gallery_computes_nothing(run: Path, invoke: Invoke) -> None:
    labels = list_times(run / "labels")
    output = invoke("evaluate", run, "--gallery", 2, "--no-progress").output
    assert "evaluate/default: fresh, nothing to do" in output
    assert "report/default: 1 shard is stale: gallery 12 -> 2" in output
    assert "2 of 9 images" in read_page(run)
    invoke("evaluate", run, "--gallery", 0, "--no-progress")
    assert ";base64," not in read_page(run)
    assert list_times(run / "labels") == labels


def test_without_proposals_regions_stand_in(run: Path, invoke: Invoke, tmp_path: Path) -> None:
    shutil.rmtree(run / "masks.zarr")
    shutil.rmtree(run / "state/masks")
    fit = ("--classes", 3, "--method", "kmeans", "--name", "plain", "--init-steps", 6)
    invoke("em", run, *fit, "--epochs", 1, "--no-progress")
    invoke("evaluate", run, "--em", "plain", "--crf", "none", "--no-progress")
    page = (run / "report-plain/index.html").read_text(encoding="utf-8")
    assert "connected regions of the labels" in page


def test_damaged_counts_are_found_and_made_again(run: Path, invoke: Invoke) -> None:
    before = hash_tree(run)
    file = run / "state/evaluate/default/images/000001.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    result = invoke("verify", run, "--no-progress", code=1)
    assert "images/000001.parquet has other bytes" in result.output.replace("\n", " ")
    invoke("verify", run, "--repair", "--no-progress")
    after = hash_tree(run)
    different = {name for name in before if before[name] != after.get(name)}
    # how long it took, and the name of the copied run
    records = {"state/evaluate/default/stage.json", "state/evaluate/default/shards/000001.json"}
    assert different <= {*records, "report/index.html"}
    file.unlink()
    output = invoke("evaluate", run, "--no-progress").output
    assert "what 1 finished shard wrote is gone" in output.replace("\n", " ")
    assert file.is_file()


def test_shards_that_an_earlier_version_counted_are_counted_anew(run: Path, invoke: Invoke) -> None:
    before, labels = (run / "report/metrics.json").read_bytes(), hash_tree(run / "labels")
    ledger = Ledger(run / "state/evaluate/default")
    record = ledger.read_shard(1)
    assert record is not None
    earlier = {name: record.result[name] for name in record.result if name != "label_pixels"}
    ledger.commit(replace(record, result=earlier))
    said = invoke("evaluate", run, "--no-progress").output.replace("\n", " ")
    assert "1 shard is stale: an earlier version counted otherwise" in said
    assert "1 of 3 shards to compute" in said
    assert (run / "report/metrics.json").read_bytes() == before
    assert hash_tree(run / "labels") == labels
    assert "nothing to do" in invoke("evaluate", run, "--no-progress").output


def test_counts_of_shards_that_are_no_more_are_removed(run: Path, invoke: Invoke) -> None:
    stray = run / "state/evaluate/default/images/000099.parquet"
    stray.write_bytes(b"of an earlier evaluation")
    (run / "report/images.parquet").unlink()
    assert "the summary is made again" in invoke("evaluate", run, "--no-progress").output
    assert not stray.exists()


def test_names_of_an_earlier_fit_are_told(run: Path, invoke: Invoke) -> None:
    (run / "names.yaml").write_text("0: sea\n")
    warning = "names carried over to the new em/default: sea ("
    assert warning not in invoke("evaluate", run, "--no-progress").output.replace("\n", " ")
    invoke("em", run, "--seed", 5, "--no-progress")
    assert warning in invoke("evaluate", run, "--no-progress").output.replace("\n", " ")
    assert warning not in invoke("evaluate", run, "--no-progress").output.replace("\n", " ")
