"""The folder of an export, and its photographs."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from pipeline.errors import RunError, StaleError, UsageError
from pipeline.images.decoding import probe_image, read_rgb
from pipeline.run.manifest import Image
from pipeline.storage.locks import hold_lock
from workflows.export.folder import (
    COMMON,
    JPEG,
    PNG,
    Folder,
    choose_suffix,
    export_photograph,
    load_photograph,
    open_folder,
)

RECORD = {"format": "mmseg", "run": "mine"}


def test_a_new_folder_gets_a_record_that_ends_finished(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with open_folder(out, RECORD) as folder:
        assert json.loads((out / "export.json").read_text())["finished"] is False
        folder.write("a/b.txt", b"text")
    record = json.loads((out / "export.json").read_text())
    assert record["finished"] is True
    assert record["format"] == "mmseg"
    assert (out / "a" / "b.txt").read_bytes() == b"text"


def test_what_is_there_is_kept_by_the_same_export(tmp_path: Path) -> None:
    with pytest.raises(KeyError), open_folder(tmp_path, RECORD) as folder:
        folder.write("a.txt", b"first")
        raise KeyError
    with open_folder(tmp_path, RECORD) as folder:
        assert folder.has("a.txt")
        folder.write("a.txt", b"second")
    assert (tmp_path / "a.txt").read_bytes() == b"first"


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(RunError, match=r"is not empty and holds no export; give a new folder"):
        open_folder(tmp_path, RECORD).__enter__()
    assert [p.name for p in tmp_path.iterdir()] == ["photo.jpg"]


def test_another_export_is_refused(tmp_path: Path) -> None:
    with open_folder(tmp_path, RECORD):
        pass
    with pytest.raises(RunError, match=r"holds another export \(format mmseg of mine"):
        open_folder(tmp_path, {**RECORD, "format": "yolo-seg"}).__enter__()
    # the same run under another name
    with open_folder(tmp_path, {**RECORD, "run": "other"}):
        pass


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text("{")
    with pytest.raises(RunError, match=r"export.json is damaged"):
        open_folder(tmp_path, RECORD).__enter__()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError, match="is a file; give a folder"):
        open_folder(tmp_path / "out", RECORD).__enter__()


def test_two_exports_do_not_write_one_folder(tmp_path: Path) -> None:
    with (
        hold_lock(tmp_path / ".export.lock", what="it", wait=False),
        pytest.raises(RunError),
    ):
        open_folder(tmp_path, RECORD).__enter__()


def test_a_stream_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    with open_folder(tmp_path, RECORD) as folder:
        with pytest.raises(KeyError), folder.stream("rows.json") as stream:
            stream.write(b"half")
            raise KeyError
        assert not folder.has("rows.json")
        with folder.stream("rows.json") as stream:
            stream.write(b"whole")
    assert (tmp_path / "rows.json").read_bytes() == b"whole"
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".part"]


def test_labels_with_and_without_palette(tmp_path: Path) -> None:
    labels = np.array([[0, 1], [2, 255]], np.uint8)
    with open_folder(tmp_path, RECORD) as folder:
        folder.write_labels("indexed.png", labels, bytes(range(256)) * 3)
        folder.write_labels("grey.png", labels, None)
    for name, mode in (("indexed", "P"), ("grey", "L")):
        image = PillowImage.open(tmp_path / f"{name}.png")
        assert image.mode == mode
        np.testing.assert_array_equal(np.asarray(image), labels)


def list_image(root: Path, path: str) -> Image:
    header = probe_image(root / path)
    return Image(
        *(0, Path(path).stem, "all", path, None),
        *(header.width, header.height, header.bytes, header.modified_ns, header.digest),
    )


def draw(path: Path, **options: object) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 20, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.fromarray(pixels).save(path, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "out")


@pytest.mark.parametrize(
    ("path", "accepted", "suffix"),
    [
        ("a/b.JPEG", COMMON, ".jpg"),
        ("b.tiff", COMMON, ".tif"),
        ("b.gif", COMMON, ".png"),
        ("b.mat", PNG, ".png"),
        ("b.png", JPEG, ".jpg"),
    ],
)
def test_suffixes(path: str, accepted: dict[str, str], suffix: str) -> None:
    assert choose_suffix(path, accepted) == suffix


def test_copies_are_the_same_bytes(tmp_path: Path, folder: Folder) -> None:
    draw(tmp_path / "a.jpg")
    export_photograph(tmp_path, list_image(tmp_path, "a.jpg"), folder, "x/a.jpg", "copy")
    assert (folder.path / "x/a.jpg").read_bytes() == (tmp_path / "a.jpg").read_bytes()


def test_links_lead_to_the_photograph(tmp_path: Path, folder: Folder) -> None:
    draw(tmp_path / "a.png")
    before = (tmp_path / "a.png").stat()
    export_photograph(tmp_path, list_image(tmp_path, "a.png"), folder, "a.png", "link")
    assert (folder.path / "a.png").readlink() == tmp_path / "a.png"
    after = (tmp_path / "a.png").stat()
    assert (after.st_ctime_ns, after.st_nlink) == (before.st_ctime_ns, before.st_nlink)


def test_a_link_to_a_file_as_it_is_reads_nothing_of_it(
    tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "a.png")
    image = list_image(tmp_path, "a.png")
    monkeypatch.setattr(Path, "read_bytes", pytest.fail)
    export_photograph(tmp_path, image, folder, "a.png", "link", as_it_is=True)
    assert (folder.path / "a.png").readlink() == tmp_path / "a.png"


def test_none_leaves_them_out(tmp_path: Path, folder: Folder) -> None:
    draw(tmp_path / "a.png")
    export_photograph(tmp_path, list_image(tmp_path, "a.png"), folder, "a.png", "none")
    assert not folder.path.exists()


@pytest.mark.parametrize("images", ["copy", "link"])
def test_another_kind_of_file_is_written_anew(tmp_path: Path, folder: Folder, images: str) -> None:
    draw(tmp_path / "a.bmp")
    export_photograph(tmp_path, list_image(tmp_path, "a.bmp"), folder, "a.png", images)
    assert not (folder.path / "a.png").is_symlink()
    np.testing.assert_array_equal(read_rgb(folder.path / "a.png"), read_rgb(tmp_path / "a.bmp"))


@pytest.mark.parametrize("images", ["copy", "link"])
def test_what_exif_turns_is_written_upright(tmp_path: Path, folder: Folder, images: str) -> None:
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    draw(tmp_path / "a.jpg", exif=exif)
    image = list_image(tmp_path, "a.jpg")
    assert (image.width, image.height) == (12, 20)
    export_photograph(tmp_path, image, folder, "a.jpg", images)
    with PillowImage.open(folder.path / "a.jpg") as written:
        assert written.size == (12, 20)
        assert not written.getexif().get(0x0112)
    with PillowImage.open(io.BytesIO(load_photograph(tmp_path, image, ".jpg"))) as loaded:
        assert loaded.size == (12, 20)


@pytest.mark.parametrize("images", ["copy", "link"])
def test_what_late_exif_turns_is_written_upright(
    tmp_path: Path, folder: Folder, images: str
) -> None:
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    late = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    draw(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    # behind the pixels, before the last chunk, as some writers put it
    (tmp_path / "a.png").write_bytes(whole[:-12] + late + whole[-12:])
    image = list_image(tmp_path, "a.png")
    assert (image.width, image.height) == (12, 20)
    export_photograph(tmp_path, image, folder, "a.png", images)
    with PillowImage.open(folder.path / "a.png") as written:
        assert written.size == (12, 20)


@pytest.mark.parametrize("images", ["copy", "link"])
def test_another_photograph_under_its_name_is_refused(
    tmp_path: Path, folder: Folder, images: str
) -> None:
    draw(tmp_path / "a.png")
    image = list_image(tmp_path, "a.png")
    (tmp_path / "a.png").write_bytes(b"something else")
    with pytest.raises(StaleError, match=r"a.png is not the photograph that was labelled"):
        export_photograph(tmp_path, image, folder, "a.png", images)
    (tmp_path / "a.png").unlink()
    with pytest.raises(StaleError, match="No such file"):
        export_photograph(tmp_path, image, folder, "a.png", images)
