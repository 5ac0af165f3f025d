"""Georeferences and pixels that hold no data, with rasterio as the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ImageError, StaleError
from pipeline.images import geo
from pipeline.images.decoding import join_parts, probe_pages, read_nodata, read_rgb, read_sample
from pipeline.images.reading import Reading, Taking

rasterio = pytest.importorskip("rasterio", reason="rasterio, the extra [geo], is not installed")
WHERE = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 500000, 0, -0.5, 4000000)}
HEIGHT, WIDTH = 22, 31


def save(path: Path, values: np.ndarray, mask: np.ndarray | None = None, **how: Any) -> Path:
    count, height, width = values.shape
    how = {**WHERE, "photometric": "RGB" if count in (3, 4) else "MINISBLACK", **how}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", "GTiff", width, height, count, dtype=values.dtype, **how) as file,
    ):
        file.write(values)
        if mask is not None:
            file.write_mask(mask)
    return path


def draw(dtype: str, bands: int = 3, hole: float = 0) -> np.ndarray:
    """Noise with a hole in the upper left, and a pixel whose first band alone has its value."""
    generator = np.random.default_rng(bands)
    values = generator.integers(1, 200, (bands, HEIGHT, WIDTH)).astype(dtype)
    if np.dtype(dtype).kind == "f":
        values /= 255
    values[:, :9, :12] = hole
    values[0, 15, 20] = hole
    return values


def read_gaps(path: Path, reading: Reading | None = None) -> tuple[np.ndarray, str]:
    digest = probe_pages(path, reading or Reading())[0].digest
    return join_parts(list(read_nodata(path, digest))), Taking.parse(digest).nodata


def ask_gdal(path: Path, *, by_value: bool = False) -> np.ndarray:
    with rasterio.open(path) as file:
        # rasterio's own mask of four bands is that of the fourth
        return (file.read_masks() == 0).all(axis=0) if by_value else file.dataset_mask() == 0


@pytest.mark.parametrize(
    ("dtype", "bands", "value"),
    [
        ("uint8", 3, 0),
        ("uint8", 3, 255),
        ("uint8", 1, 0),
        ("uint16", 3, 65535),
        ("uint16", 1, 0),
        ("int16", 1, -9999),
        ("int16", 1, -32768),
        ("float32", 1, -9999.0),
        ("float32", 3, float("nan")),
        ("float32", 1, -3.4028234663852886e38),
        ("uint8", 4, 7),
        ("uint16", 8, 1),
    ],
)
@pytest.mark.parametrize("compress", [None, "deflate", "lzw"])
def test_no_data_is_where_gdal_finds_it(
    tmp_path: Path, dtype: str, bands: int, value: float, compress: str | None
) -> None:
    values = draw(dtype, bands, value)
    path = save(tmp_path / "a.tif", values, nodata=value, compress=compress)
    reading = Reading(bands=(1, 2, 3)) if bands == 8 else Reading()
    gaps, _ = read_gaps(path, reading)
    assert np.array_equal(gaps, ask_gdal(path, by_value=True)) and gaps.sum() >= 9 * 12
    pixels = read_rgb(path, probe_pages(path, reading)[0].digest)
    plain = probe_pages(
        save(tmp_path / "b.tif", np.nan_to_num(values.clip(0)), nodata=None), reading
    )
    shown = read_rgb(tmp_path / "b.tif", plain[0].digest)
    gaps[15, 20] = True
    assert np.array_equal(pixels[~gaps], shown[~gaps]), "what holds data is read as without"
    if dtype != "uint8":
        assert not pixels[:9, :12].any()


def test_masks_and_transparency_say_it_too(tmp_path: Path) -> None:
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    mask[:, 20:] = 0
    path = save(tmp_path / "mask.tif", draw("uint8"), mask, nodata=0)
    gaps, kind = read_gaps(path)
    assert kind == "mask" and np.array_equal(gaps, ask_gdal(path)) and gaps.sum() == HEIGHT * 11
    values = np.concatenate([draw("uint8"), mask[None]])
    path = save(tmp_path / "alpha.tif", values, ALPHA="YES")
    gaps, kind = read_gaps(path)
    assert kind == "alpha" and np.array_equal(gaps, ask_gdal(path)) and gaps.sum() == HEIGHT * 11
    # the icon's white, and not a map's end
    Image.fromarray(values.transpose(1, 2, 0)).save(tmp_path / "icon.tif")
    assert read_gaps(tmp_path / "icon.tif")[1] == ""
    # a band of infrared is no transparency, whatever its tag says
    values[3] = np.where(mask, 40, 0)
    assert read_gaps(save(tmp_path / "infrared.tif", values, ALPHA="YES"))[1] == ""


def test_other_bytes_say_nothing_of_what_was_extracted(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", draw("uint8"), nodata=0)
    digest, size = probe_pages(path, Reading())[0].digest, path.stat().st_size
    save(path, draw("uint8")[:, ::-1], nodata=0)
    assert path.stat().st_size == size
    with pytest.raises(StaleError, match="holds other bytes than when it was extracted"):
        list(read_nodata(path, digest))


def test_a_value_that_no_pixel_can_have_says_nothing(tmp_path: Path) -> None:
    import tifffile

    for name, text in (("beyond", "-9999"), ("half", "0.5"), ("words", "none"), ("empty", "")):
        path = tmp_path / f"{name}.tif"
        tags = [(42113, "s", 0, text, True)]
        tifffile.imwrite(path, draw("uint8")[0], photometric="minisblack", extratags=tags)
        assert probe_pages(path, Reading())[0].digest.count(":") == 0, name


def test_no_data_is_in_no_range(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", draw("float32", 1, -9999), nodata=-9999)
    sample, top = read_sample(path, probe_pages(path, Reading())[0].digest)
    assert sample.min() > 0 and top == 1 and len(sample) == (~ask_gdal(path)).sum()
    empty = save(tmp_path / "b.tif", np.full((1, HEIGHT, WIDTH), -9999, np.float32), nodata=-9999)
    with pytest.raises(ImageError, match="no pixel holds data"):
        read_sample(empty, probe_pages(empty, Reading())[0].digest)


LABELS = (np.arange(HEIGHT * WIDTH) % 5).reshape(HEIGHT, WIDTH).astype(np.uint8)
PALETTE = bytes(range(256)) * 3


def test_label_maps_keep_the_georeference(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", draw("uint8"))
    assert geo.is_placed(tmp_path, "a.tif", "")
    place = geo.read_place(tmp_path, "a.tif", "")
    content = geo.encode_geotiff(LABELS, PALETTE, place)
    assert content == geo.encode_geotiff(LABELS, PALETTE, place)
    (tmp_path / "label.tif").write_bytes(content)
    with rasterio.open(tmp_path / "label.tif") as label, rasterio.open(path) as image:
        assert (label.crs, label.transform, label.bounds) == (
            image.crs,
            image.transform,
            image.bounds,
        )
        assert label.nodata == 255 and label.colormap(1)[2] == (6, 7, 8, 255)
        assert np.array_equal(label.read(1), LABELS)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "label.tif")), LABELS)


def test_ground_control_points_are_kept(tmp_path: Path) -> None:
    from rasterio.control import GroundControlPoint

    points = [
        GroundControlPoint(row, col, 10.0 + col, 50.0 - row)
        for row, col in ((0, 0), (9, 0), (0, 9))
    ]
    save(tmp_path / "a.tif", draw("uint8"), transform=None, gcps=points, crs="EPSG:4326")
    place = geo.read_place(tmp_path, "a.tif", "")
    (tmp_path / "label.tif").write_bytes(geo.encode_geotiff(LABELS, PALETTE, place))
    with rasterio.open(tmp_path / "label.tif") as label:
        found, crs = label.gcps
    assert [(p.row, p.col, p.x, p.y) for p in found] == [(p.row, p.col, p.x, p.y) for p in points]
    assert crs.to_epsg() == 4326


def test_a_world_file_places_a_photograph(tmp_path: Path) -> None:
    shown = Image.fromarray(draw("uint8").transpose(1, 2, 0))
    shown.save(tmp_path / "a.jpg")
    assert not geo.is_placed(tmp_path, "a.jpg", "") and not geo.read_place(tmp_path, "a.jpg", "")
    (tmp_path / "a.jgw").write_text("0.5\n0\n0\n-0.5\n500000.25\n3999999.75\n")
    assert geo.read_place(tmp_path, "a.jpg", "")["transform"] == WHERE["transform"]
    # a list may name photographs without a suffix
    shown.save(tmp_path / "b", "JPEG")
    assert not geo.is_placed(tmp_path, "b", "")
    (tmp_path / "b.wld").write_text((tmp_path / "a.jgw").read_text())
    assert geo.is_placed(tmp_path, "b", "")
    turned = Image.Exif()
    turned[274] = 6
    shown.save(tmp_path / "a.jpg", exif=turned)
    assert not geo.is_placed(tmp_path, "a.jpg", ""), "its upright pixels lie elsewhere"


def test_what_is_no_placed_image_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_text('<VRTDataset rasterXSize="1" rasterYSize="1"/>')
    assert not geo.is_placed(tmp_path, "a.tif", "")
    save(tmp_path / "b.tif", draw("uint8"))
    assert not geo.is_placed(tmp_path, "b.tif", "0:page=2/3"), "the place is that of the first page"
