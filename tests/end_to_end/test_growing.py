"""A folder that grows: photographs are added, and only they cost anything."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import Run
from pipeline.run.corrections import Corrections
from pipeline.run.directory import RunDirectory
from tests.end_to_end.conftest import Invoke, draw_scene, hash_tree, write_scenes
from tests.end_to_end.test_staleness import read_status

QUIET = "--no-progress"
NAMES = "0: sky\n1: land\n2: land\n3: road\n"
# before all others in the alphabet
NEW = ("a new 0", "a new 1", "a new 2")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, invoke: Invoke) -> Path:
    """A run of eight scenes in four shards, named, with a painted map."""
    folder = tmp_path_factory.mktemp("growing")
    write_scenes(folder / "data", 8, width=100)
    run, root = folder / "run", folder / "data/photographs"
    options = ("--dataset", "folder", "--backbone", "handcrafted", "--size", 32)
    invoke("extract", run, "--root", root, *options, "--frame", "centre", "--shard-size", 2, QUIET)
    invoke("masks", run, "--crf", "none", QUIET)
    invoke("em", run, "--method", "robust", "--classes", 3, "--clusters", 4, QUIET)
    (run / "corrections").mkdir()
    (run / "corrections/names.yaml").write_text(NAMES)
    image = Run(run).find_image("part 0/scene 0")
    said = np.zeros((image.height, image.width), np.uint8)
    Corrections(RunDirectory(run)).write_map(image, said, ["sky"])
    invoke("evaluate", run, "--crf", "none", QUIET)
    return run


@pytest.fixture
def run(made: Path) -> Path:
    """The same, and three photographs more."""
    grown = made.parent / "grown"
    if not grown.exists():
        shutil.copytree(made, grown)
        for number, name in enumerate(NEW):
            pixels, _ = draw_scene(100 + number, 100, 100)
            Image.fromarray(pixels).save(made.parent / f"data/photographs/{name}.png")
    return grown


def hash_shards(run: Path) -> dict[str, str]:
    """Return the shards of all arrays but the fit's."""
    stores = ("features.zarr", "masks.zarr")
    found = {f"{s}/{n}": d for s in stores for n, d in hash_tree(run / s).items()}
    return {name: digest for name, digest in found.items() if "/c/" in name}


def test_only_what_was_added_is_computed_and_shown_first(
    run: Path, made: Path, invoke: Invoke
) -> None:
    shards, labels = hash_shards(run), hash_tree(run / "labels")
    fit, said = hash_tree(run / "em.zarr"), hash_tree(run / "corrections")
    # three photographs are two shards: none of the four that there are
    for stage in ("extract", "masks"):
        assert f"{stage}: 2 of 6" in invoke(stage, run, QUIET).output
    after = hash_shards(run)
    assert len(after) > len(shards)
    assert {name: after[name] for name in shards} == shards
    invoke("em", run, "--keep", QUIET)
    invoke("evaluate", run, QUIET)
    assert hash_tree(run / "em.zarr") == fit
    assert hash_tree(run / "corrections") == said
    now = hash_tree(run / "labels")
    assert now.keys() - labels.keys() == {f"all/{name}.png" for name in NEW}
    assert {name: now[name] for name in labels} == labels
    assert {state for state, _ in read_status(run, invoke).values()} == {"fresh"}
    assert "all as written" in invoke("verify", run).output
    # the same classes, by the same names
    assert set(Run(run).metrics()["label_names"]) == {"sky", "land", "road"}
    result = invoke("select", run, "--images", 5, "--json")
    chosen = [each["image"] for each in json.loads(result.stdout)["chosen"]]
    assert set(chosen[:3]) == set(NEW)
    assert len(set(chosen)) == 5
    assert "part 0/scene 0" not in chosen  # it is painted
    assert "first 3 of what was added since the fit was made" in result.output
    invoke("extract", run, QUIET)
    assert "nothing to do" in invoke("em", run, QUIET).output
    # a fit anew has seen them
    invoke("em", run, "--no-keep", QUIET)
    assert "was added" not in invoke("select", run, "--images", 5).output


def test_an_order_is_kept_from_another_root(made: Path, invoke: Invoke, tmp_path: Path) -> None:
    run, root = tmp_path / "run", tmp_path / "photographs"
    shutil.copytree(made, run)
    shutil.copytree(made.parent / "data/photographs", root)
    for name in NEW:
        (root / f"{name}.png").unlink(missing_ok=True)
    pixels, _ = draw_scene(100, 100, 100)
    Image.fromarray(pixels).save(root / "a first.png")
    invoke("extract", run, "--root", root, QUIET)
    shards = hash_shards(run)
    ids = [image.id for image in Run(run).images]
    assert ids[-1] == "a first"
    assert ids[:-1] == sorted(ids[:-1])
    moved = tmp_path / "moved"
    shutil.move(root, moved)
    invoke("extract", run, "--root", moved, QUIET)
    assert hash_shards(run) == shards
    assert [image.id for image in Run(run).images] == ids


def test_the_list_of_a_growing_folder_is_for_another_tool(
    run: Path, invoke: Invoke, tmp_path: Path
) -> None:
    invoke("extract", run, QUIET)
    invoke("masks", run, QUIET)
    invoke("select", run, "--images", 2, "--out", tmp_path / "out", QUIET)
    rows = list(csv.DictReader((tmp_path / "out/images.csv").open()))
    assert len(rows) == 2
    assert all((tmp_path / "out" / row["file"]).is_file() for row in rows)
