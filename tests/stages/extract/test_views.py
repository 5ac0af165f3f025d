"""Augmentations: what is drawn depends on what it is of, and what is done on nothing else.

The views stage on small drawn pictures with hand-crafted features.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import xarray
from PIL import Image as PillowImage
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter
from skimage.color import hsv2rgb, rgb2hsv
from torch import Tensor

import stages
from pipeline.compute.scheduler import Execution
from pipeline.errors import ImageError, PipelineError, RunError, StaleError, UsageError
from pipeline.images.windows import Window
from pipeline.progress import Screen
from pipeline.run import frames
from pipeline.run.directory import RunDirectory
from pipeline.run.frames import read_frame
from pipeline.run.ledger import StageRecord, inspect_stage, read_record, require_fresh
from pipeline.run.manifest import read_manifest
from pipeline.run.runner import run_stage
from pipeline.storage.arrays import open_arrays, read_rows
from stages.artefacts import list_views, open_pair
from stages.extract import backbones, stage, views
from stages.extract.handcrafted import CHANNELS, compute_features
from stages.extract.settings import ExtractSettings, ViewSettings
from stages.extract.stage import Extract
from stages.extract.views import (
    BLUR_SIGMA,
    JITTERED,
    Augmentation,
    Crops,
    Fine,
    augment,
    draw_augmentation,
    neighbour_table,
    weigh_neighbours,
)
from stages.masks.settings import MaskSettings
from stages.masks.stage import Masks

BOX = (0, 0, 32, 32)
EXPECTED = Augmentation(
    sigma=1.9621521307018461,
    grey=False,
    brightness=1.064197470228733,
    contrast=0.8839179791039109,
    saturation=0.9418794243261079,
    hue=0.016420723740818793,
    order=(0, 3, 1, 2),
)
# A blur of a tenth of a pixel is none at all.
NOTHING = Augmentation(0.1, False, 1.0, 1.0, 1.0, 0.0, (0, 1, 2, 3))


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def draw(count: int) -> list[Augmentation]:
    return [draw_augmentation(f"{number:032x}", BOX, 1, 0) for number in range(count)]


def test_an_augmentation_follows_from_content_box_view_and_seed() -> None:
    first = draw_augmentation("ab", BOX, 1, 0)
    assert draw_augmentation("ab", BOX, 1, 0) == first
    others = [
        draw_augmentation("ac", BOX, 1, 0),
        draw_augmentation("ab", (1, 0, 33, 32), 1, 0),
        draw_augmentation("ab", BOX, 2, 0),
        draw_augmentation("ab", BOX, 1, 1),
    ]
    assert len({first, *others}) == 5


def test_the_numbers_are_the_same_on_every_machine() -> None:
    found = draw_augmentation("0123456789abcdef0123456789abcdef", (4, 8, 36, 40), 2, 7)
    assert found.grey is EXPECTED.grey
    assert found.order == EXPECTED.order
    for name in ("sigma", "brightness", "contrast", "saturation", "hue"):
        assert getattr(found, name) == pytest.approx(getattr(EXPECTED, name), abs=1e-12)


def test_the_odds_are_even_and_the_ranges_used_to_their_ends() -> None:
    drawn = draw(2000)
    assert abs(sum(a.grey for a in drawn) - 1000) < 4 * np.sqrt(500)
    ranges = {
        "sigma": BLUR_SIGMA,
        "brightness": (0.7, 1.3),
        "contrast": (0.7, 1.3),
        "saturation": (0.7, 1.3),
        "hue": (-0.1, 0.1),
    }
    for name, (low, high) in ranges.items():
        values = np.array([getattr(a, name) for a in drawn])
        slack = 0.01 * (high - low)
        assert low <= values.min() < low + slack
        assert high - slack < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.05 * (high - low)
    orders = {a.order for a in drawn}
    assert len(orders) == 24
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)


def test_shape_type_and_the_original_are_kept() -> None:
    pixels = noise(3, 3, 16, 24)
    before = pixels.clone()
    found = augment(pixels, draw(3))
    assert found.shape == pixels.shape
    assert found.dtype == torch.uint8
    assert torch.equal(pixels, before)


def test_a_window_does_not_depend_on_its_companions() -> None:
    pixels, augmentations = noise(5, 3, 20, 20), draw(5)
    together = augment(pixels, augmentations)
    for number in range(5):
        alone = augment(pixels[number : number + 1], augmentations[number : number + 1])
        assert torch.equal(together[number], alone[0])


@pytest.mark.parametrize("number", range(6))
def test_a_mirrored_picture_is_augmented_to_the_mirrored_view(number: int) -> None:
    pixels, augmentations = noise(1, 3, 24, 32, seed=number), [draw(6)[number]]
    mirrored = augment(pixels.flip(-1), augmentations)
    there = augment(pixels, augmentations).flip(-1)
    assert (mirrored.int() - there.int()).abs().max() <= 1


def test_doing_nothing_gives_the_picture_back() -> None:
    pixels = noise(1, 3, 16, 16)
    assert (augment(pixels, [NOTHING]).int() - pixels.int()).abs().max() <= 1


def test_the_blur_is_a_gaussian_with_reflected_borders() -> None:
    pixels = noise(1, 3, 40, 30)
    found = augment(pixels, [replace(NOTHING, sigma=1.7)])[0].numpy()
    image = pixels[0].double().numpy()
    expected = gaussian_filter(image, (0, 1.7, 1.7), mode="mirror", radius=(0, 11, 11))
    np.testing.assert_allclose(found, expected, atol=0.51)


def test_grey_is_the_luma_in_all_three_channels() -> None:
    pixels = torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 12, 12)
    # ITU-R BT.601: 0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2; the jitter is left out.
    found = augment(pixels, [replace(NOTHING, grey=True, brightness=1.3, hue=0.1)])
    assert (found == 124).all()


def test_colours_are_changed_in_the_drawn_order_by_the_drawn_amounts() -> None:
    plane = torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 12, 12)
    bright = augment(plane, [replace(NOTHING, brightness=1.2)])[0, :, 0, 0]
    assert bright.tolist() == [240, 120, 60]
    # towards the luma, 124.2: 0.8 * c + 0.2 * 124.2
    pale = augment(plane, [replace(NOTHING, saturation=0.8)])[0, :, 0, 0]
    assert pale.tolist() == [185, 105, 65]
    # the mean luma of a plane is its own: contrast does the same there
    flat = augment(plane, [replace(NOTHING, contrast=0.8)])[0, :, 0, 0]
    assert flat.tolist() == [185, 105, 65]
    hsv = rgb2hsv(np.array([[[200, 100, 50]]]) / 255.0)
    hsv[..., 0] += 0.05
    turned = augment(plane, [replace(NOTHING, hue=0.05)])[0, :, 0, 0]
    np.testing.assert_allclose(turned.numpy(), 255 * hsv2rgb(hsv)[0, 0], atol=0.6)
    # 1.3 * 200 is cut off at 255 before the hue turns, or after
    both = replace(NOTHING, brightness=1.3, hue=0.1)
    first, last = (
        augment(plane, [replace(both, order=order)])[0, :, 0, 0].tolist()
        for order in ((0, 1, 2, 3), (3, 1, 2, 0))
    )
    assert first != last


def test_a_jittered_view_is_now_and_then_grey_or_blurred_besides() -> None:
    drawn = [draw_augmentation(f"{number:032x}", BOX, 1, 0, JITTERED) for number in range(2000)]
    assert abs(sum(a.grey for a in drawn) - 400) < 4 * np.sqrt(320)
    assert abs(sum(a.blurred for a in drawn) - 1000) < 4 * np.sqrt(500)
    assert drawn[0].brightness != draw(1)[0].brightness
    jitter = replace(NOTHING, manner=JITTERED, blurred=False, brightness=1.2)
    plane = torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 12, 12)
    assert augment(plane, [jitter])[0, :, 0, 0].tolist() == [240, 120, 60]
    # the luma of the jittered colours, 149.04
    assert augment(plane, [replace(jitter, grey=True)])[0, :, 0, 0].tolist() == [149] * 3
    pixels = noise(1, 3, 40, 30)
    still = replace(jitter, brightness=1.0, sigma=1.7)
    assert (augment(pixels, [still]).int() - pixels.int()).abs().max() <= 1
    found = augment(pixels, [replace(still, blurred=True)])[0].numpy()
    expected = gaussian_filter(
        pixels[0].double().numpy(), (0, 1.7, 1.7), mode="mirror", radius=(0, 2, 2)
    )
    np.testing.assert_allclose(found, expected, atol=0.51)


def weigh_literally(attention: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Weigh neighbours by the published rules, position by position."""
    weights = np.zeros((rows, columns, 9))
    for y in range(rows):
        for x in range(columns):
            row = attention[y * columns + x]
            exponentials = np.exp(np.clip(row, *np.quantile(row, [0.1, 0.9])))
            values = 28 * exponentials / exponentials.sum()
            values[values < values.mean()] = 0
            near = {
                number: (y + number // 3 - 1) * columns + x + number % 3 - 1
                for number in range(9)
                if 0 <= y + number // 3 - 1 < rows and 0 <= x + number % 3 - 1 < columns
            }
            for number, place in near.items():
                weights[y, x, number] = values[place] / len(near)
    return weights


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (4, 3), (5, 6)])
def test_neighbours_weigh_what_the_published_rules_say(
    grid: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    positions = grid[0] * grid[1]
    generator = torch.Generator().manual_seed(3)
    attention = torch.randn(2, positions, positions, generator=generator, dtype=torch.float64)
    found = weigh_neighbours(attention, *grid)
    for window in range(2):
        expected = weigh_literally(attention[window].numpy(), *grid)
        np.testing.assert_allclose(found[window], expected, atol=1e-12)
    monkeypatch.setattr(views, "_MOST", 3 * positions)
    assert torch.equal(weigh_neighbours(attention, *grid), found)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 529])
