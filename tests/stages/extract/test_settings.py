"""What `--views` means, and that nothing else is taken for it."""

from __future__ import annotations

import pytest

from pipeline.errors import UsageError
from pipeline.settings import make_settings
from stages.extract.settings import ViewSettings, parse_views


@pytest.mark.parametrize(
    ("views", "fine", "photometric", "jittered"),
    [
        ("clean", 0, 0, 0),
        ("clean,photometric", 0, 1, 0),
        ("clean,photometric:1", 0, 1, 0),
        ("clean,photometric:10", 0, 10, 0),
        ("clean,jittered", 0, 0, 1),
        ("clean,photometric:2,jittered:3", 0, 2, 3),
        ("clean,fine:518", 518, 0, 0),
        ("clean,fine:518,photometric:2,jittered:3", 518, 2, 3),
    ],
)
def test_the_number_of_augmented_views(
    views: str, fine: int, photometric: int, jittered: int
) -> None:
    assert parse_views(views) == {"fine": fine, "photometric": photometric, "jittered": jittered}
    assert ViewSettings(views=views).views == views


@pytest.mark.parametrize(
    "views",
    [
        "",
        "photometric",
        "photometric,clean",
        "clean,",
        "clean,photometric:",
        "clean,photometric:0",
        "clean,photometric:-1",
        "clean,photometric:1.5",
        "clean,photometric:٣",
        "clean,photometric,photometric",
        "clean,jittered,photometric",
        "clean, photometric",
        "clean,fine",
        "clean,fine:0",
        "fine:518",
        "clean,photometric,fine:518",
        "clean\n",
    ],
)
def test_anything_else_is_refused_in_one_sentence(views: str) -> None:
    with pytest.raises(UsageError, match=r"^--views .*: give clean, .* at least 1\.$"):
        make_settings(ViewSettings, "views", {"views": views})


@pytest.mark.parametrize(("name", "value"), [("crops", "four"), ("seed", -1), ("attention", "x")])
def test_impossible_values_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=rf"views\.{name} = "):
        make_settings(ViewSettings, "views", {name: value})


def test_all_settings_change_what_is_written() -> None:
    assert set(ViewSettings().output_settings()) == {"views", "crops", "attention", "seed"}
