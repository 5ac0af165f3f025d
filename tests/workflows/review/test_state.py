"""What is said in a review: saved, undone, refused where others were first, lost by no kill."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.datasets.definition import IGNORE
from pipeline.errors import RunError, UsageError
from pipeline.run.corrections import NOT_SAID, Corrections, Point
from pipeline.run.directory import RunDirectory, Subject
from pipeline.run.manifest import Image
from stages.evaluate.names import bind_names
from workflows.review.state import ConflictError, Said

Begin = Callable[[], Said]


def paint(said: Said, image: Image, name: str, left: int = 10, side: int = 4) -> None:
    mask = np.ones((side, side), bool)
    said.paint(image, said.revision(image), mask, (left, 20), name)


def read(run: RunDirectory, image: Image) -> NDArray[np.uint8]:
    found = Corrections(run).read_map(image)
    assert found is not None
    return found


# --- names ----------------------------------------------------------------------------------------


def test_names_are_given_taken_and_undone(begin: Begin) -> None:
    said = begin()
    said.name_clusters({(0,): (None, "sky"), (2,): (None, "no")})
    said.name_clusters({(0,): ("sky", None), (1,): (None, "ignore")})
    assert said.names() == {(1,): "ignore", (2,): "no"}
    assert begin().names() == {(1,): "ignore", (2,): "no"}
    said.undo(1)
    assert said.names() == {(0,): "sky", (2,): "no"}
    begin().undo(0)
    assert said.names() == {}


def test_a_name_that_is_not_seen_is_not_replaced(begin: Begin) -> None:
    said = begin()
    said.name_clusters({(0,): (None, "sky")})
    with pytest.raises(ConflictError, match="cluster 0 is sky now"):
        said.name_clusters({(1,): (None, "road"), (0,): (None, "field")})
    assert said.names() == {(0,): "sky"}, "all or nothing"
    assert len(said.journal) == 1


@pytest.mark.parametrize("name", ["", "two\nlines", "x" * 101])
def test_a_name_that_is_none_is_refused(name: str, begin: Begin) -> None:
    with pytest.raises(RunError, match="needs a name of one line"):
        begin().name_clusters({(0,): (None, name)})
    with pytest.raises(UsageError, match="no cluster 3"):
        begin().name_clusters({(3,): (None, "sky")})
    assert not begin().names_file.exists()


def test_what_a_person_has_written_beside_the_names_stays(begin: Begin) -> None:
    file = begin().names_file
    file.write_text("# mine\n1: fields  # green\n\n0: 'sky'\n")
    said = begin()
    said.name_clusters({(0,): ("sky", "air"), (2,): (None, "road: wide")})
    assert file.read_text() == "# mine\n1: fields  # green\n\n0: air\n2: 'road: wide'\n"


def test_parts_of_clusters_have_names_of_their_own(begin: Begin) -> None:
    said = begin()
    said.name_clusters({(0,): (None, "sky"), (0, 1): (None, "cloud")})
    said.name_clusters({(0, 1): ("cloud", "fog"), (0, 1, 0): (None, "haze")})
    assert said.names_file.read_text() == "0: sky\n0.1: fog\n0.1.0: haze\n"
    said.undo(1)
    assert said.names() == {(0,): "sky", (0, 1): "cloud"}
    with pytest.raises(ConflictError, match=r"cluster 0\.1 is cloud now"):
        said.name_clusters({(0, 1): (None, "fog")})


def test_names_in_another_form_are_written_anew_and_kept(begin: Begin) -> None:
    file = begin().names_file
    file.write_text("{0: sky, 1: field}\n")
    said = begin()
    said.name_clusters({(0,): ("sky", "air")})
    assert said.names() == {(0,): "air", (1,): "field"}
    (kept,) = [path for path in file.parent.iterdir() if path.name.startswith("names.yaml.")]
    assert kept.read_text() == "{0: sky, 1: field}\n"


def test_names_of_an_earlier_fit_are_not_mixed_with_those_of_this_one(
    begin: Begin, run: RunDirectory
) -> None:
    begin().name_clusters({(0,): (None, "sky")})
    begin()
    bind_names(run, Subject("em", "default"), "another", None)
    with pytest.raises(RunError, match="clusters of an earlier em/default; run `primaps-pipe eval"):
        begin()


# --- clicks ---------------------------------------------------------------------------------------


def test_clicks_are_placed_replaced_and_undone(
    begin: Begin, run: RunDirectory, image: Image
) -> None:
    said, first, second = begin(), Point(3, 4, None, None, "sky"), Point(5, 6, None, None, "road")
    said.place_points(image, said.revision(image), [first])
    said.place_points(image, said.revision(image), [second], [first])
    assert Corrections(run).points_of(image) == [second]
    said.undo(1)
    assert Corrections(run).points_of(image) == [first]
    with pytest.raises(UsageError, match="lies outside"):
        outside = Point(image.width, 0, None, None, "sky")
        said.place_points(image, said.revision(image), [outside])


# --- painted maps ---------------------------------------------------------------------------------


def test_paint_erase_and_undo(begin: Begin, run: RunDirectory, image: Image) -> None:
    said = begin()
    paint(said, image, "sky")
    paint(said, image, "ignore", left=12)
    paint(said, image, "", left=13, side=1)
    row = read(run, image)[20, 9:17].tolist()
    assert row == [NOT_SAID, 0, 0, IGNORE, NOT_SAID, IGNORE, IGNORE, NOT_SAID]
    for number in (2, 1):
        begin().undo(number)
    assert (read(run, image) == 0).sum() == 16
    begin().undo(0)
    assert Corrections(run).read_map(image) is None


def test_a_whole_image_is_right_but_for_what_is_said_otherwise(
    begin: Begin, run: RunDirectory, image: Image
) -> None:
    said = begin()
    paint(said, image, "road")
    labels = np.full((image.height, image.width), 5, np.uint8)
    labels[:2], labels[2:4] = IGNORE, NOT_SAID
    names = ["", "", "", "", "", "field"]
    said.accept(image, said.revision(image), labels, names)
    now = read(run, image)
    assert Corrections(run).classes() == ("road", "field")
    assert [now[0, 0], now[3, 0], now[4, 0], now[20, 10]] == [IGNORE, NOT_SAID, 1, 0]
    said.ignore(image, said.revision(image))
    assert (read(run, image) == IGNORE).all()
    said.undo(2)
    np.testing.assert_array_equal(read(run, image), now)


def test_an_image_that_another_page_has_changed_is_not_painted(
    begin: Begin, run: RunDirectory, image: Image
) -> None:
    said = begin()
    seen = said.revision(image)
    paint(said, image, "sky")
    before = read(run, image)
    with pytest.raises(ConflictError, match="was changed by another page or program"):
        said.ignore(image, seen)
    np.testing.assert_array_equal(read(run, image), before)
    seen = said.revision(image)
    Corrections(run).add_points(image, [Point(1, 1, None, None, "road")])
    with pytest.raises(ConflictError):
        said.ignore(image, seen)


def test_what_was_changed_elsewhere_since_is_not_undone(
    begin: Begin, run: RunDirectory, image: Image
) -> None:
    said = begin()
    paint(said, image, "road", left=40)
    paint(said, image, "sky")
    corrections = Corrections(run)
    corrections.write_map(image, np.full((image.height, image.width), IGNORE, np.uint8), [])
    with pytest.raises(ConflictError, match="it was changed elsewhere since"):
        said.undo(1)
    assert (read(run, image) == IGNORE).all()
    with pytest.raises(ConflictError, match=r"another page was first; the last change is now"):
        said.undo(1)


def test_a_change_that_cannot_be_written_is_not_in_the_journal(
    begin: Begin, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = begin()

    def fail(*_: object, **__: object) -> None:
        raise RunError("the disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(Corrections, "write_map", fail)
        with pytest.raises(RunError, match="full"):
            paint(said, image, "sky")
    assert said.journal.undoable == []
    assert len(begin().journal) == 0


# --- kills ----------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone: nothing catches it."""


