"""A run on orthomosaics: pixels without data get no label, and label maps keep the georeference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.run.directory import RunDirectory
from tests.scenes import FAST_EM, Invoke, draw_scene
from workflows.review.session import Review

rasterio = pytest.importorskip("rasterio", reason="rasterio, the extra [geo], is not installed")
HOLE = (slice(0, 100), slice(0, 40))


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scenes as GeoTIFFs, a third of each without data, with label maps of all of it."""
    folder = tmp_path_factory.mktemp("maps")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    for number in range(4):
        pixels, labels = draw_scene(number, 130, 100)
        pixels = np.maximum(pixels, 1)
        pixels[HOLE] = 0
        where = rasterio.Affine(0.5, 0, 1000 * number, 0, -0.5, 4000000)
        with rasterio.open(
            folder / "images" / f"{number}.tif",
            "w",
            "GTiff",
            130,
            100,
            3,
            "EPSG:32633",
            where,
            "uint8",
            0,
            photometric="RGB",
        ) as file:
            file.write(pixels.transpose(2, 0, 1))
        Image.fromarray(labels).save(folder / "labels" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def run(maps: Path, invoke: Invoke, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    said = invoke(
        "extract",
        run,
        "--dataset",
        "folder",
        "--root",
        maps / "images",
        "--labels",
        maps / "labels",
        "--backbone",
        "handcrafted",
        "--size",
        64,
    ).output
    assert "of 4 images the pixels that are 0 hold no data" in " ".join(said.split())
    invoke("masks", run)
    invoke("em", run, "--classes", 3, *FAST_EM)
    invoke("evaluate", run)
    return run


def test_no_data_gets_no_label_and_is_in_no_score(run: Path) -> None:
    import zarr

    for number in range(4):
        labels = np.asarray(Image.open(run / "labels" / "all" / f"{number}.png"))
        assert (labels[HOLE] == 255).all() and (labels[:, 40:] != 255).all()
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    counts = (
        metrics["label_pixels"]
        if "label_pixels" in metrics
        else metrics["splits"]["all"]["label_pixels"]
    )
    assert counts["ignored"] == {"no data": 4 * 100 * 40}
    assert sum(counts["scored"].values()) == 4 * 100 * 90
    proposals = zarr.open_array(run / "masks.zarr" / "proposals", mode="r")[:]
    windows = proposals.reshape(-1, 64, 64)
    assert not windows[0][:, :24].any(), "the first window of an image begins in the hole"
    assert windows[0][:, 28:].any()


def test_a_review_labels_as_evaluate_does(run: Path, tmp_path: Path) -> None:
    review = Review(RunDirectory(shutil.copytree(run, tmp_path / "run")), None, None)
    image, named = review.find_image(0), review.named()
    labels = np.asarray(Image.open(run / "labels" / "all" / f"{image.id}.png"))
    drawn = review.pictures.draw_labels(image, named, image.width, image.height)
    np.testing.assert_array_equal(drawn, named.table[labels])
    review.name_clusters({(k,): (None, f"class {k}") for k in range(3)})
    review.accept(0, review.said.revision(image))
    painted = review.said.corrections().read_map(image)
    assert painted is not None
    assert (painted[HOLE] == 255).all()
    assert (painted[:, 40:] < 3).all()


def test_export_and_predict_keep_the_georeference(
    run: Path, maps: Path, invoke: Invoke, tmp_path: Path
) -> None:
    invoke("export", run, "--format", "geotiff", "--out", tmp_path / "export", "--ids", "clusters")
    invoke("export", run, "--format", "prototypes", "--out", tmp_path / "p.safetensors")
    predict = ("predict", maps / "images", "--prototypes", tmp_path / "p.safetensors")
    invoke(*predict, "--format", "geotiff", "--out", tmp_path / "predicted")
    for number in range(4):
        labels = np.asarray(Image.open(run / "labels" / "all" / f"{number}.png"))
        original = maps / "images" / f"{number}.tif"
        for path in (
            tmp_path / "export" / "labels" / "train" / f"{number}.tif",
            tmp_path / "predicted" / f"{number}.tif",
        ):
            with rasterio.open(path) as file, rasterio.open(original) as image:
                assert (file.crs, file.transform) == (image.crs, image.transform)
                assert file.nodata == 255
                assert np.array_equal(file.read(1) == 255, labels == 255)
        copied = tmp_path / "export" / "images" / "train" / f"{number}.tif"
        assert copied.read_bytes() == original.read_bytes()
    # what is there is kept, and a format is not mixed with another
    assert (
        "4 of them there already"
        in invoke(*predict, "--format", "geotiff", "--out", tmp_path / "predicted").output
    )
    said = invoke(*predict, "--out", tmp_path / "predicted", code=1).output
    assert "holds label maps of --format geotiff" in said


def test_a_georeference_that_is_dropped_is_said(
    run: Path, maps: Path, invoke: Invoke, tmp_path: Path
) -> None:
    wanted = "4 have a georeference (first: 0.tif), which label maps in PNG do not keep"
    said = invoke("export", run, "--format", "mmseg", "--out", tmp_path / "mmseg").output
    assert wanted in " ".join(said.split())
    invoke("export", run, "--format", "prototypes", "--out", tmp_path / "p.safetensors")
    said = invoke(
        "predict",
        maps / "images",
        "--prototypes",
        tmp_path / "p.safetensors",
        "--out",
        tmp_path / "png",
    ).output
    assert wanted in " ".join(said.split())


def test_a_photograph_that_is_gone_is_named(maps: Path, invoke: Invoke, tmp_path: Path) -> None:
    images, run = shutil.copytree(maps / "images", tmp_path / "images"), tmp_path / "run"
    (images / "3.tif").write_bytes(b"II*\0 and no more")
    given = ("extract", run, "--dataset", "folder", "--root", images, "--backbone", "handcrafted")
    assert "1 of 4 images were rejected" in invoke(*given, "--size", 64).output
    invoke("em", run, "--classes", 3, "--method", "kmeans", *FAST_EM)
    invoke("evaluate", run)
    (images / "0.tif").unlink()
    export = ("export", run, "--images", "none", "--out")
    invoke(*export, tmp_path / "mmseg", "--format", "mmseg")
    said = invoke(*export, tmp_path / "maps", "--format", "geotiff", code=1).output
    assert "0.tif does not say where it lies (no such file)" in " ".join(said.split())


def test_an_earlier_version_of_a_run_is_read_anew(
    maps: Path, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.images import decoding
    from stages.extract import stage

    given = ("extract", tmp_path / "run", "--dataset", "folder", "--root", maps / "images")
    given = (*given, "--backbone", "handcrafted", "--size", 64)
    with monkeypatch.context() as patch:
        patch.setattr(decoding.Source, "_find_nodata", lambda *_, **__: "")
        patch.setattr(stage, "VERSION", 1)
        assert "hold no data" not in invoke(*given).output
    assert "hold no data" in invoke(*given).output


def test_photographs_without_a_place_are_counted(
    finished: Path, invoke: Invoke, tmp_path: Path
) -> None:
    said = invoke("export", finished, "--format", "geotiff", "--out", tmp_path / "out").output
    assert "9 of 9 photographs say nowhere where their upright pixels lie" in " ".join(said.split())
    with rasterio.open(next((tmp_path / "out").rglob("labels/**/*.tif"))) as file:
        assert file.transform.is_identity and file.nodata == 255
