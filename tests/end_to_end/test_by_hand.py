"""What a person has changed in a run is neither written over nor removed, whoever would write."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.run import by_hand
from pipeline.run.directory import RunDirectory, Subject
from pipeline.run.evaluation import Evaluation
from pipeline.run.ledger import Ledger
from stages.evaluate import stage as evaluate_stage
from tests.end_to_end.conftest import Invoke, hash_tree
from tests.end_to_end.test_staleness import make_run, read_status
from tests.scenes import write_scenes

QUIET = "--no-progress"


@pytest.fixture
def run(invoke: Invoke, tmp_path: Path) -> Path:
    """A finished run of six scenes of its own, in two shards."""
    return make_run(tmp_path, invoke)


def paint(run: Path, number: int = 1) -> tuple[Path, bytes]:
    """Correct a label map, as somebody does in an editor that keeps the palette."""
    label = sorted((run / "labels").rglob("*.png"))[number]
    with Image.open(label) as image:
        ids = np.array(image)
        ids[: len(ids) // 2] = 2
        corrected = Image.fromarray(ids)
        corrected.putpalette(image.getpalette() or [])
    corrected.save(label)
    return label, label.read_bytes()


def refuse(run: Path, invoke: Invoke, label: Path, *arguments: object) -> str:
    """Run a command that must refuse, in one sentence, and change nothing that is computed."""
    before = hash_tree(run)
    lines = invoke(*arguments, QUIET, code=1).output.splitlines()
    assert hash_tree(run) == before
    name = label.relative_to(run).as_posix()
    said = [line for line in lines if line.startswith("primaps-pipe: ")]
    assert said == [
        f"primaps-pipe: {name} was changed by hand since evaluate wrote it; to keep it, run "
        f"`primaps-pipe correct {run} --from {run / 'labels'}`; to drop it, run "
        f"`primaps-pipe evaluate {run} --force`."
    ]
    return "\n".join(lines)


def read_names(run: Path) -> tuple[str, ...]:
    """The names of the numbers in the label maps."""
    directory = RunDirectory(run)
    record = Ledger(directory.state("evaluate/default")).read_stage()
    assert record is not None
    return Evaluation(directory, Subject("em", "default"), record).name_clusters()


def test_evaluate_stops_before_a_corrected_map(run: Path, invoke: Invoke) -> None:
    before = hash_tree(run / "labels")
    label, _ = paint(run)
    assert "is gone" not in refuse(run, invoke, label, "evaluate", run)
    invoke("evaluate", run, "--dry-run", QUIET)
    # kept
    said = np.asarray(Image.open(label))
    took = invoke("correct", run, "--from", run / "labels", QUIET).output
    assert f"took up {said.size} pixels of 1 image, into {run / 'corrections'}" in took
    assert "1 label map changed by hand" in took
    names = yaml.safe_load((run / "corrections/classes.yaml").read_text())
    kept = np.asarray(Image.open(run / "corrections/maps" / label.relative_to(run / "labels")))
    clusters = read_names(run)
    assert [names[n] for n in kept[::9, ::9].flat] == [clusters[n] for n in said[::9, ::9].flat]
    assert "nothing new" in invoke("correct", run, "--from", run / "labels", QUIET).output
    invoke("evaluate", run, QUIET)
    assert {*hash_tree(run / "labels")} == {*before}
    now = read_names(run)
    assert [now[n] for n in np.asarray(Image.open(label)).flat] == [names[n] for n in kept.flat]
    shutil.rmtree(run / "corrections")
    invoke("evaluate", run, QUIET)
    assert hash_tree(run / "labels") == before
    # dropped
    paint(run)
    assert "was changed by hand, and is dropped" in invoke("evaluate", run, "--force", QUIET).output
    assert hash_tree(run / "labels") == before
    assert not (run / "state/evaluate/default/maps").exists()


def test_a_map_that_is_called_like_a_confidence_is_a_map(invoke: Invoke, tmp_path: Path) -> None:
    write_scenes(tmp_path / "data", 6)
    for kind in ("photographs", "labels"):
        scene = tmp_path / "data" / kind / "part 0/scene 0.png"
        shutil.copy(scene, scene.with_name("scene 0.confidence.png"))
    run = make_run(tmp_path, invoke)
    maps = sorted((run / "labels").rglob("scene 0*.png"))
    assert [map_.name for map_ in maps] == ["scene 0.confidence.png", "scene 0.png"]
    old = [Image.open(map_).getpalette() for map_ in maps]
    (run / "corrections").mkdir()
    (run / "corrections/names.yaml").write_text("0: ignore\n")
    invoke("evaluate", run, QUIET)
    new = [Image.open(map_).getpalette() for map_ in maps]
    assert new[0] == new[1] != old[0], "it has the colours of the report"
    label, content = paint(run, 0)
    assert label == maps[0]
    name = label.relative_to(run).as_posix()
    assert f"{name} was changed by hand" in read_status(run, invoke)["evaluate/default"][1]
    assert f"{name} was changed by hand" in invoke("verify", run, code=1).output
    refuse(run, invoke, label, "evaluate", run, "--crf", "numba")
    assert label.read_bytes() == content
    took = invoke("correct", run, "--from", run / "labels", QUIET).output
    assert "1 label map changed by hand" in took


def test_a_change_of_the_same_size_is_noticed_before_it_is_touched(
    run: Path, invoke: Invoke
) -> None:
    label = next((run / "labels").rglob("*.png"))
    size = label.stat().st_size
    with Image.open(label) as image:
        image.load()
    image.putpalette([7] * 768)
    image.save(label)
    assert label.stat().st_size == size
    assert "nothing to do" in invoke("evaluate", run, QUIET).output
    refuse(run, invoke, label, "evaluate", run, "--crf", "numba")


@pytest.mark.parametrize("change", ["a fit", "a setting", "an image less"])
def test_whatever_makes_evaluate_run(
    run: Path, invoke: Invoke, tmp_path: Path, change: str
) -> None:
    label, content = paint(run, 0)
    options: list[object] = []
    if change == "a fit":
        invoke("em", run, "--seed", 7, QUIET)
    elif change == "a setting":
        options = ["--cosine-gain", 3]
    else:
        # its label map would be removed as that of an image that is gone
        (tmp_path / "data/photographs" / label.relative_to(run / "labels/all")).unlink()
        for stage in ("extract", "masks", "em"):
            invoke(stage, run, QUIET)
    refuse(run, invoke, label, "evaluate", run, *options)
    assert label.read_bytes() == content


def test_status_and_verify_say_so(run: Path, invoke: Invoke) -> None:
    label, content = paint(run)
    name = label.relative_to(run).as_posix()
    state, reason = read_status(run, invoke)["evaluate/default"]
    assert state == "stale"
    assert reason.startswith(f"{name} was changed by hand since evaluate wrote it; to keep it")
    assert "gone" not in reason
    last = invoke("status", run).output.splitlines()[-1]
    assert last.startswith("next: primaps-pipe correct ") and last.removeprefix("next: ") in reason
    output = invoke("verify", run, code=1).output
    assert f"{name} was changed by hand" in output
    # another map of the same shard is damaged, and so are the proposals
    other = sorted((run / "labels").rglob("*.png"))[0]
    for file in (other, run / "masks.zarr/proposals/c/0/0/0"):
        broken = bytearray(file.read_bytes())
        broken[len(broken) // 2] ^= 1
        file.write_bytes(broken)
    proposals = hash_tree(run / "masks.zarr")
    output = invoke("verify", run, "--repair", QUIET, code=1).output
    assert f"primaps-pipe: {name} was changed by hand since evaluate wrote it" in output
    assert label.read_bytes() == content
    assert hash_tree(run / "masks.zarr") != proposals
    label.unlink()
    assert invoke("verify", run, "--repair", QUIET).output.endswith("all as written\n")


def test_a_cut_map_is_still_damage(run: Path, invoke: Invoke) -> None:
    before = hash_tree(run / "labels")
    label = next((run / "labels").rglob("*.png"))
    label.write_bytes(label.read_bytes()[:-20])
    assert "is gone or cut" in read_status(run, invoke)["evaluate/default"][1]
    invoke("evaluate", run, QUIET)
    assert hash_tree(run / "labels") == before


def test_a_picture_of_ones_own_among_the_maps_stays(run: Path, invoke: Invoke) -> None:
    mine = run / "labels/all/part 0/scene 0 (mine).png"
    shutil.copy(run / "labels/all/part 0/scene 0.png", mine)
    content = mine.read_bytes()
    output = invoke("evaluate", run, "--force", QUIET).output
    assert "1 PNG" in output
    assert "scene 0 (mine).png" in output
    assert mine.read_bytes() == content


@pytest.fixture
def killed(run: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Kill an evaluation of other labels when a shard has written its maps, but for its record."""

    def kill() -> None:
        def die(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(evaluate_stage, "encode_counts", die)
            invoke("evaluate", run, "--crf", "numba", QUIET, code=130)

    return kill


def test_maps_of_a_killed_evaluation_are_no_persons(
    run: Path, invoke: Invoke, killed: Callable[[], None]
) -> None:
    before = hash_tree(run / "labels")
    killed()
    assert hash_tree(run / "labels") != before
    invoke("evaluate", run, "--crf", "none", QUIET)
    assert hash_tree(run / "labels") == before


def test_a_correction_after_a_kill_is_a_persons(
    run: Path, invoke: Invoke, killed: Callable[[], None]
) -> None:
    killed()
    label, content = paint(run, 0)
    message = invoke("evaluate", run, "--crf", "none", QUIET, code=1).output
    assert "was changed by hand" in message
    assert label.read_bytes() == content


def test_a_correction_while_evaluate_is_at_work_is_a_persons(
    run: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, painted = by_hand.guard_maps, []

    def paint_after(*arguments: object, **options: object) -> None:
        guard(*arguments, **options)  # type: ignore[arg-type]
        painted.append(paint(run, 0))

    with monkeypatch.context() as patch:
        patch.setattr(evaluate_stage, "guard_maps", paint_after)
        message = invoke("evaluate", run, "--crf", "numba", QUIET, code=1).output
    assert "was changed by hand" in message
    label, content = painted[0]
    assert label.read_bytes() == content


def test_records_that_are_lost_make_no_map_a_persons(run: Path, invoke: Invoke) -> None:
    before = hash_tree(run / "labels")
    shutil.rmtree(run / "state/evaluate/default/shards")
    invoke("evaluate", run, QUIET)
    assert hash_tree(run / "labels") == before


def test_a_map_of_clusters_without_a_name_stays_until_they_have_one(
    run: Path, invoke: Invoke
) -> None:
    # nothing but photographs
    shutil.rmtree(run.parent / "data/labels")
    bare, photographs = run.parent / "bare", run.parent / "data/photographs"
    options = ("--dataset", "folder", "--root", photographs, "--backbone", "handcrafted")
    invoke("extract", bare, *options, "--size", 32, QUIET)
    for stage in ("masks", "em --classes 3 --epochs 3 --init-steps 6", "evaluate --crf none"):
        verb, *more = stage.split()
        invoke(verb, bare, *more, QUIET)
    label, content = paint(bare)
    output = invoke("correct", bare, "--from", label, QUIET, code=1).output
    assert "1 file, named above, could not be taken up" in output
    names = bare / "corrections/names.yaml"
    assert (
        "which have no name in" in output and "name them first" in output and str(names) in output
    )
    assert label.read_bytes() == content and not (bare / "corrections/maps").exists()
    names.parent.mkdir(exist_ok=True)
    names.write_text("0: sky\n1: field\n2: road\n")
    invoke("correct", bare, "--from", label, QUIET)
    assert (
        "1 label map changed by hand"
        in invoke("correct", bare, "--from", label.parent, "--dry-run", QUIET).output
        or not label.exists()
    )
    invoke("evaluate", bare, QUIET)
    assert label.is_file()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.yaml", "road"),
        ("points.csv", "x,y\n"),
        ("points.csv", "split,image,x,y,x1,y1,class\nall,nowhere,1,1,,,sky\n"),
        ("maps/all/part 1/scene 1.png", "no image"),
    ],
)
def test_a_wrong_file_of_corrections_is_one_sentence(
    run: Path, invoke: Invoke, name: str, text: str
) -> None:
    file = run / "corrections" / name
    file.parent.mkdir(parents=True)
    file.write_text(text)
    (run / "corrections/classes.yaml").touch()
    before = hash_tree(run)
    lines = invoke("evaluate", run, QUIET, code=1).output.splitlines()
    said = [line for line in lines if line.startswith("primaps-pipe: ")]
    assert len(said) == 1 and str(file) in said[0], lines
    assert hash_tree(run / "labels") == {
        k.removeprefix("labels/"): v for k, v in before.items() if k.startswith("labels/")
    }
    assert file.read_text() == text
    assert read_status(run, invoke)["evaluate/default"][0] in ("stale", "incomplete")
