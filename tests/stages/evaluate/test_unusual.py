"""Reasons are counted by their kinds; what is made of the counts is in the report's tests."""

from __future__ import annotations

from stages.evaluate.unusual import count_reasons


def test_reasons_are_grouped_whatever_their_order() -> None:
    reasons = ["b", "a (1 of 2)", "a (2 of 2)", "c: x", "d", "e", "f"]
    expected = [("a", 2), ("b", 1), ("c", 1), ("d", 1), ("e", 1)]
    assert list(count_reasons(reasons).items()) == expected
    assert list(count_reasons(reversed(reasons)).items()) == expected
