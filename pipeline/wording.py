"""Words for people: close names, numbers with their units, names that do not steer a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Control characters but the line feed, and marks that turn the direction of writing around.
_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_SIZES = ("kB", "MB", "GB", "TB", "PB")


def did_you_mean(name: str, known: Iterable[object]) -> str:
    """Return `` (did you mean 'X'?)`` when a known name is close, else nothing."""
    from difflib import get_close_matches

    close = get_close_matches(name, [str(item) for item in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def count_of(number: int, unit: str) -> str:
    """Return a number with its unit, which is given in the plural: ``1 shard``, ``2 shards``."""
    return f"{number} {unit.removesuffix('s') if number == 1 else unit}"


def show_bytes(size: float) -> str:
    """Return a size in three digits or so, in decimal units: ``1.42 GB``."""
    if size < 1000:
        return f"{size:.0f} B"
    for unit in _SIZES:
        size /= 1000
        if size < 999.5 or unit == _SIZES[-1]:
            break
    return f"{_three_digits(size)} {unit}"


def show_seconds(seconds: float) -> str:
    """Return a duration as people say it: ``3.2 s``, ``2 min 05 s``, ``1 h 03 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def show_rate(rate: float, unit: str) -> str:
    """Return a speed: ``12.3 images/s``, or ``4.1 s/image`` where it is less than one a second."""
    if 0 < rate < 1:
        return f"{_three_digits(1 / rate)} s/{unit.removesuffix('s')}"
    return f"{_three_digits(rate)} {unit}/s"


def _three_digits(number: float) -> str:
    decimals = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{decimals}f}"


def show_controls(text: str) -> str:
    """Spell out control characters: the name of a file must not steer the terminal."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
