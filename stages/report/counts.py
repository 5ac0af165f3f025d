"""What was unusual in a run, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_PROCESSOR = "cpu"
_MOST_LISTED = 20


def describe_unusual(counts: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Put the counts that are not 0 into words."""
    rows = [
        (
            "images rejected",
            counts["images_rejected"],
            f"of {counts['images']}: {_list_reasons(counts['rejected_for'])}",
        ),
        (
            "windows whose features are not finite",
            counts["windows_not_finite"],
            f"of {counts['windows']}; their images are among the rejected",
        ),
        (
            "windows whose features are all equal",
            counts["windows_constant"],
            f"of {counts['windows']}: nothing in them tells one place from another",
        ),
        (
            "windows without a proposal",
            counts["windows_without_proposal"],
            f"of {counts['windows']}: no class is learned from them",
        ),
        (
            "windows with exactly one proposal",
            counts["windows_with_one_proposal"],
            f"of {counts['windows']}",
        ),
        (
            "windows with as many proposals as --max-proposals allows",
            counts["windows_with_most_proposals"],
            f"of {counts['windows']}: they may hold more",
        ),
        (
            "classes that no pixel was given",
            len(counts["classes_unused"]),
            f"of {counts['classes']}: {_list_numbers(counts['classes_unused'])}",
        ),
        (
            "label maps left out of the scores",
            counts["label_maps_left_out"],
            f"in all: {_list_reasons(counts['left_out_for'])}",
        ),
    ]
    return tuple((name, f"{number} {text}") for name, number, text in rows if number)


def describe_repeatability(counts: Mapping[str, Any]) -> str:
    """Say whether the same commands give the same bytes, and which stage cannot promise it."""
    if counts["same_bytes_again"]:
        return (
            "Computed on the processor: the same commands on the same machine give the same bytes, "
            "with any number of workers and in any order of the shards."
        )
    others = [
        f"{key} ({', '.join(device for device in devices if device != _PROCESSOR)})"
        for key, devices in counts["devices"].items()
        if devices != [_PROCESSOR]
    ]
    return (
        f"Not promised to give the same bytes again: {', '.join(others)}. A GPU may add numbers in "
        "another order every time, so a repeat can differ in the last digits of features and "
        "prototypes, and in single pixels of the labels; with --device cpu it does not."
    )


def _list_reasons(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} ({number})" for reason, number in reasons.items())


def _list_numbers(numbers: Sequence[int]) -> str:
    more = len(numbers) - _MOST_LISTED
    return ", ".join(map(str, numbers[:_MOST_LISTED])) + (f" and {more} more" if more > 0 else "")
