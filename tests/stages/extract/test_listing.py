"""The listing: what is read again, what is rejected, where windows lie, what shards are made of.

The dataset of a run: as it is now, or as the run keeps it where it is gone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tifffile
from PIL import Image as PillowImage

from pipeline.datasets import get_dataset
from pipeline.errors import DatasetError, ImageError
from pipeline.images.decoding import ImageHeader, probe_pages, read_rgb
from pipeline.images.reading import Reading
from pipeline.progress import Counter, Screen
from pipeline.run.manifest import Image, Manifest
from stages.extract import listing
from stages.extract.listing import check_labels, list_images, place_all, settle_range, tell_takings
from stages.extract.settings import ExtractSettings
from stages.extract.stage import fingerprint_shard


@dataclass
class Lister:
    """A folder of photographs, and how often each was read."""

    root: Path
    read: list[str] = field(default_factory=list)
    advanced: int = 0

    def add(self, name: str, width: int = 40, height: int = 30) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (height, width, 3))
        PillowImage.fromarray(pixels.astype(np.uint8)).save(path)
        return path

    def scan(
        self,
        known: Sequence[Image] = (),
        *,
        splits: Sequence[str] = ("all",),
        limit: int | None = None,
        exclude: Sequence[Path] = (),
        screen: Screen | None = None,
        listed: Sequence[Image] = (),
        **reading: object,
    ) -> list[Image]:
        self.read.clear()
        self.advanced = 0
        folder = get_dataset("folder")
        settings = ExtractSettings(
            dataset="folder", root=self.root, splits=tuple(splits), limit=limit, **reading
        )
        images = list_images(folder, settings, known, exclude, Watching(self), listed)
        if screen is not None:
            tell_takings(images, settings.reading, screen)
            images = settle_range(images, self.root, settings.reading, screen)
        return list(images)


class Watching(Screen):
    """A screen that tells a lister how far it is."""

    def __init__(self, lister: Lister) -> None:
        super().__init__(progress=False)
        self.lister = lister

    def count(self, title: str, total: int, unit: str, **_: object) -> Counter:
        lister = self.lister

        class Counting(Counter):
            def advance(self, amount: int = 1) -> None:
                lister.advanced += amount

        return Counting()


@pytest.fixture
def lister(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lister:
    lister = Lister(tmp_path / "photographs")

    def probe(path: Path, reading: Reading) -> list[ImageHeader]:
        lister.read.append(path.name)
        return probe_pages(path, reading)

    monkeypatch.setattr(listing, "probe_pages", probe)
    return lister


def manifest_of(images: Sequence[Image], **placing: object) -> Manifest:
    options = {"size": 32, "frame": "whole", "overlap": 0.25} | placing
    windows, reasons = place_all(images, **options)  # type: ignore[arg-type]
    return Manifest("folder", Path(), None, tuple(images), tuple(windows)).reject(reasons)


def test_every_image_is_read_once_and_listed_in_order(lister: Lister) -> None:
    for name in ("c.png", "a/z.png", "b.jpg"):
        lister.add(name)
    images = lister.scan()
    assert [image.id for image in images] == ["a/z", "b", "c"]
    assert [image.image for image in images] == [0, 1, 2]
    assert sorted(lister.read) == ["b.jpg", "c.png", "z.png"]
    assert lister.advanced == 3
    assert all(image.ok and (image.width, image.height) == (40, 30) for image in images)
    assert len({image.digest for image in images}) == 3
    first = lister.root / "a/z.png"
    assert images[0].bytes == first.stat().st_size
    assert images[0].modified_ns == first.stat().st_mtime_ns


def test_unchanged_files_are_not_read_again(lister: Lister) -> None:
    for name in ("a.png", "b.png", "c.png"):
        lister.add(name)
    known = lister.scan()
    assert lister.scan(known) == known
    assert lister.read == []
    assert lister.advanced == 3

    changed = lister.add("b.png", width=50)
    lister.add("d.png")
    images = lister.scan(known)
    assert sorted(lister.read) == ["b.png", "d.png"]
    assert images[1].width == 50
    assert images[1].digest != known[1].digest
    assert (images[0], images[2]) == (known[0], known[2])

    status = changed.stat()
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    touched = lister.scan(images)
    assert lister.read == ["b.png"]
    assert touched[1].digest == images[1].digest


def test_rows_follow_the_present_listing_not_the_known_one(lister: Lister) -> None:
    for name in ("b.png", "c.png"):
        lister.add(name)
    known = lister.scan()
    lister.add("a.png")
    images = lister.scan(known)
    assert lister.read == ["a.png"]
    assert [(image.image, image.id) for image in images] == [(0, "a"), (1, "b"), (2, "c")]


def test_broken_files_are_rejected_with_a_reason(lister: Lister) -> None:
    good = lister.add("good.png")
    (lister.root / "cut.png").write_bytes(good.read_bytes()[:20])
    (lister.root / "empty.jpg").write_bytes(b"")
    (lister.root / "text.jpg").write_text("not a photograph")
    (lister.root / "gone.png").symlink_to(lister.root / "nowhere.png")
    images = {image.id: image for image in lister.scan()}
    assert {name for name, image in images.items() if image.ok} == {"good"}
    for name in ("cut", "empty", "text", "gone"):
        assert images[name].state == "rejected"
        assert images[name].reason
        assert (images[name].width, images[name].digest) == (0, "")
    assert "empty" in str(images["empty"].reason)
    assert lister.advanced == 5


def test_rejected_files_are_tried_again(lister: Lister) -> None:
    lister.add("a.png")
    (lister.root / "b.png").write_bytes(b"")
    known = lister.scan()
    assert [image.ok for image in known] == [True, False]
    assert lister.scan(known) == known
    assert lister.read == [], "the same file would be rejected again"
    (lister.root / "b.png").write_bytes(b"x")
    assert lister.scan(known)[1].reason == "not an image"
    assert lister.read == ["b.png"]
    lister.add("b.png")
    assert all(image.ok and image.reason is None for image in lister.scan(known))


def test_a_rejected_file_is_not_taken_for_a_known_one(lister: Lister) -> None:
    lister.root.mkdir()
    empty = lister.root / "a.png"
    empty.write_bytes(b"")
    os.utime(empty, ns=(0, 0))  # size and time are those of a row that nothing is known of
    known = lister.scan()
    assert lister.scan(known) == known
    assert not known[0].ok


def test_a_file_that_failed_later_on_is_given_another_chance(lister: Lister) -> None:
    lister.add("a.png")
    (image,) = lister.scan()
    (rejected,) = manifest_of([image]).reject({0: "truncated"}).images
    assert lister.scan([rejected]) == [image]
    assert lister.read == []


def test_the_limit_is_that_of_every_split(lister: Lister) -> None:
    for name in ("train/a.png", "train/b.png", "train/c.png", "val/d.png", "val/e.png"):
        lister.add(name)
    images = lister.scan(splits=("val", "train"), limit=2)
    assert [(image.split, image.id) for image in images] == [
        ("val", "d"),
        ("val", "e"),
        ("train", "a"),
        ("train", "b"),
    ]
    assert [image.image for image in images] == [0, 1, 2, 3]
    assert len(lister.read) == 4, "what is not listed is not read"
    assert len(lister.scan(splits=("train", "val"), limit=9)) == 5


def test_images_of_several_splits_keep_their_order_and_others_follow(lister: Lister) -> None:
    for name in ("train/a.png", "train/b.png", "val/c.png"):
        lister.add(name)
    splits = ("all", "train")
    images = lister.scan(splits=splits)
    names = [(image.split, image.path) for image in images]
    assert names[-2:] == [("train", "train/a.png"), ("train", "train/b.png")]
    assert lister.scan(images, splits=splits, listed=images) == images
    lister.add("a.png")
    again = lister.scan(images, splits=splits, listed=images)
    assert [(i.split, i.path) for i in again] == [*names, ("all", "a.png")]


def test_excluded_folders_are_left_out(lister: Lister) -> None:
    lister.add("a.png")
    lister.add("run/labels/b.png")
    assert [i.id for i in lister.scan(exclude=[lister.root / "run"])] == ["a"]


def test_a_folder_without_images_is_refused(lister: Lister) -> None:
    lister.root.mkdir()
    with pytest.raises(DatasetError, match="no images"):
        lister.scan()


def make_image(row: int, width: int, height: int, *, ok: bool = True) -> Image:
    state = "ok" if ok else "rejected"
    return Image(row, f"i{row}", "all", f"i{row}.png", None, width, height, 1, 1, f"d{row}", state)


def test_a_window_s_index_is_its_row() -> None:
    images = [make_image(0, 90, 30), make_image(1, 30, 60), make_image(2, 30, 30)]
    windows, reasons = place_all(images, 32, "whole", 0.25)
    assert not reasons
    assert [window.index for window in windows] == list(range(len(windows)))
    assert [window.image for window in windows] == [0, 0, 0, 0, 1, 1, 1, 2]
    assert {(w.width, w.height) for w in windows if w.image == 0} == {(96, 32)}
    assert [w.box for w in windows if w.image == 2] == [(0, 0, 32, 32)]
    for image in images:
        seen = np.zeros(next((w.height, w.width) for w in windows if w.image == image.image), bool)
        for window in windows:
            if window.image == image.image:
                left, top, right, bottom = window.box
                seen[top:bottom, left:right] = True
        assert seen.all()


def test_one_centred_window_an_image() -> None:
    windows, _ = place_all([make_image(0, 64, 32), make_image(1, 32, 64)], 32, "centre", 0.25)
    assert [window.box for window in windows] == [(16, 0, 48, 32), (0, 16, 32, 48)]


def test_rejected_and_unplaceable_images_have_no_windows() -> None:
    images = [make_image(0, 40, 40, ok=False), make_image(1, 9000, 10), make_image(2, 40, 40)]
    windows, reasons = place_all(images, 32, "whole", 0.25)
    assert [(window.index, window.image) for window in windows] == [(0, 2)]
    assert list(reasons) == [1]
    assert "too long" in reasons[1]


def test_more_images_keep_the_fingerprints_of_earlier_shards(lister: Lister) -> None:
    for name in ("a.png", "b.png", "c.png"):
        lister.add(name, width=90)
    before = manifest_of(lister.scan())
    (lister.root / "0.png").write_bytes(b"")  # rows shift, windows do not
    for name in ("d.png", "e.png"):
        lister.add(name)
    after = manifest_of(lister.scan(before.images))
    assert after.images[1].id == "a"
    assert len(after.windows) > len(before.windows)
    for start in range(0, len(before.windows), 4):
        block = slice(start, start + 4)
        assert fingerprint_shard(after, after.windows[block]) == fingerprint_shard(
            before, before.windows[block]
        )


def test_a_shard_s_fingerprint_is_that_of_what_it_shows(lister: Lister) -> None:
    for name in ("a.png", "b.png"):
        lister.add(name, width=90)
    manifest = manifest_of(lister.scan())
    print_ = fingerprint_shard(manifest, manifest.windows)
    (lister.root / "a.png").rename(lister.root / "aa.png")
    renamed = manifest_of(lister.scan())
    assert fingerprint_shard(renamed, renamed.windows) == print_
    placed = manifest_of(renamed.images, overlap=0.6)
    assert fingerprint_shard(placed, placed.windows) != print_
    left = [window.left + 1 for window in manifest.windows]
    moved = manifest.windows.replace(left=pa.array(left))
    assert fingerprint_shard(manifest, moved) != print_
    smaller = manifest_of(renamed.images, size=16)
    assert fingerprint_shard(smaller, smaller.windows) != print_
    lister.add("b.png", width=91)
    changed = manifest_of(lister.scan(renamed.images))
    assert fingerprint_shard(changed, changed.windows) != print_


def test_an_unexpected_error_is_not_swallowed(
    lister: Lister, monkeypatch: pytest.MonkeyPatch
) -> None:
    lister.add("a.png")

    def fail(path: Path, _: Reading) -> list[ImageHeader]:
        raise ImageError("of the wrong kind") if path.name == "b.png" else KeyError("a bug")

    monkeypatch.setattr(listing, "probe_pages", fail)
    with pytest.raises(KeyError):
        lister.scan()


class Hearing(Screen):
    """A screen that remembers what it was told."""

    def __init__(self) -> None:
        super().__init__(progress=False)
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)

    warn = note


def add_deep(lister: Lister, name: str, low: int, high: int) -> Path:
    path = lister.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.linspace(low, high, 40 * 30).reshape(30, 40).astype(np.uint16)
    PillowImage.fromarray(values).save(path)
    return path


def test_a_narrow_use_of_16_bit_is_told_once(lister: Lister) -> None:
    add_deep(lister, "a.png", 0, 2040)
    add_deep(lister, "b.tif", 0, 2040)
    lister.add("c.png")
    screen = Hearing()
    lister.scan(screen=screen)
    (told,) = screen.told
    assert "of 2 images beyond 8 bit lie in 19.98..2019.02 of 0..65535" in told
    assert "and become 0..7 of 0..255" in told and "--range percentiles" in told
    for quiet in ("0..2047", "percentiles"):
        screen = Hearing()
        lister.scan(screen=screen, range=quiet)
        assert not any("little contrast" in told for told in screen.told)
    add_deep(lister, "a.png", 0, 65535)
    add_deep(lister, "b.tif", 0, 60000)
    screen = Hearing()
    lister.scan(screen=screen)
    assert screen.told == []


def test_percentiles_are_measured_over_the_folder_and_kept_for_every_stage(lister: Lister) -> None:
    path = add_deep(lister, "a.png", 0, 1000)
    add_deep(lister, "b.png", 1000, 2000)
    lister.add("c.png")
    screen = Hearing()
    images = lister.scan(screen=screen, range="percentiles")
    assert [image.digest.partition(":")[2] for image in images[:2]] == ["range=19.99..1979.01"] * 2
    assert ":" not in images[2].digest and "19.99 and 1979.01" in screen.told[0]
    pixels = read_rgb(path, images[0].digest)
    assert (pixels.min(), pixels.max()) == (0, round(980 * 255 / 1959))
    again = lister.scan(images, screen=Hearing(), range="percentiles")
    assert [image.digest for image in again] == [image.digest for image in images]
    assert lister.read == []


def test_pages_are_counted_or_listed(lister: Lister) -> None:
    frames = [PillowImage.new("RGB", (40 + n, 30), (n, 0, 0)) for n in range(3)]
    lister.root.mkdir()
    frames[0].save(lister.root / "a.tif", save_all=True, append_images=frames[1:])
    lister.add("b.png")
    screen = Hearing()
    assert [image.id for image in lister.scan(screen=screen)] == ["a", "b"]
    (told,) = screen.told
    assert "1 file with several pages or frames" in told and "2 pages are left out" in told
    screen = Hearing()
    images = lister.scan(screen=screen, pages="all")
    assert [image.id for image in images] == ["a.page1", "a.page2", "a.page3", "b"]
    assert [image.image for image in images] == [0, 1, 2, 3] and screen.told == []
    assert [image.width for image in images] == [40, 41, 42, 40]
    assert sorted(lister.read) == ["a.tif", "b.png"], "a file is read once for all its pages"
    again = lister.scan(images, pages="all")
    assert again == images and lister.read == []
    lister.add("a.page2.png")
    with pytest.raises(DatasetError, match="rename one of them"):
        lister.scan(pages="all")


def test_bands_are_told(lister: Lister) -> None:
    lister.root.mkdir()
    pixels = np.random.default_rng(0).integers(1, 250, (30, 40, 4), np.uint8)
    tifffile.imwrite(lister.root / "a.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    screen = Hearing()
    (image,) = lister.scan(screen=screen)
    assert "of 1 image with 4 bands, bands 1, 2, 3 are red, green and blue" in screen.told[0]
    assert np.array_equal(read_rgb(lister.root / "a.tif", image.digest), pixels[:, :, :3])
    (other,) = lister.scan(screen=(screen := Hearing()), bands="4")
    assert "band 4 is grey, as asked" in screen.told[0]
    assert np.array_equal(read_rgb(lister.root / "a.tif", other.digest)[:, :, 0], pixels[:, :, 3])


def test_a_limit_of_pixels_can_be_set(lister: Lister) -> None:
    lister.add("a.png")
    (image,) = lister.scan(max_pixels=1199)
    assert image.reason is not None and "1200 pixels, the limit is 1199" in image.reason
    (image,) = lister.scan(max_pixels=1200)
    assert image.ok


def test_label_maps_whose_no_data_is_a_class_are_told(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    root, labels = tmp_path / "images", tmp_path / "labels"
    for folder in (root, labels):
        folder.mkdir()
    for name, nodata in (("a", 0), ("b", 255)):
        PillowImage.new("RGB", (40, 30)).save(root / f"{name}.tif")
        with rasterio.open(
            labels / f"{name}.tif", "w", "GTiff", 40, 30, 1, dtype="uint8", nodata=nodata
        ) as file:
            file.write(np.array([0] * 600 + [1] * 600, np.uint8).reshape(1, 30, 40))
    dataset = get_dataset("folder")
    settings = ExtractSettings(
        dataset="folder", root=root, labels=labels, splits=("all",), size=16, frame="whole"
    )
    images = list_images(dataset, settings, (), (), Screen(progress=False))
    (warning,) = check_labels(Manifest("folder", root, labels, images, [], None))
    assert warning == (
        "of 2 label maps looked at, some say that 0 is no data, and it is scored as a class "
        "(first: a.tif); `ignore: [0]` in a dataset YAML leaves it out"
    )