def test_of_even_attention_all_neighbours_stay(value: float, kind: torch.dtype) -> None:
    found = weigh_neighbours(torch.full((1, 49, 49), value, dtype=kind), 7, 7)
    torch.testing.assert_close(found.sum(dim=3), torch.full((1, 7, 7), 28 / 49, dtype=kind))


def test_neighbours_by_hand() -> None:
    assert neighbour_table(2, 3).tolist() == [
        [-1, -1, -1, -1, 0, 1, -1, 3, 4],
        [-1, -1, -1, 0, 1, 2, 3, 4, 5],
        [-1, -1, -1, 1, 2, -1, 4, 5, -1],
        [-1, 0, 1, -1, 3, 4, -1, -1, -1],
        [0, 1, 2, 3, 4, 5, -1, -1, -1],
        [1, 2, -1, 4, 5, -1, -1, -1, -1],
    ]


def test_one_augmentation_per_window() -> None:
    with pytest.raises(ValueError):
        augment(noise(2, 3, 16, 16), draw(1))


SIZE = 32
GRID = SIZE // 8
QUIET = Screen(progress=False)
CROPS = tuple(Crops.arrays)
ALL = ViewSettings(views="clean,photometric:2,jittered", crops="five")


def write_pictures(folder: Path, numbers: range) -> Path:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (9, 13, 3), dtype=np.uint8)
        picture = PillowImage.fromarray(pixels).resize((52, 36), PillowImage.Resampling.BICUBIC)
        picture.save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures", range(10, 15))


