"""What was unusual in a run: counted by the stages, added up from their records alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.run.ledger import ShardRecord, StageRecord

TOP_REASONS = 5
_PROCESSOR = "cpu"
_MOST_LISTED = 20


def count_unusual(
    rejected: Sequence[str],
    listed: int,
    stages: Mapping[str, tuple[StageRecord, Sequence[ShardRecord]]],
    usage: Sequence[int],
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    """Count what a reader of the scores should know happened on the way."""
    windows = _sum_results(stages, "extract", ("not_finite_windows",))
    masks = _sum_results(stages, "masks", ("windows", "constant", "empty", "single", "full"))
    devices = {key: _list_devices(*records) for key, records in stages.items()}
    return {
        "images": listed,
        "images_rejected": len(rejected),
        "rejected_for": count_reasons(rejected),
        "windows": sum(r.items for r in stages["extract"][1]) if "extract" in stages else None,
        "windows_not_finite": windows["not_finite_windows"],
        "windows_constant": masks["constant"],
        "windows_without_proposal": masks["empty"],
        "windows_with_one_proposal": masks["single"],
        "windows_with_most_proposals": masks["full"],
        "classes": len(usage),
        "classes_unused": [cluster for cluster, pixels in enumerate(usage) if not pixels],
        "label_maps_left_out": len(left_out),
        "left_out_for": count_reasons(left_out.values()),
        "devices": devices,
        "same_bytes_again": all(found == [_PROCESSOR] for found in devices.values()),
    }


def count_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """Count reasons by what stands before their details, the most frequent first, five at most."""
    kinds = Counter(re.split(r": | \(", reason, maxsplit=1)[0] for reason in reasons)
    # of equally frequent ones the first of the alphabet: no count depends on an order
    return dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0]))[:TOP_REASONS])


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


def _sum_results(
    stages: Mapping[str, tuple[StageRecord, Sequence[ShardRecord]]], key: str, names: Sequence[str]
) -> dict[str, int | None]:
    if key not in stages:
        return dict.fromkeys(names)
    return {name: sum(r.result.get(name, 0) for r in stages[key][1]) for name in names}


def _list_devices(record: StageRecord, shards: Sequence[ShardRecord]) -> list[str]:
    """List where a stage computed; the CRF may have a device of its own."""
    found = {str(shard.result.get("device", "an unknown device")) for shard in shards}
    if record.facts.get("crf") == "cuda":
        found.add("cuda")
    return sorted(found)


def _list_reasons(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} ({number})" for reason, number in reasons.items())


def _list_numbers(numbers: Sequence[int]) -> str:
    more = len(numbers) - _MOST_LISTED
    return ", ".join(map(str, numbers[:_MOST_LISTED])) + (f" and {more} more" if more > 0 else "")