def name(said: Said, image: Image) -> None:
    said.name_clusters({(1,): ("field", "road"), (2,): (None, "ignore")})


def click(said: Said, image: Image) -> None:
    old = said.corrections().points_of(image)
    said.place_points(image, said.revision(image), [Point(9, 9, None, None, "lamp")], old)


def stroke(said: Said, image: Image) -> None:
    paint(said, image, "lamp", left=12)


def take_back(said: Said, image: Image) -> None:
    said.undo(said.journal.undoable[-1])


def look(run: RunDirectory, said: Said, image: Image) -> tuple[Any, ...]:
    painted = Corrections(run).read_map(image)
    points = sorted(point.place for point in Corrections(run).points_of(image))
    return said.names(), points, None if painted is None else painted.tobytes()


@pytest.mark.parametrize("change", [name, click, stroke, take_back])
def test_killed_at_any_write_a_change_is_made_or_not(
    change: Callable[[Said, Image], None],
    begin: Begin,
    run: RunDirectory,
    image: Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = begin()
    said.name_clusters({(1,): (None, "field")})
    said.place_points(image, said.revision(image), [Point(3, 3, None, None, "sky")])
    paint(said, image, "sky")
    before = look(run, said, image)
    sync, move = os.fsync, Path.replace
    made_at = []
    point = 0
    while True:
        point += 1
        left = point

        def strike(then: Callable[..., Any]) -> Callable[..., Any]:
            def call(*values: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    raise Killed
                return then(*values)

            return call

        said = begin()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", strike(sync))
            patch.setattr(Path, "replace", strike(move))
            try:
                change(said, image)
            except Killed:
                pass
            else:
                break
        written = len(begin().journal) > 3
        after = look(run, begin(), image)
        assert (after != before) == written, f"killed at write {point}"
        made_at.append(written)
        if written:
            # what was made can be taken back, and what was taken back as well
            again = begin()
            if change is take_back:
                paint(again, image, "sky")
            else:
                again.undo(again.journal.undoable[-1])
            assert look(run, begin(), image) == before
            run.corrections.joinpath("journal.jsonl").write_bytes(
                b"".join(
                    run.corrections.joinpath("journal.jsonl").read_bytes().splitlines(True)[:3]
                )
            )
    assert made_at[0] in (True, False)
    assert any(made_at), "a kill after the journal is written leaves the change to be made"
