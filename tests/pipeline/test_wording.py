"""Words for people: plural and singular, units, close names, control characters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.wording import (
    count_of,
    did_you_mean,
    show_bytes,
    show_controls,
    show_rate,
    show_seconds,
)


def test_one_is_singular() -> None:
    assert [count_of(n, "shards") for n in range(3)] == ["0 shards", "1 shard", "2 shards"]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (12_345, "12.3 kB"),
        (999_400, "999 kB"),
        (999_600, "1.00 MB"),
        (1_420_000_000, "1.42 GB"),
        (2e18, "2000 PB"),
    ],
)
def test_sizes_have_three_digits(size: float, text: str) -> None:
    assert show_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (3.21, "3.2 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.6, "1 h 00 min"),
        (3780, "1 h 03 min"),
    ],
)
def test_durations_are_as_people_say_them(seconds: float, text: str) -> None:
    assert show_seconds(seconds) == text


@given(st.floats(0, 1e7))
def test_no_duration_holds_sixty_of_anything(seconds: float) -> None:
    assert "60" not in show_seconds(seconds).split()[2:]


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (12.34, "12.3 images/s"),
        (1234, "1234 images/s"),
        (0.25, "4.00 s/image"),
        (0, "0.00 images/s"),
    ],
)
def test_slow_things_are_said_the_other_way_round(rate: float, text: str) -> None:
    assert show_rate(rate, "images") == text


def test_a_close_name_is_suggested_and_no_other() -> None:
    assert did_you_mean("camvit", ["camvid", "voc"]) == " (did you mean 'camvid'?)"
    assert did_you_mean("zebra", ["camvid", "voc"]) == ""


def test_control_characters_are_spelt_out() -> None:
    assert show_controls("a\x1b[2J\u202eb\nc") == "a\\x1b[2J\\u202eb\nc"
