"""What thresholds keep, and how much of it is wrong: by hand."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose

from stages.report.certainty import show_certainty, trace_risk


def test_risk_by_hand() -> None:
    # of the surest 4 pixels 1 is wrong, of the next 6 half, and no pixel is between
    kept, wrong = trace_risk(np.array([6, 0, 4]), np.array([3.0, 0.0, 3.0]))
    assert_allclose(kept, [40, 100])
    assert_allclose(wrong, [25, 40])


def test_classes_without_pixels_have_no_row_and_labels_are_not_needed() -> None:
    metrics = {
        "label_names": ["road", "sky"],
        "levels": {"pixels": [0, 5]},
        "noise": {"expected": [25.0, None]},
    }
    shown = show_certainty(metrics)
    assert shown is not None
    assert shown["noise"] == [("road", 25.0, None)]
    assert not shown["labelled"]
    assert [title for title, _ in shown["plots"]] == ["Wrong, % of the pixels kept by a threshold"]
    metrics["levels"] |= {"labelled": [0, 4], "right": [0, 3]}
    metrics["noise"] |= {"true": [25.0, None]}
    shown = show_certainty(metrics)
    assert shown is not None
    assert shown["noise"] == [("road", 25.0, 25.0)]
    assert len(shown["plots"]) == 2
    assert show_certainty({}) is None