def extract(path: Path, pictures: Path, **settings: Any) -> RunDirectory:
    run = RunDirectory(path)
    given: dict[str, Any] = {"backbone": "handcrafted", "size": SIZE, "shard_size": 2}
    given["frame"] = "centre"
    given |= {"dataset": "folder", "root": pictures, "batch_size": 3} | settings
    run_stage(Extract(), run, ExtractSettings(**given), Execution(), QUIET)
    return run


def view(run: RunDirectory, settings: ViewSettings, **execution: Any) -> dict[str, StageRecord]:
    assert stages.run_stage("views", run, settings, Execution(**execution), QUIET) is not None
    return list_views(run)


def judge(run: RunDirectory) -> dict[str, str]:
    return {name: inspect_stage(run, f"views/{name}").state for name in run.names("views")}


def read_all(run: RunDirectory) -> dict[str, np.ndarray]:
    """Read all arrays of the features by name."""
    names = sorted(path.name for path in run.features.iterdir() if path.is_dir())
    return {
        name: np.asarray(array[...]) for name, array in open_arrays(run.features, names).items()
    }


def list_times(run: RunDirectory, *arrays: str) -> dict[str, int]:
    return {
        str(file): file.stat().st_mtime_ns
        for array in arrays
        for file in sorted((run.features / array).rglob("*"))
        if file.is_file()
    }


