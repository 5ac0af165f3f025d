"""Images and label maps that vanish or change between the stages of a run.

Each change is made to a dataset of its own, behind the back of a run that has come so far as its
stage; then the command line must notice, say in one sentence what to do, and be right after it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.run import frames
from stages.extract import listing
from stages.extract.stage import Extract
from tests.torture.cases import encode, put, scene
from tests.torture.inputs import Result, call
from tests.torture.odd_places import ids_of

STAMP = 1_700_000_000_123_456_789
GONE = "is gone since it was extracted"
CHANGED = "has changed since it was extracted"
OTHER_BYTES = "holds other bytes than when it was extracted, under the same size and time"


@dataclass(frozen=True)
class Place:
    """A dataset of three photographs with label maps, and a run on it."""

    folder: Path

    @property
    def photographs(self) -> Path:
        return self.folder / "photographs"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def write(self, name: str, seed: int, *, size: tuple[int, int] = (48, 36)) -> None:
        """Write a photograph: all of a size have as many bytes, and one time."""
        path = put(self.photographs, f"{name}.ppm", encode(scene(*size, seed), "PPM"))
        os.utime(path, ns=(STAMP, STAMP))

    def label(self, name: str, seed: int, *, stamp: int = STAMP) -> None:
        path = put(self.folder, f"labels/{name}.png", encode(ids_of(seed, 48, 36), "PNG"))
        os.utime(path, ns=(stamp, stamp))

    def extract(self, code: int = 0) -> str:
        return call(
            *("extract", self.run, "--dataset", "folder", "--root", self.photographs),
            *("--labels", self.folder / "labels", "--backbone", "handcrafted"),
            *("--size", 32, "--shard-size", 2),
            code=code,
        )

    def masks(self, code: int = 0) -> str:
        return call("masks", self.run, "--crf", "numba", code=code)

    def em(self) -> str:
        return call("em", self.run, "--classes", 2, "--epochs", 1, "--init-steps", 2)

    def evaluate(self, code: int = 0) -> str:
        return call("evaluate", self.run, "--crf", "none", code=code)

    def rows(self) -> dict[str, dict[str, Any]]:
        table = pq.read_table(self.run / "manifest.parquet")
        return {row["path"]: row for row in table.to_pylist()}


Change = Callable[[Place], Iterator[str]]


def run_changes(folder: Path) -> list[Result]:
    """Run every change below an empty folder."""
    base = Place(folder / "base")
    for seed, name in enumerate(("a", "b", "c"), start=1):
        base.write(name, seed)
        base.label(name, seed)
    extracted = _advance(base, folder, "extracted", base.extract)
    masked = _advance(extracted, folder, "masked", extracted.masks)
    masked.em()
    evaluated = _advance(masked, folder, "evaluated", masked.evaluate)
    results = []
    for after, start, changes in (
        ("listing", base, _AFTER_LISTING),
        ("extract", extracted, _AFTER_EXTRACT),
        ("masks", masked, _AFTER_MASKS),
        ("evaluate", evaluated, _AFTER_EVALUATE),
    ):
        for number, (name, change) in enumerate(changes.items()):
            place = _copy(start, folder / f"{after} {number}")
            try:
                faults = list(change(place))
            except Exception as error:  # whatever it is, it is the outcome of this change alone
                faults = [f"{type(error).__name__}: {error}"]
            outcome = "; ".join(faults) or "noticed, and right after what it said"
            results.append(Result(f"change after {after}: {name}", "noticed", outcome, not faults))
    return results


def _advance(place: Place, folder: Path, name: str, step: Callable[[], str]) -> Place:
    place = _copy(place, folder / name)
    getattr(place, step.__name__)()
    return place


def _copy(place: Place, folder: Path) -> Place:
    """Copy a dataset and the run on it, as if it had been made there."""
    shutil.copytree(place.folder, folder)
    copied = Place(folder)
    if copied.run.exists():
        copied.extract()  # the files are listed anew; their features are valid
    return copied


def _expect(output: str, *texts: str) -> Iterator[str]:
    flat = " ".join(output.split())
    for text in texts:
        if text not in flat:
            yield f"it did not say {text!r}: {flat[-400:]}"


def _right_again(place: Place, *names: str, whole: bool = False) -> Iterator[str]:
    """Run the stages again, and compare with a run that never knew the old files."""
    place.extract()
    for path, row in place.rows().items():
        file = place.photographs / path
        if file.is_symlink() or not file.is_file():
            if row["state"] != "rejected":
                yield f"{path}, which is no file, is {row['state']}"
            file.unlink()
    fresh = Place(place.folder.with_name(place.folder.name + " fresh"))
    shutil.copytree(place.photographs, fresh.photographs)
    shutil.copytree(place.folder / "labels", fresh.folder / "labels")
    for each in (place, fresh):
        each.extract()
        each.masks()
        if whole:
            each.em()
            each.evaluate()
    if sorted(row["id"] for row in place.rows().values()) != sorted(names):
        yield f"the manifest has {sorted(place.rows())}"
    for row, other in zip(place.rows().values(), fresh.rows().values(), strict=True):
        same = ("path", "label", "digest", "width", "height", "state")
        if [row[key] for key in same] != [other[key] for key in same]:
            yield f"{row} instead of {other}"
    parts = ["features.zarr", "masks.zarr"]
    if whole:
        parts += ["labels", "report/metrics.json"]
    for part in parts:
        if _hash(place.run / part) != _hash(fresh.run / part):
            yield f"{part} is not that of a fresh run"


def _hash(path: Path) -> dict[str, bytes]:
    files = [path, *path.rglob("*")]
    return {str(f.relative_to(path)): f.read_bytes() for f in files if f.is_file()}


@contextmanager
def _between_listing_and_reading(change: Callable[[], None]) -> Iterator[None]:
    """Make a change when the images are listed and none of them is decoded yet."""
    whole = Extract.prepare

    def prepare(*arguments: Any) -> None:
        whole(*arguments)
        change()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Extract, "prepare", prepare)
        yield


def _vanish(place: Place) -> None:
    (place.photographs / "b.ppm").unlink()


def _rewrite(place: Place) -> None:
    put(place.photographs, "b.ppm", encode(scene(seed=9), "PPM"))


def _rewrite_secretly(place: Place) -> None:
    place.write("b", 9)


def _turn_secretly(place: Place) -> None:
    place.write("b", 9, size=(36, 48))  # PPM: as many bytes


def _grow(place: Place) -> None:
    place.write("b", 9, size=(60, 50))


def _swap(place: Place) -> None:
    b, c, aside = (place.photographs / f"{name}.ppm" for name in ("b", "c", "aside"))
    b.rename(aside)
    c.rename(b)
    aside.rename(c)


def _break(place: Place) -> None:
    path = place.photographs / "b.ppm"
    path.write_bytes(path.read_bytes()[:200])


def _become_pipe(place: Place) -> None:
    _vanish(place)
    os.mkfifo(place.photographs / "b.ppm")


def _become_folder(place: Place) -> None:
    _vanish(place)
    (place.photographs / "b.ppm").mkdir()


def _become_link(place: Place) -> None:
    path = place.photographs / "b.ppm"
    path.rename(place.photographs / "b.txt")
    path.symlink_to("b.ppm")


def _while_extracting(change: Callable[[Place], None], says: str, *left: str) -> Change:
    def run(place: Place) -> Iterator[str]:
        with _between_listing_and_reading(lambda: change(place)):
            output = place.extract(code=1)
        yield from _expect(output, says, "run `primaps-pipe extract` again")
        yield from _right_again(place, *(left or ("a", "b", "c")))

    return run


def _before_masks(change: Callable[[Place], None], says: str, *left: str) -> Change:
    def run(place: Place) -> Iterator[str]:
        change(place)
        output = place.masks(code=1)
        yield from _expect(output, says, "run `primaps-pipe extract` again")
        yield from _right_again(place, *(left or ("a", "b", "c")))

    return run


def _before_evaluate(change: Callable[[Place], None], says: str, *left: str) -> Change:
    def run(place: Place) -> Iterator[str]:
        change(place)
        output = place.evaluate(code=1)
        yield from _expect(output, says, "run `primaps-pipe extract` again")
        yield from _right_again(place, *(left or ("a", "b", "c")))

    return run


def _before_extract(change: Callable[[Place], None], *left: str) -> Change:
    """Make a change that extract must find by itself."""

    def run(place: Place) -> Iterator[str]:
        change(place)
        yield from _right_again(place, *(left or ("a", "b", "c")), whole=True)

    return run


def _add(place: Place) -> None:
    # the last by its name, too: what is added comes last, and a fresh run sorts by names
    place.write("d", 7)
    place.label("d", 1)


def _add_twin(place: Place) -> Iterator[str]:
    """Add b.png beside b.ppm: both ids get their suffix, and no label map is shared."""
    put(place.photographs, "b.png", encode(scene(50, 40, 8), "PNG"))
    place.extract()
    rows = place.rows()
    found = {path: (row["id"], row["label"]) for path, row in rows.items()}
    wanted = {"b.png": ("b.png", "b.png"), "b.ppm": ("b.ppm", None)}
    if {path: found[path] for path in wanted} != wanted:
        yield f"{found}"
    place.masks()
    place.em()
    output = place.evaluate()
    yield from _expect(output, "it is 48 x 36, the image 50 x 40")
    made = sorted(path.name for path in (place.run / "labels" / "all").iterdir())
    if made != ["a.png", "b.png.png", "b.ppm.png", "c.png"]:
        yield f"the label maps are {made}"
    for name, size in (("b.png.png", (50, 40)), ("b.ppm.png", (48, 36))):
        with Image.open(place.run / "labels" / "all" / name) as image:
            if image.size != size:
                yield f"{name} is {image.size}"


def _labels_change(place: Place) -> Iterator[str]:
    before = (place.run / "report" / "metrics.json").read_text()
    place.label("b", 3, stamp=STAMP + 10**9)
    place.evaluate()
    if (place.run / "report" / "metrics.json").read_text() == before:
        yield "the scores are those of the old label map"
    place.label("b", 2, stamp=STAMP)
    place.evaluate()
    if (place.run / "report" / "metrics.json").read_text() != before:
        yield "the old label map does not give the old scores"


def _label_vanishes(place: Place) -> Iterator[str]:
    (place.folder / "labels" / "b.png").unlink()
    yield from _expect(place.evaluate(), "label map of b.ppm is left out", "no such file")
    yield from _right_again(place, "a", "b", "c", whole=True)


def _label_of_another_size(place: Place) -> Iterator[str]:
    put(place.folder, "labels/b.png", encode(ids_of(1, 36, 48), "PNG"))
    yield from _expect(place.evaluate(), "it is 36 x 48, the image 48 x 36")


def _rejected_is_not_tried_again(place: Place) -> Iterator[str]:
    """Count how often damaged files are read: once, and again when they have changed."""
    put(place.photographs, "empty.png", b"")
    put(place.photographs, "text.png", b"text")
    whole = encode(scene(seed=6), "PNG")
    put(place.photographs, "cut.png", whole[: len(whole) // 2])
    place.extract()
    rejected = {path for path, row in place.rows().items() if row["state"] == "rejected"}
    if rejected != {"cut.png", "empty.png", "text.png"}:
        yield f"rejected are {rejected}"
    with _counting() as read:
        place.extract()
    if read:
        yield f"{sorted(read)} were read again"
    (place.photographs / "text.png").write_bytes(b"Text")
    os.utime(place.photographs / "cut.png", ns=(STAMP, STAMP))
    with _counting() as read:
        place.extract()
    if set(read) != {"cut.png", "text.png"}:
        yield f"{sorted(read)} were read after two had changed"
    (place.photographs / "cut.png").write_bytes(whole)
    (place.photographs / "empty.png").unlink()
    (place.photographs / "text.png").unlink()
    place.label("cut", 2)
    yield from _right_again(place, "a", "b", "c", "cut")


@contextmanager
def _counting() -> Iterator[list[str]]:
    """Note which files are probed or decoded."""
    read: list[str] = []
    probe, decode = listing.probe_pages, frames.read_strips

    def probing(path: Path, reading: Any) -> Any:
        read.append(path.name)
        return probe(path, reading)

    def decoding(path: Path, *rest: Any) -> Any:
        read.append(path.name)
        return decode(path, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "probe_pages", probing)
        patch.setattr(frames, "read_strips", decoding)
        yield read


def _run_inside_root(place: Place) -> Iterator[str]:
    before = sorted(place.rows())
    moved = place.photographs / "the run"
    shutil.move(place.run, moved)
    arguments = ("extract", moved, "--root", place.photographs)
    yield from _expect(call(*arguments), "fresh")
    if (
        sorted(row["path"] for row in pq.read_table(moved / "manifest.parquet").to_pylist())
        != before
    ):
        yield "the run's own label maps are listed"
    # and another run, which does not know of the first
    place.extract()
    if sorted(place.rows()) != before:
        yield f"another run lists {sorted(place.rows())}"


def _rights_change(place: Place) -> Iterator[str]:
    """Change what is no content: no feature is computed again."""
    (place.photographs / "b.ppm").chmod(0o600)
    yield from _expect(place.extract(), "fresh, nothing to do")
    yield from _expect(place.masks(), "nothing to do")


_AFTER_LISTING: dict[str, Change] = {
    "an image vanishes": _while_extracting(_vanish, GONE, "a", "c"),
    "an image is written anew": _while_extracting(_rewrite, CHANGED),
    "other bytes under the same size and time": _while_extracting(_rewrite_secretly, OTHER_BYTES),
    "other dimensions under the same size and time": _while_extracting(_turn_secretly, OTHER_BYTES),
    "other dimensions": _while_extracting(_grow, CHANGED),
    "two images change places": _while_extracting(_swap, OTHER_BYTES),
    "an image becomes a pipe": _while_extracting(_become_pipe, CHANGED, "a", "c"),
    "an image becomes a folder": _while_extracting(_become_folder, CHANGED, "a", "c"),
}
_AFTER_EXTRACT: dict[str, Change] = {
    "an image vanishes": _before_masks(_vanish, GONE, "a", "c"),
    "an image is written anew": _before_masks(_rewrite, CHANGED),
    "other bytes under the same size and time": _before_masks(_rewrite_secretly, OTHER_BYTES),
    "other dimensions under the same size and time": _before_masks(_turn_secretly, OTHER_BYTES),
    "an image is cut short": _before_masks(_break, CHANGED),
    "two images change places": _before_masks(_swap, OTHER_BYTES),
    "an image links to itself": _before_masks(_become_link, GONE, "a", "c"),
    "a rejected image stays so until it changes": _rejected_is_not_tried_again,
}
_AFTER_MASKS: dict[str, Change] = {
    "rights change": _rights_change,
    "an image vanishes": _before_evaluate(_vanish, GONE, "a", "c"),
    "other bytes under the same size and time": _before_evaluate(_rewrite_secretly, OTHER_BYTES),
    "an image is written anew": _before_evaluate(_grow, CHANGED),
    "a label map vanishes": _label_vanishes,
    "a label map of another size": _label_of_another_size,
}
_AFTER_EVALUATE: dict[str, Change] = {
    "extract finds other bytes under the same size and time": _before_extract(_rewrite_secretly),
    "extract finds two images in each other's place": _before_extract(_swap),
    "extract finds an image that is gone": _before_extract(_vanish, "a", "c"),
    "extract finds a new image": _before_extract(_add, "a", "b", "c", "d"),
    "a twin with another suffix": _add_twin,
    "a label map changes and changes back": _labels_change,
    "the run lies in the root": _run_inside_root,
}
