"""Runs of a dataset of one's own (a YAML, a list, a folder of Hugging Face), and its changes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from pipeline.run.directory import RunDirectory
from pipeline.run.manifest import read_manifest
from tests.end_to_end.conftest import FAST_EM, Invoke, draw_scene, hash_tree

DEFINITION = """
name: scenes
images: "photographs/*/*.png"
labels: "labels/*/*.png"
classes:
  - {name: sky, ids: 0, colour: [1, 2, 3]}
  - {name: field, ids: 1}
  - {name: road, ids: 2}
"""
QUICK = ("--backbone", "handcrafted", "--size", 32, "--no-progress")


@pytest.fixture
def definition(tmp_path: Path) -> Path:
    path = tmp_path / "scenes.yaml"
    path.write_text(DEFINITION)
    return path


def finish(run: Path, invoke: Invoke) -> str:
    """Run what follows extract; return what evaluate said."""
    invoke("masks", run, "--crf", "none", "--no-progress")
    invoke("em", run, "--classes", 3, *FAST_EM, "--no-progress")
    return invoke("evaluate", run, "--crf", "none", "--no-progress").output


def read_states(run: Path, invoke: Invoke) -> dict[str, tuple[str, str]]:
    """Return the state of every stage and the reason."""
    rows = json.loads(invoke("status", run, "--json").stdout)
    return {row["stage"]: (row["state"], row["reason"]) for row in rows}


def read_metrics(run: Path) -> dict[str, object]:
    """Return what the evaluation found."""
    metrics: dict[str, object] = json.loads((run / "report" / "metrics.json").read_text())
    return metrics


def test_a_definition_changes(
    invoke: Invoke, scenes: Path, definition: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    invoke("extract", run, "--dataset", definition, "--root", scenes, *QUICK)
    finish(run, invoke)
    kept = read_manifest(RunDirectory(run)).open_dataset()
    assert kept.class_names() == ("sky", "field", "road")
    assert kept.palette[0] == (1, 2, 3)
    assert all(state == "fresh" for state, _ in read_states(run, invoke).values())
    scores = read_metrics(run)

    # another meaning of ids: the features stay, the scores do not
    definition.write_text(
        DEFINITION.replace("ids: 1}", "ids: [1, 2]}").replace("ids: 2}", "ids: 3}")
    )
    states = read_states(run, invoke)
    assert [states[key][0] for key in ("extract", "masks", "em/default")] == ["fresh"] * 3
    state, reason = states["evaluate/default"]
    assert state == "stale" and "ids of class 1 [1] -> [1, 2]" in reason
    said = invoke("evaluate", run, "--no-progress").output
    assert "ids of class 1 [1] -> [1, 2]" in said and "run extract" in said
    assert read_metrics(run) == scores, "until extract is run again, the kept definition holds"
    before = hash_tree(run / "features.zarr")
    said = invoke("extract", run, "--no-progress").output
    assert "definition of the dataset has changed: ids of class 1" in said
    assert "to compute" not in said and hash_tree(run / "features.zarr") == before
    said = invoke("masks", run, "--no-progress").output + invoke("em", run, "--no-progress").output
    assert "to compute" not in said
    said = invoke("evaluate", run, "--no-progress").output
    assert "the dataset's classes have changed" in said
    assert read_metrics(run) != scores
    assert all(state == "fresh" for state, _ in read_states(run, invoke).values())

    # other names: nothing but the report is made again, and it has them
    definition.write_text(definition.read_text().replace("name: sky", "name: heaven"))
    assert read_states(run, invoke)["evaluate/default"][0] == "stale"
    invoke("extract", run, "--no-progress")
    said = invoke("evaluate", run, "--no-progress").output
    computed = [line for line in said.splitlines() if "to compute" in line]
    assert all(line.startswith("report/") for line in computed)
    assert "heaven" in (run / "report" / "index.html").read_text()
    assert all(state == "fresh" for state, _ in read_states(run, invoke).values())

    # another layout is extract's business
    text = definition.read_text()
    definition.write_text(text.replace("photographs/*/*.png", "photographs/part*/*.png"))
    state, reason = read_states(run, invoke)["extract"]
    assert state == "stale" and "images [photographs/*/*.png] -> " in reason

    # gone: the run does with what it keeps
    definition.rename(tmp_path / "elsewhere.yaml")
    assert all(state == "fresh" for state, _ in read_states(run, invoke).values())
    said = invoke("extract", run, "--no-progress").output
    assert "is gone; what the run keeps of it is used" in said
    invoke("evaluate", run, "--force", "--no-progress")
    assert all(state == "fresh" for state, _ in read_states(run, invoke).values())


def test_a_definition_that_breaks_stops_extract(
    invoke: Invoke, scenes: Path, definition: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    invoke("extract", run, "--dataset", definition, "--root", scenes, *QUICK)
    definition.write_text(DEFINITION + "imges: x\n")
    result = invoke("extract", run, "--no-progress", code=1)
    assert "unknown key 'imges' (did you mean 'images'?)" in result.output


def test_a_list_needs_no_root(invoke: Invoke, scenes: Path, tmp_path: Path) -> None:
    photographs = sorted((scenes / "photographs").rglob("*.png"))
    lines = ["image,label,split"]
    for number, path in enumerate(photographs):
        label = scenes / "labels" / path.relative_to(scenes / "photographs")
        lines.append(f"{path},{label},{'val' if number < 3 else 'train'}")
    table = tmp_path / "all.csv"
    table.write_text("\n".join(lines))
    run = tmp_path / "run"
    result = invoke("extract", run, "--dataset", f"list:{table}", *QUICK, code=1)
    assert "does not lie below" in result.output and "--root" in result.output
    assert not run.exists()
    invoke("extract", run, "--dataset", f"list:{table}", "--root", scenes, *QUICK)
    finish(run, invoke)
    assert set(read_metrics(run)["splits"]) == {"train", "val"}  # type: ignore[call-overload]
    assert len(list((run / "labels" / "val").rglob("*.png"))) == 3
    table.unlink()
    invoke("evaluate", run, "--force", "--no-progress")

    beside = scenes.parent / f"{scenes.name}.csv"
    beside.write_text(f"image\n{photographs[0].relative_to(scenes.parent)}\n")
    invoke("extract", tmp_path / "second", "--dataset", f"list:{beside}", *QUICK)
    assert read_manifest(RunDirectory(tmp_path / "second")).root == scenes.parent


def test_a_root_is_asked_for(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("extract", tmp_path / "run", "--dataset", "camvid", *QUICK, code=2)
    assert "extract needs --root (setting extract.root)" in result.output
    result = invoke("extract", tmp_path / "run", "--dataset", "camvit", "--root", tmp_path, code=2)
    assert "did you mean 'camvid'" in result.output
    assert not (tmp_path / "run").exists()


def test_a_folder_of_hugging_face(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PRIMAPS_CACHE_DIR", str(tmp_path / "cache"))
    datasets.disable_progress_bars()

    def encode(number: int, part: int) -> dict[str, object]:
        file = io.BytesIO()
        Image.fromarray(draw_scene(number, 60, 48)[part]).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": f"scene {number}.png"}

    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    columns = {
        name: [encode(n, part) for n in range(6)] for part, name in enumerate(("image", "label"))
    }
    datasets.Dataset.from_dict(columns, features=kinds).save_to_disk(tmp_path / "set")
    (tmp_path / "set" / "id2label.json").write_text('{"0": "sky", "1": "field", "2": "road"}')
    run = tmp_path / "run"
    said = invoke("extract", run, "--dataset", f"huggingface:{tmp_path / 'set'}", *QUICK).output
    assert "images are unpacked into" in said and "6 images" in said
    said = finish(run, invoke)
    manifest = read_manifest(RunDirectory(run))
    assert manifest.open_dataset().class_names() == ("sky", "field", "road")
    assert (tmp_path / "cache") in manifest.root.parents
    again = invoke("extract", run, "--no-progress").output
    assert "unpacked" not in again and "nothing to do" in again
    (tmp_path / "set").rename(tmp_path / "moved")
    assert "is gone" in invoke("extract", run, "--no-progress").output
    assert all(state == "fresh" for state, _ in read_states(run, invoke).values())
