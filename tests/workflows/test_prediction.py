"""New images labelled with a file of prototypes."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline.errors import DatasetError, RunError, UsageError, WeightsError
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from stages.artefacts import open_artefacts
from tests.scenes import FAST_EM, Invoke, draw_scene, list_times
from workflows import prediction
from workflows.export.job import export_run
from workflows.prediction import predict_folder

MODEL = "test_vit"
Predict = Callable[..., list[str]]


def call_export(run: Path, out: Path, **options: str) -> Path:
    export_run(RunDirectory(run), "prototypes", out, screen=Screen(progress=False), **options)  # type: ignore[arg-type]
    return out


@pytest.fixture(scope="module")
def prototypes(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return call_export(finished, tmp_path_factory.mktemp("prototypes") / "scenes.safetensors")


@pytest.fixture
def photographs(scenes: Path, tmp_path: Path) -> Path:
    """A copy of the scenes that a test may change."""
    return Path(shutil.copytree(scenes / "photographs", tmp_path / "photo graphs"))


@pytest.fixture
def predict(prototypes: Path) -> Predict:
    def call(images: Path, out: Path, **options: object) -> list[str]:
        given = {
            "prototypes": prototypes,
            "weights": None,
            "crf": "auto",
            "device": "cpu",
            "batch_size": 16,
            "screen": Screen(progress=False),
            **options,
        }
        return predict_folder(images, out=out, **given)  # type: ignore[arg-type]

    return call


def read_maps(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")}


def test_the_bytes_are_those_of_evaluate(
    predict: Predict, photographs: Path, finished: Path, tmp_path: Path
) -> None:
    lines = predict(photographs, tmp_path / "out")
    assert lines == [f"predict: 9 label maps in {tmp_path / 'out'}"]
    assert read_maps(tmp_path / "out") == read_maps(finished / "labels" / "all")
    classes = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert [each["name"] for each in classes["classes"]] == ["class 1", "class 0", "class 2"]


def test_blocks_and_batches_do_not_count(
    predict: Predict,
    photographs: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prediction, "_BLOCK", 3)
    shutil.rmtree(photographs / "part 0")
    predict(photographs, tmp_path / "out", batch_size=5)
    wanted = read_maps(finished / "labels" / "all")
    found = read_maps(tmp_path / "out")
    assert found == {name: wanted[name] for name in wanted if name.startswith("part 1/")}
    assert len(found) == 4


def test_without_the_crf_they_are_others(
    predict: Predict, photographs: Path, finished: Path, tmp_path: Path
) -> None:
    predict(photographs, tmp_path / "out", crf="none")
    found, wanted = read_maps(tmp_path / "out"), read_maps(finished / "labels" / "all")
    assert found.keys() == wanted.keys()
    assert found != wanted


@pytest.fixture(scope="module")
def on_codes(
    tmp_path_factory: pytest.TempPathFactory, invoke: Invoke, scenes: Path
) -> tuple[Path, Path]:
    """A run of a tiny random network with a head and a fit on its codes, and the weights."""
    folder = tmp_path_factory.mktemp("on codes")
    torch.manual_seed(0)
    state = timm.create_model(MODEL, pretrained=False, num_classes=0).state_dict()
    save_file(state, folder / "weights.safetensors")
    run = folder / "run"
    invoke(
        *("extract", run, "--dataset", "folder", "--root", scenes / "photographs"),
        *("--backbone", MODEL, "--precision", "float32", "--size", 64, "--frame", "whole"),
        *("--weights", folder / "weights.safetensors", "--no-progress"),
    )
    invoke("masks", run, "--crf", "none", "--no-progress")
    invoke(
        *("head", run, "--method", "stego", "--steps", 4, "--classes", 3, "--dim", 8),
        *("--batch-size", 8, "--no-progress"),
    )
    invoke("em", run, "--classes", 3, "--head", "stego", "--name", "fit", *FAST_EM, "--no-progress")
    invoke("evaluate", run, "--em", "fit", "--crf", "none", "--no-progress")
    invoke("evaluate", run, "--head", "stego", "--crf", "none", "--no-progress")
    return run, folder / "weights.safetensors"


@pytest.mark.parametrize(
    ("option", "name", "labels"),
    [("em", "fit", "labels-fit"), ("head", "stego", "labels-head-stego")],
)
def test_prototypes_of_codes(
    *,
    predict: Predict,
    photographs: Path,
    on_codes: tuple[Path, Path],
    tmp_path: Path,
    option: str,
    name: str,
    labels: str,
) -> None:
    run, weights = on_codes
    file = call_export(run, tmp_path / "codes.safetensors", **{option: name})
    predict(photographs, tmp_path / "out", prototypes=file, weights=weights)
    assert read_maps(tmp_path / "out") == read_maps(run / labels / "all")


@pytest.fixture(scope="module")
def on_the_fine_view(
    tmp_path_factory: pytest.TempPathFactory, invoke: Invoke, scenes: Path
) -> Path:
    """A run whose photographs hold several windows, and two fits that label its fine view."""
    run = tmp_path_factory.mktemp("fine") / "run"
    options = ["--dataset", "folder", "--root", scenes / "photographs", "--no-progress"]
    options += ["--backbone", "handcrafted", "--size", 48, "--frame", "whole"]
    invoke("extract", run, *options, "--views", "clean,fine:72")
    invoke("masks", run, "--crf", "none", "--no-progress")
    robust = ("--method", "robust", "--classes", 3, "--clusters", 6, "--fine")
    invoke("em", run, "--name", "joined", *robust, "--no-progress")
    fast = ("--method", "kmeans", "--classes", 3, "--fine", *FAST_EM)
    invoke("em", run, "--name", "kmeans", *fast, "--no-progress")
    names = run / "corrections/names-joined.yaml"
    names.parent.mkdir()
    names.write_text("0: left\n1: right\n2: left\n")
    return run


@pytest.mark.parametrize("name", ["joined", "kmeans"])
def test_prototypes_of_the_fine_view(
    predict: Predict,
    invoke: Invoke,
    photographs: Path,
    on_the_fine_view: Path,
    tmp_path: Path,
    name: str,
) -> None:
    run = on_the_fine_view
    invoke("evaluate", run, "--em", name, "--crf", "none", "--no-progress")
    file = call_export(run, tmp_path / "fine.safetensors", em=name)
    predict(photographs, tmp_path / "out", prototypes=file)
    wanted = read_maps(run / f"labels-{name}" / "all")
    assert read_maps(tmp_path / "out") == wanted
    # labelled as coarsely they are others
    artefacts = open_artefacts(RunDirectory(run), name, gain=1.0)
    assert artefacts.open_views()["clean"].shape[1:3] == (9, 9)
    assert artefacts.grid == (6, 6)


def test_other_weights_are_refused(
    predict: Predict, photographs: Path, on_codes: tuple[Path, Path], tmp_path: Path
) -> None:
    run, weights = on_codes
    file = call_export(run, tmp_path / "codes.safetensors", em="fit")
    assert str(weights.parent).encode() not in file.read_bytes()
    torch.manual_seed(1)
    state = timm.create_model(MODEL, pretrained=False, num_classes=0).state_dict()
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(
        WeightsError, match=r"not those that the prototypes were made with .* with --weights"
    ):
        predict(
            photographs,
            tmp_path / "out",
            prototypes=file,
            weights=tmp_path / "other.safetensors",
        )


def test_what_is_up_to_date_is_kept(predict: Predict, photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(photographs, out)
    before = list_times(out)
    pixels, _ = draw_scene(77, 90, 70)
    Image.fromarray(pixels).save(photographs / "new.png")
    Image.fromarray(pixels).save(photographs / "part 0" / "scene 0.png")
    lines = predict(photographs, out)
    assert lines == [f"predict: 10 label maps in {out}, 8 of them there already"]
    after = list_times(out)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"new.png", "part 0/scene 0.png", "predictions.jsonl"}
    # a label map that is gone is made again
    (out / "new.png").unlink()
    assert "9 of them" in predict(photographs, out)[0]
    assert (out / "new.png").is_file()


def test_other_prototypes_label_anew(
    predict: Predict, prototypes: Path, photographs: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load, save

    out = tmp_path / "out"
    predict(photographs, out, crf="none")
    content = prototypes.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    tensors = load(content)
    tensors["prototypes"] = tensors["prototypes"][[1, 0, 2]]
    other = tmp_path / "other.safetensors"
    other.write_bytes(save(tensors, header["__metadata__"]))
    before = read_maps(out)
    lines = predict(photographs, out, crf="none", prototypes=other)
    assert "there already" not in lines[0]
    after = read_maps(out)
    swap = np.array([1, 0, 2], np.uint8)
    for name in before:
        first, second = (np.asarray(Image.open(io.BytesIO(maps[name]))) for maps in (before, after))
        np.testing.assert_array_equal(swap[first], second)


def test_bad_images_are_skipped_with_a_reason(
    predict: Predict, photographs: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict(photographs, out)
    (photographs / "text.jpg").write_text("no image")
    cut = photographs / "part 0" / "scene 2.png"
    cut.write_bytes(cut.read_bytes()[:-300])
    lines = predict(photographs, out)
    assert lines[0] == f"predict: 8 label maps in {out}, 8 of them there already"
    assert lines[1].startswith("predict: 2 of 10 images are skipped (first: ")
    assert "predictions.jsonl" in lines[1]
    # it would be taken for the label map of the image as it is now
    assert not (out / "part 0" / "scene 2.png").exists()
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    skipped = {row["path"]: row["skipped"] for row in rows if "skipped" in row}
    assert set(skipped) == {"text.jpg", "part 0/scene 2.png"}
    assert skipped["text.jpg"] == "not an image"


def test_nothing_but_bad_images(predict: Predict, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(DatasetError, match="no images below"):
        predict(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "a.jpg").write_text("no image")
    with pytest.raises(DatasetError, match=r"of 1 image none can be labelled \(first: a.jpg"):
        predict(tmp_path / "in", tmp_path / "out")


def test_a_stopped_prediction_goes_on(
    predict: Predict,
    photographs: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    blocks = iter(range(2))

    def extract(*arguments: object) -> object:
        if next(blocks, None) is None:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    real = prediction._extract
    monkeypatch.setattr(prediction, "_BLOCK", 4)
    monkeypatch.setattr(prediction, "_extract", extract)
    with pytest.raises(KeyboardInterrupt):
        predict(photographs, out)
    monkeypatch.undo()
    done = set(read_maps(out))
    assert 0 < len(done) < 9
    with (out / "predictions.jsonl").open("ab") as file:
        file.write(b'{"id": "part 1/sce')
    lines = predict(photographs, out)
    assert f"{len(done)} of them there already" in lines[0]
    assert read_maps(out) == read_maps(finished / "labels" / "all")
    again = (out / "predictions.jsonl").read_bytes()
    predict(photographs, out)
    assert (out / "predictions.jsonl").read_bytes() == again


def test_label_maps_of_images_that_are_gone(
    predict: Predict, photographs: Path, tmp_path: Path
) -> None:
    predict(photographs, tmp_path / "out")
    shutil.rmtree(photographs / "part 1")
    for _ in range(2):
        lines = predict(photographs, tmp_path / "out")
        assert lines[0].startswith("predict: 5 label maps")
        assert "4 label maps of images that are gone" in lines[1]


def test_folders_that_are_not_meant(predict: Predict, photographs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds the images too"):
        predict(photographs, photographs)
    with pytest.raises(UsageError, match="holds the images too"):
        predict(photographs, tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("")
    with pytest.raises(RunError, match="is not empty and holds no predictions"):
        predict(photographs, tmp_path / "mine")
    with pytest.raises(UsageError, match="is a file; give a folder"):
        predict(photographs, tmp_path / "mine" / "letter.txt")
    with pytest.raises(UsageError, match="is not a file of prototypes"):
        predict(photographs, tmp_path / "out", prototypes=tmp_path / "mine" / "letter.txt")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="handcrafted takes no weights"):
        predict(photographs, tmp_path / "out", weights=tmp_path / "mine" / "letter.txt")


def test_labels_may_lie_below_the_images(
    predict: Predict, photographs: Path, tmp_path: Path
) -> None:
    for kept in ("", ", 9 of them there already"):
        lines = predict(photographs, photographs / "labels")
        assert lines == [f"predict: 9 label maps in {photographs / 'labels'}{kept}"]


def test_a_real_network_gives_the_bytes_of_its_run(
    predict: Predict, shared: Path, invoke: Invoke, tmp_path: Path
) -> None:
    weights = shared / "weights" / "vit_small_patch14_dinov2.lvd142m.safetensors"
    if not weights.is_file():
        pytest.skip(f"no {weights.name}")
    run = tmp_path / "run"
    invoke(
        *("extract", run, "--dataset", "camvid", "--root", shared / "datasets" / "camvid"),
        *("--split", "val", "--limit", 3, "--frame", "whole", "--weights", weights),
        *("--size", 112, "--no-progress"),
    )
    invoke("em", run, "--method", "kmeans", "--classes", 5, "--init-steps", 4, "--no-progress")
    invoke("evaluate", run, "--crf", "none", "--no-progress")
    file = call_export(run, tmp_path / "prototypes.safetensors")
    wanted = read_maps(run / "labels" / "val")
    for name in wanted:
        photograph = Path(name).with_suffix(".png").name
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copy(shared / "datasets" / "camvid" / "val" / photograph, tmp_path / "in")
    predict(tmp_path / "in", tmp_path / "out", prototypes=file, weights=weights, batch_size=3)
    assert read_maps(tmp_path / "out") == wanted
    assert len(wanted) == 3


@pytest.fixture
def corrected(predict: Predict, photographs: Path, tmp_path: Path) -> tuple[Path, bytes]:
    """A label map of a prediction that somebody has painted over."""
    predict(photographs, tmp_path / "out", crf="none")
    label = tmp_path / "out/part 0/scene 0.png"
    with Image.open(label) as image:
        image.load()
    image.paste(2, (0, 0, 40, 40))
    image.save(label)
    return label, label.read_bytes()


def test_a_corrected_map_is_not_written_over(
    predict: Predict, photographs: Path, corrected: tuple[Path, bytes], tmp_path: Path
) -> None:
    label, content = corrected
    before = read_maps(tmp_path / "out")
    predict(photographs, tmp_path / "out", crf="none")  # up to date: kept as it is
    with pytest.raises(RunError, match=r"scene 0\.png was changed by hand since predict wrote it"):
        predict(photographs, tmp_path / "out")
    assert read_maps(tmp_path / "out") == before
    # nor removed, where its image cannot be read any more
    (photographs / "part 0/scene 0.png").write_bytes(b"no image")
    lines = predict(photographs, tmp_path / "out")
    assert label.read_bytes() == content
    assert "1 label map of images that are gone are left" in lines[-1].replace("maps", "map")


def test_maps_of_a_killed_prediction_are_no_persons(
    predict: Predict, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(photographs, tmp_path / "out")
    write, count = prediction.write_bytes, 0

    def die(*arguments: object) -> object:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return write(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prediction, "write_bytes", die)
        predict(photographs, tmp_path / "out", crf="none")
    wanted = tmp_path / "wanted"
    predict(photographs, wanted, crf="numba")
    predict(photographs, tmp_path / "out", crf="numba")
    assert read_maps(tmp_path / "out") == read_maps(wanted)
