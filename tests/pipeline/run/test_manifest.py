"""The manifest: every name is read back, and equal content leaves the files alone."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.datasets import get_dataset
from pipeline.errors import DamageError, RunError, UsageError
from pipeline.images.windows import Window
from pipeline.run.directory import RunDirectory
from pipeline.run.manifest import Image, Manifest, read_manifest
from pipeline.storage.files import fingerprint

NAMES = ["a", "Köln/東京 ✓", "two\nlines\t'\"\\", "a.b/c", "🦊"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
# what a path below a folder can be
NAME = TEXT.filter(lambda name: "\0" not in name and not {"", ".."} & set(name.split("/")))


def make_image(row: int, name: str, split: str = "train", label: str | None = None) -> Image:
    return Image(row, name, split, f"{name}.jpg", label, 640, 480, 10**10 + row, 2**60, f"d{row}")


def make(names: list[str], labels: Path | None = None) -> Manifest:
    images = tuple(
        make_image(row, name, "train" if row % 2 == 0 else "val", f"{name}.png" if row else None)
        for row, name in enumerate(names)
    )
    windows = tuple(
        Window(2 * row + side, row, 160 * side, 0, 320, 480, 320)
        for row in range(len(names))
        for side in range(2)
    )
    return Manifest("folder", Path("/data/Fotos für alle"), labels, images, windows)


@pytest.mark.parametrize("labels", [None, Path("/data/ünder")])
def test_it_is_read_back(tmp_path: Path, labels: Path | None) -> None:
    manifest = make(NAMES, labels).reject({2: "truncated: the file ends early"})
    manifest.write(RunDirectory(tmp_path))
    assert read_manifest(RunDirectory(tmp_path)) == manifest


def test_the_dataset_is_kept(tmp_path: Path) -> None:
    content = get_dataset("camvid").content
    manifest = replace(make(["a"]), dataset="/gone/sömewhere.yaml", definition=content)
    manifest.write(RunDirectory(tmp_path))
    again = read_manifest(RunDirectory(tmp_path))
    assert again == manifest and again.definition == content
    assert again.open_dataset().class_names() == get_dataset("camvid").class_names()
    plain = make(["a"]).open_dataset()
    assert isinstance(plain, type(get_dataset("folder"))) and plain.name == "folder"
    assert manifest.fingerprint == replace(manifest, definition=None).fingerprint


def test_a_manifest_without_a_definition_goes_by_its_name() -> None:
    manifest = replace(make(["a"]), dataset="camvid")
    assert manifest.open_dataset().class_names() == get_dataset("camvid").class_names()


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(names=st.lists(NAME, max_size=4), root=TEXT, reason=TEXT)
def test_any_text_is_read_back(tmp_path: Path, names: list[str], root: str, reason: str) -> None:
    manifest = replace(make(names), root=Path(root)).reject(dict.fromkeys(range(1), reason))
    manifest.write(RunDirectory(tmp_path))
    assert read_manifest(RunDirectory(tmp_path)) == manifest


@pytest.mark.parametrize("field", ["id", "split", "path", "label"])
@pytest.mark.parametrize(
    "name", ["../../evil", "/etc/evil", "a/../../../evil", "..", "a/..", "", "a\0b"]
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, field: str, name: str) -> None:
    manifest = make(["a", "b"])
    images = (manifest.images[0], replace(manifest.images[1], **{field: name}))
    replace(manifest, images=images).write(RunDirectory(tmp_path))
    with pytest.raises(RunError, match="in row 1, which leads out of its folder"):
        read_manifest(RunDirectory(tmp_path))


def test_dots_in_names_are_names(tmp_path: Path) -> None:
    manifest = make(["a..b", "..c/d..", "...", ". ./e"])
    manifest.write(RunDirectory(tmp_path))
    assert read_manifest(RunDirectory(tmp_path)) == manifest


def test_it_is_plain_parquet(tmp_path: Path) -> None:
    make(NAMES).write(RunDirectory(tmp_path))
    assert pq.read_table(tmp_path / "manifest.parquet")["id"].to_pylist() == NAMES
    table = pq.read_table(tmp_path / "windows.parquet")
    assert table.column_names == ["index", "image", "left", "top", "size", "width", "height"]


def test_equal_content_is_not_written_again(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    make(NAMES).write(run)
    before = [p.stat().st_mtime_ns for p in (run.manifest_file, run.windows_file)]
    make(NAMES).write(run)
    assert [p.stat().st_mtime_ns for p in (run.manifest_file, run.windows_file)] == before
    make(NAMES).reject({0: "dark"}).write(run)
    after = [p.stat().st_mtime_ns for p in (run.manifest_file, run.windows_file)]
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_rejects() -> None:
    manifest = make(NAMES)
    assert manifest.rejected == []
    fewer = manifest.reject({1: "dark"}).reject({3: "bright"})
    assert [(i.image, i.state, i.reason, i.ok) for i in fewer.rejected] == [
        (1, "rejected", "dark", False),
        (3, "rejected", "bright", False),
    ]
    assert manifest.rejected == []
    assert fewer.windows == manifest.windows
    assert {w.image for w in fewer.usable_windows()} == {0, 2, 4}


def test_usable_windows() -> None:
    manifest = make(NAMES).reject({0: "dark"})
    assert [w.index for w in manifest.usable_windows()] == list(range(2, 10))
    assert [w.index for w in manifest.usable_windows(1, 4)] == [2, 3]
    assert [w.index for w in manifest.usable_windows(splits=["train"])] == [4, 5, 8, 9]
    assert [w.index for w in manifest.usable_windows(5, splits=["val"])] == [6, 7]


def test_windows_of_an_image() -> None:
    manifest = make(NAMES)
    assert [w.index for w in manifest.windows_of(manifest.images[3])] == [6, 7]
    assert replace(manifest, windows=()).windows_of(manifest.images[3]) == []


def test_splits() -> None:
    manifest = make(NAMES)
    assert manifest.splits == ("train", "val")
    manifest.check_splits(["val"])
    with pytest.raises(UsageError) as caught:
        manifest.check_splits(["val", "trian"])
    assert str(caught.value) == ("--split 'trian': the run has train, val (did you mean 'train'?).")


def test_fits_are_on_the_splits_given_or_train_or_all() -> None:
    manifest = make(NAMES)
    assert manifest.choose_splits(()) == ("train",)
    assert manifest.choose_splits(["val", "train"]) == ("val", "train")
    with pytest.raises(UsageError, match="trian"):
        manifest.choose_splits(["trian"])
    held_out = replace(manifest, images=tuple(i for i in manifest.images if i.split == "val"))
    assert held_out.choose_splits(()) == ("val",)


def test_label_paths() -> None:
    image = make_image(0, "a", label="gt/a.png")
    assert make([]).label_path(image) == Path("/data/Fotos für alle/gt/a.png")
    assert make([], Path("/labels")).label_path(image) == Path("/labels/gt/a.png")
    assert make([]).label_path(make_image(0, "a")) is None


def test_a_missing_one_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        read_manifest(RunDirectory(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path / 'manifest.parquet'} is missing; run `primaps-pipe extract {tmp_path}`."
    )


def assert_unreadable(run: RunDirectory, name: str) -> None:
    with pytest.raises(RunError, match=rf"{name} cannot be read .*; delete it and run `primaps"):
        read_manifest(run)


@pytest.mark.parametrize("name", ["manifest.parquet", "windows.parquet"])
@pytest.mark.parametrize("keep", [0, 3, 100, -9, -1])
def test_a_damaged_one_gives_one_sentence(tmp_path: Path, name: str, keep: int) -> None:
    make(NAMES).write(RunDirectory(tmp_path))
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:keep])
    assert_unreadable(RunDirectory(tmp_path), name)


def test_damage_inside_gives_one_sentence(tmp_path: Path) -> None:
    make(NAMES).write(RunDirectory(tmp_path))
    file = tmp_path / "manifest.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:4] + b"\xff" * 200 + content[204:])
    assert_unreadable(RunDirectory(tmp_path), "manifest.parquet")


@pytest.mark.parametrize("name", ["manifest.parquet", "windows.parquet"])
def test_no_flipped_bit_is_read(tmp_path: Path, name: str) -> None:
    manifest = make(NAMES)
    manifest.write(RunDirectory(tmp_path))
    whole = (tmp_path / name).read_bytes()
    for bit in range(0, 8 * len(whole), 131):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        (tmp_path / name).write_bytes(content)
        try:
            # statistics, names of the writer and the like are not read
            assert read_manifest(RunDirectory(tmp_path)) == manifest
        except DamageError as error:
            assert "delete it and run" in str(error)


def test_other_columns_give_one_sentence(tmp_path: Path) -> None:
    make(NAMES).write(RunDirectory(tmp_path))
    pq.write_table(pa.table({"image": [1], "weight": [2]}), tmp_path / "windows.parquet")
    assert_unreadable(RunDirectory(tmp_path), "windows.parquet")


def test_one_of_another_program_gives_one_sentence(tmp_path: Path) -> None:
    make(NAMES).write(RunDirectory(tmp_path))
    table = pq.read_table(tmp_path / "manifest.parquet").replace_schema_metadata(None)
    pq.write_table(table, tmp_path / "manifest.parquet")
    assert_unreadable(RunDirectory(tmp_path), "manifest.parquet")


@pytest.mark.parametrize("names", [[], NAMES])
def test_its_fingerprint_and_checksum_are_those_of_plain_json(
    tmp_path: Path, names: list[str]
) -> None:
    # finished runs were written with these, from Python objects
    manifest = make(names).reject({1: "dark"})
    same = {"state": "ok", "reason": None, "modified_ns": 0, "changed_ns": 0}
    rows = [astuple(replace(image, **same)) for image in manifest.images]  # type: ignore[arg-type]
    windows = [astuple(window) for window in manifest.windows]
    assert manifest.fingerprint == fingerprint(rows, windows)
    manifest.write(RunDirectory(tmp_path))
    table = pq.read_table(tmp_path / "manifest.parquet")
    metadata = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
    assert metadata.pop("checksum") == fingerprint(metadata, table.to_pydict())


def test_rows_are_a_sequence() -> None:
    images = make(NAMES).images
    everyone = list(images)
    assert [images[row] for row in range(len(images))] == everyone
    assert images[-1] == everyone[-1] and list(images[1:3]) == everyone[1:3]
    assert list(images[::2]) == everyone[::2] and images[1:] != images
    assert images.find("id", ["🦊", "b", "a"]).tolist() == [4, -1, 0]
    assert everyone[2] in images
    with pytest.raises(IndexError):
        images[len(images)]