def as_images(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 255


def compare(found: np.ndarray, images: Tensor) -> None:
    expected = compute_features(images)[0].half().float().numpy()
    np.testing.assert_allclose(found.astype(np.float32), expected, atol=2e-3, rtol=2e-3)


def test_the_boxes_of_the_crops_by_hand() -> None:
    crops = Crops().place(Window(7, 3, left=10, top=0, size=32, width=47, height=32))
    assert [crop.box for crop in crops] == [
        (20, 0, 52, 32),
        (52, 0, 84, 32),
        (20, 32, 52, 64),
        (52, 32, 84, 64),
        (36, 16, 68, 48),
    ]
    assert {(c.index, c.image, c.size, c.width, c.height) for c in crops} == {(7, 3, 32, 94, 64)}


def test_the_box_of_a_finer_window_by_hand() -> None:
    window = Window(7, 3, left=54, top=0, size=322, width=429, height=322)
    (finer,) = Fine(518).place(window)
    # 54 * 518 / 322 = 86.9, 429 * 518 / 322 = 690.1
    assert finer == Window(7, 3, left=87, top=0, size=518, width=690, height=518)


def test_the_fine_view_is_read_from_the_photographs_at_its_side(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", range(2))
    run = extract(tmp_path / "run", pictures, frame="whole")
    side = 5 * SIZE // 4
    (record,) = view(run, ViewSettings(views=f"clean,fine:{side}")).values()
    assert record.facts == {
        "arrays": ["fine", "fine_mirror"],
        "side": side,
        "grid": [side // 8] * 2,
    }
    manifest, arrays = read_manifest(run), open_pair(run.features, "fine")
    for window in manifest.windows:
        image = manifest.images[window.image]
        scale = side / SIZE
        frame = read_frame(
            manifest.root, image, round(window.width * scale), round(window.height * scale)
        )
        left, top = round(window.left * scale), round(window.top * scale)
        pixels = as_images(frame[top : top + side, left : left + side])
        assert pixels.shape[-2:] == (side, side)
        compare(np.asarray(arrays["clean"][window.index]), pixels)
        compare(np.asarray(arrays["mirror"][window.index]), pixels.flip(-1))
    # all arrays are still opened as one
    assert set(xarray.open_zarr(run.features, consolidated=True).sizes) >= {"row", "fine_row"}


def test_a_fine_view_that_is_none_is_refused_before_anything_is_put_away(
    tmp_path: Path, pictures: Path
) -> None:
    run = extract(tmp_path / "run", pictures)
    view(run, ViewSettings(views="clean,fine:40"))
    times = list_times(run, "fine")
    for side in (SIZE, 41, 24):
        with pytest.raises(UsageError, match=rf"fine:{side}: .* patch of 8 .* such as fine:\d+\.$"):
            view(run, ViewSettings(views=f"clean,fine:{side}"))
    assert list_times(run, "fine") == times
    # of another side it is another view
    view(run, ViewSettings(views="clean,fine:48"))
    assert open_pair(run.features, "fine")["clean"].shape[1:3] == (6, 6)
    # put away and asked for again it is there without work
    times = list_times(run, "fine")
    view(run, ViewSettings(views="clean,photometric"))
    view(run, ViewSettings(views="clean,fine:48"))
    assert list_times(run, "fine") == times


def test_arrays_hold_what_their_names_say(tmp_path: Path, pictures: Path) -> None:
    run = extract(tmp_path / "run", pictures, frame="whole")
    assert {name: record.facts for name, record in view(run, ALL).items()} == {
        "crops": {"arrays": list(CROPS)},
        "jittered_1": {"arrays": ["jittered_1"]},
        "photometric_1": {"arrays": ["photometric_1", "photometric_1_mirror"]},
        "photometric_2": {"arrays": ["photometric_2", "photometric_2_mirror"]},
    }
    manifest = read_manifest(run)
    assert len(manifest.windows) > len(manifest.images)
    arrays = read_all(run)
    names = {"clean", "mirror", "jittered_1", *CROPS}
    names |= {f"photometric_{n}{side}" for n in (1, 2) for side in ("", "_mirror")}
    assert set(arrays) == names
    for window in manifest.windows:
        image = manifest.images[window.image]
        row = window.index
        frame = read_frame(manifest.root, image, window.width, window.height)
        left, top, right, bottom = window.box
        pixels = torch.from_numpy(frame[top:bottom, left:right].copy()).permute(2, 0, 1)[None]
        for number in (1, 2):
            drawn = views.draw_augmentation(image.digest, window.box, number, 0)
            augmented = views.augment(pixels, [drawn]).float() / 255
            compare(arrays[f"photometric_{number}"][row], augmented)
            compare(arrays[f"photometric_{number}_mirror"][row], augmented.flip(-1))
        drawn = views.draw_augmentation(image.digest, window.box, 1, 0, JITTERED)
        compare(arrays["jittered_1"][row], views.augment(pixels, [drawn]).float() / 255)
        double = read_frame(manifest.root, image, 2 * window.width, 2 * window.height)
        whole = double[2 * top : 2 * bottom, 2 * left : 2 * right]
        half = SIZE // 2
        for name, crop in zip(
            CROPS,
            (
                whole[:SIZE, :SIZE],
                whole[:SIZE, SIZE:],
                whole[SIZE:, :SIZE],
                whole[SIZE:, SIZE:],
                whole[half : half + SIZE, half : half + SIZE],
            ),
            strict=True,
        ):
            compare(arrays[name][row], as_images(crop))
    assert not np.array_equal(arrays["photometric_1"], arrays["photometric_2"])
    assert not np.array_equal(arrays["photometric_1"], arrays["clean"])


def show_pixels(backbone: Any, pixels: np.ndarray) -> np.ndarray:
    """Give some of the pixels for features, exactly: float16 [window, row, column, channel]."""
    features = np.zeros((len(pixels), GRID, GRID, CHANNELS), np.float16)
    features[..., :3] = pixels[:, 3::8, 3::8]
    features[..., 3:6] = pixels[:, 6::8, 6::8]
    return features


def test_the_same_windows_have_the_same_bytes_wherever_they_stand(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the backbone makes of its pictures may differ in the last bit with what goes together.
    monkeypatch.setattr(views, "extract_clean", show_pixels)
    monkeypatch.setattr(
        views,
        "extract_views",
        lambda b, pixels: (show_pixels(b, pixels), show_pixels(b, pixels[:, :, ::-1])),
    )
    first = extract(tmp_path / "first", pictures)
    view(first, ALL)
    other = extract(tmp_path / "other", pictures, shard_size=3, batch_size=2)
    view(other, ALL)
    names = set(read_all(first)) - {"clean", "mirror"}
    expected, found = read_all(first), read_all(other)
    assert all(expected[name].tobytes() == found[name].tobytes() for name in names)
    # three more images before them, and one after
    write_pictures(pictures, range(7, 10))
    write_pictures(pictures, range(15, 16))
    more = extract(tmp_path / "more", pictures)
    view(more, ALL)
    found = read_all(more)
    assert all(expected[name].tobytes() == found[name][3:8].tobytes() for name in names)


def test_windows_of_whole_frames_are_augmented_one_by_one(tmp_path: Path, pictures: Path) -> None:
    run = extract(tmp_path / "run", pictures, frame="whole", limit=1)
    windows = read_manifest(run).windows
    assert len({window.box for window in windows}) == len(windows) > 1
    digest = read_manifest(run).images[0].digest
    assert len({views.draw_augmentation(digest, w.box, 1, 0) for w in windows}) > 1


def test_a_rerun_computes_nothing_and_another_seed_the_augmentations_alone(
    tmp_path: Path, pictures: Path
) -> None:
    run = extract(tmp_path / "run", pictures)
    view(run, ALL)
    before, times = read_all(run), list_times(run, *read_all(run))
    view(run, ALL)
    assert list_times(run, *before) == times
    view(run, ALL.replace(seed=1))
    after = read_all(run)
    for name in before:
        assert np.array_equal(before[name], after[name]) is (
            "photometric" not in name and "jittered" not in name
        )
    kept = ("clean", "mirror", *CROPS)
    assert list_times(run, *kept).items() <= times.items()


def test_views_added_later_leave_all_others_as_they_are(tmp_path: Path, pictures: Path) -> None:
    run = extract(tmp_path / "run", pictures)
    run_stage(Masks(), run, MaskSettings(crf="none"), Execution(), QUIET)
    view(run, ViewSettings(views="clean,photometric"))
    arrays = ("clean", "mirror", "photometric_1", "photometric_1_mirror")
    times = list_times(run, *arrays)
    view(run, ViewSettings(views="clean,photometric:2"))
    view(run, ALL)
    assert list_times(run, *arrays) == times
    assert {inspect_stage(run, key).state for key in run.keys()} == {"fresh"}  # noqa: SIM118
    # all of them at once are the same bytes
    other = extract(tmp_path / "other", pictures)
    view(other, ALL)
    expected, found = read_all(other), read_all(run)
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_a_view_wanted_no_more_is_kept_while_it_fits(tmp_path: Path, pictures: Path) -> None:
    run = extract(tmp_path / "run", pictures)
    view(run, ALL)
    times = list_times(run, *read_all(run))
    assert list(view(run, ViewSettings(views="clean,photometric"))) == ["photometric_1"]
    assert run.names("views") == ["crops", "jittered_1", "photometric_1", "photometric_2"]
    assert set(judge(run).values()) == {"fresh"}
    assert list(view(run, ALL)) == ["crops", "jittered_1", "photometric_1", "photometric_2"]
    assert list_times(run, *read_all(run)) == times
    # more images: what is wanted grows, the rest goes
    write_pictures(pictures, range(15, 17))
    extract(tmp_path / "run", pictures)
    assert set(judge(run).values()) == {"stale"}
    with pytest.raises(
        StaleError, match=r"views/crops is stale .*; run `primaps-pipe extract \S+` again"
    ):
        require_fresh(run, "views/crops")
    view(run, ViewSettings(views="clean,photometric"))
    assert set(read_all(run)) == {"clean", "mirror", "photometric_1", "photometric_1_mirror"}
    # whole shards of old images were not computed again
    first = str(run.features / "photometric_1" / "c" / "0" / "0" / "0" / "0")
    assert list_times(run, "photometric_1")[first] == times[first]
    opened = xarray.open_zarr(run.features)
    assert dict(opened.sizes) == {"window": 7, "row": GRID, "column": GRID, "channel": CHANNELS}
    assert set(opened) == set(read_all(run))


def test_force_computes_all_again_and_a_lost_file_its_shard(tmp_path: Path, pictures: Path) -> None:
    run = extract(tmp_path / "run", pictures)
    view(run, ALL)
    before = read_all(run)
    times = list_times(run, "photometric_1", "crop_5")
    # damaged in a way that no ledger can know
    damaged = run.features / "crop_5" / "c" / "1" / "0" / "0" / "0"
    damaged.write_bytes(b"damaged")
    with pytest.raises(RunError):
        read_all_checked(run)
    view(run, ALL, force=True)
    again = list_times(run, "photometric_1", "crop_5")
    shards = [file for file in times if "/c/" in file]
    assert len(shards) == 6
    assert all(again[file] != times[file] for file in shards)
    shutil.rmtree(run.features / "photometric_2")
    view(run, ALL)
    after = read_all(run)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_force_with_another_view_computes_all_again(tmp_path: Path, pictures: Path) -> None:
    run = extract(tmp_path / "run", pictures)
    view(run, ViewSettings(views="clean,photometric"))
    times = list_times(run, "photometric_1")
    view(run, ViewSettings(views="clean,photometric:2"), force=True)
    again = list_times(run, "photometric_1")
    assert all(again[file] != times[file] for file in times if "/c/" in file)


def read_all_checked(run: RunDirectory) -> None:
    array = open_arrays(run.features, ["crop_5"])["crop_5"]
    read_rows(array, 0, array.shape[0])


def test_an_interrupted_shard_goes_on_with_the_parts_it_lacks(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = extract(tmp_path / "run", pictures)
    view(run, ViewSettings(views="clean,photometric"))
    write = stage.write_shard

    def fail(store: Path, blocks: Any, shard: int, rows: int) -> None:
        write(store, blocks, shard, rows)
        raise RunError("the disk is full")

    monkeypatch.setattr(stage, "write_shard", fail)
    with pytest.raises(PipelineError, match="the disk is full"):
        view(run, ALL)
    monkeypatch.undo()
    assert judge(run) == {"photometric_1": "fresh", "photometric_2": "incomplete"}
    times = list_times(run, "photometric_1")
    view(run, ALL)
    assert list_times(run, "photometric_1") == times
    other = extract(tmp_path / "other", pictures)
    view(other, ALL)
    expected, found = read_all(other), read_all(run)
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_rejected_images_stay_zero(tmp_path: Path, pictures: Path) -> None:
    cut = pictures / "11.png"
    cut.write_bytes(cut.read_bytes()[:-200])
    run = extract(tmp_path / "run", pictures)
    assert [image.ok for image in read_manifest(run).images] == [True, False, True, True, True]
    view(run, ALL)
    for name, array in read_all(run).items():
        assert not array[1].any(), name
        assert all(array[row].any() for row in (0, 2, 3, 4)), name


def test_an_image_that_changed_is_stale(tmp_path: Path, pictures: Path) -> None:
    run = extract(tmp_path / "run", pictures)
    os.utime(pictures / "12.png", ns=(0, 1))
    with pytest.raises(Exception, match=r"12\.png has changed since it was extracted") as caught:
        view(run, ALL)
    assert isinstance(caught.value.__cause__ or caught.value, StaleError)
    assert inspect_stage(run, "views/photometric_1").done == 2


def test_an_image_that_can_no_longer_be_read_is_named(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = extract(tmp_path / "run", pictures, limit=1)

    def read(*_: Any) -> Any:
        raise ImageError("truncated: the file ends early")

    monkeypatch.setattr(frames, "read_frame", read)
    sentence = r"^10\.png could be read by extract and now cannot \(truncated: .*\); run `primaps-"
    with pytest.raises(ImageError, match=sentence):
        view(run, ViewSettings(crops="five"))


def test_attention_of_handcrafted_features_is_refused_before_anything_is_written(
    tmp_path: Path, pictures: Path
) -> None:
    run = extract(tmp_path / "run", pictures)
    with pytest.raises(UsageError, match="The backbone handcrafted has no last block whose"):
        view(run, ViewSettings(attention=True))
    assert set(read_all(run)) == {"clean", "mirror"}
    assert run.keys() == ["extract"]


def test_nothing_asked_is_nothing_done(tmp_path: Path, pictures: Path) -> None:
    run = extract(tmp_path / "run", pictures)
    assert view(run, ViewSettings()) == {}
    assert set(read_all(run)) == {"clean", "mirror"}


def test_without_features_there_are_no_views(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        view(RunDirectory(tmp_path / "run"), ALL)


def test_mixing_is_cached_of_a_transformer(tmp_path: Path, pictures: Path) -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model("test_vit", pretrained=False, num_classes=0)
    weights = tmp_path / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, weights)
    arguments = {"backbone": "test_vit", "weights": weights, "precision": "float32"}
    run = extract(tmp_path / "run", pictures, **arguments)
    clean = read_all(run)["clean"]
    view(run, ViewSettings(attention=True))
    record = read_record(run, "extract")
    settings = ExtractSettings(**run.read_settings("extract"))
    backbone = backbones.load_backbone(settings, record.facts["weights_digest"])
    arrays = read_all(run)
    assert np.array_equal(arrays["clean"], clean)
    assert arrays["mixing"].shape == (5, 2, 2, 9)
    manifest = read_manifest(run)
    for window in manifest.windows:
        frame = read_frame(
            manifest.root, manifest.images[window.image], window.width, window.height
        )
        left, top, right, bottom = window.box
        attention = backbone.attend(as_images(frame[top:bottom, left:right]))
        np.testing.assert_allclose(
            arrays["mixing"][window.index],
            weigh_neighbours(attention, 2, 2)[0].numpy(),
            atol=1e-4,
            rtol=2e-3,
        )
