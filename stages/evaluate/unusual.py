"""What was unusual in all that an evaluation was made from, added up from the stages' records."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.run.ledger import ShardRecord, StageRecord

TOP_REASONS = 5
_PROCESSOR = "cpu"


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
