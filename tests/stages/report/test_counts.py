"""What was unusual: counted from records by hand."""

from __future__ import annotations

from typing import Any

from pipeline.run.ledger import ShardRecord, StageRecord
from stages.evaluate.unusual import count_reasons, count_unusual
from stages.report.counts import describe_repeatability, describe_unusual


def make_stage(*results: dict[str, Any], **facts: Any) -> tuple[StageRecord, list[ShardRecord]]:
    record = StageRecord("", 1, {}, {}, [], facts)
    return record, [ShardRecord(i, "", 0.0, 4, result) for i, result in enumerate(results)]


def make_masks(**changed: Any) -> dict[str, Any]:
    usual = {"windows": 4, "constant": 0, "empty": 0, "single": 0, "full": 0, "device": "cpu"}
    return usual | changed


def count(**changed: Any) -> dict[str, Any]:
    stages = {
        "extract": make_stage({"device": "cpu"}, {"device": "cpu"}),
        "masks": make_stage(make_masks(), make_masks(), crf="numba"),
        "evaluate/default": make_stage({"device": "cpu"}, crf="numba"),
    }
    given: dict[str, Any] = {
        "rejected": [],
        "listed": 8,
        "stages": stages | changed.pop("stages", {}),
        "usage": [5, 3],
        "left_out": {},
    }
    return count_unusual(**given | changed)


def test_nothing_unusual_is_nothing_to_say() -> None:
    counts = count()
    assert describe_unusual(counts) == ()
    assert counts["windows"] == 8 and counts["windows_constant"] == 0
    assert counts["classes_unused"] == []
    assert "the same bytes" in describe_repeatability(counts)
    assert counts["same_bytes_again"] is True


def test_shards_are_summed_and_put_into_words() -> None:
    counts = count(
        rejected=["empty file", "truncated: the file ends early", "truncated: other"],
        listed=11,
        stages={
            "extract": make_stage(
                {"not_finite_windows": 1, "device": "cpu"},
                {"not_finite_windows": 2, "device": "cpu"},
            ),
            "masks": make_stage(
                make_masks(constant=1, empty=1, single=2), make_masks(constant=2, full=3)
            ),
        },
        usage=[0, 4, 0],
        left_out={"a.png": "it is 3 x 3, the image 4 x 4"},
    )
    assert describe_unusual(counts) == (
        ("images rejected", "3 of 11: truncated (2), empty file (1)"),
        ("windows whose features are not finite", "3 of 8; their images are among the rejected"),
        (
            "windows whose features are all equal",
            "3 of 8: nothing in them tells one place from another",
        ),
        ("windows without a proposal", "1 of 8: no class is learned from them"),
        ("windows with exactly one proposal", "2 of 8"),
        (
            "windows with as many proposals as --max-proposals allows",
            "3 of 8: they may hold more",
        ),
        ("classes that no pixel was given", "2 of 3: 0, 2"),
        ("label maps left out of the scores", "1 in all: it is 3 x 3, the image 4 x 4 (1)"),
    )


def test_a_fit_without_proposals_counts_none() -> None:
    stages = {key: make_stage({"device": "cpu"}) for key in ("extract", "em/km")}
    counts = count_unusual([], 4, stages, [1], {})
    assert counts["windows_without_proposal"] is None
    assert describe_unusual(counts) == ()


def test_long_lists_end() -> None:
    counts = count(usage=[0] * 60)
    (row,) = describe_unusual(counts)
    assert row[1].endswith(", 18, 19 and 40 more")


def test_reasons_are_grouped_whatever_their_order() -> None:
    reasons = ["b", "a (1 of 2)", "a (2 of 2)", "c: x", "d", "e", "f"]
    expected = [("a", 2), ("b", 1), ("c", 1), ("d", 1), ("e", 1)]
    assert list(count_reasons(reasons).items()) == expected
    assert list(count_reasons(reversed(reasons)).items()) == expected


def test_every_stage_that_left_the_processor_is_named() -> None:
    counts = count(
        stages={
            "em/default": make_stage({"device": "cuda"}),
            "masks": make_stage(make_masks(), crf="cuda"),
            "evaluate/default": make_stage({"device": "cpu"}, {"device": "cuda"}),
            "head/old": make_stage({}),
        }
    )
    assert counts["same_bytes_again"] is False
    text = describe_repeatability(counts)
    assert text.startswith(
        "Not promised to give the same bytes again: masks (cuda), evaluate/default (cuda), "
        "em/default (cuda), head/old (an unknown device)."
    )
