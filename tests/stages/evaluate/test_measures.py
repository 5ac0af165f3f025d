"""Figures of one image, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from stages.evaluate.measures import measure_image
from stages.report.page import ClassPart

LABELS = np.array([[0, 0, 0, 2], [1, 1, 2, 255]], np.uint8)


def test_figures_by_hand() -> None:
    truth = np.array([[1, 1, 0, 0], [0, 0, 255, 0]], np.uint8)
    found = measure_image(LABELS, truth, [1, 0, None])
    # 255 in the labels leaves its pixel out: 4 of 6 are right
    assert found.accuracy == pytest.approx(100 * 4 / 6)
    # class 1: 2 of 3; class 0: 2 of 4
    assert found.miou == pytest.approx(100 * (2 / 3 + 2 / 4) / 2)
    assert [part.cluster for part in found.parts] == [0, 1, 2]
    assert [part.share for part in found.parts] == pytest.approx([300 / 7, 200 / 7, 200 / 7])
    assert [part.iou for part in found.parts] == [pytest.approx(200 / 3), 50.0, None]


@pytest.mark.parametrize(
    ("truth", "classes"),
    [
        (None, [1, 0, None]),
        (np.zeros((2, 4), np.uint8), None),
        (np.full((2, 4), 255, np.uint8), [1, 0, None]),
    ],
)
def test_nothing_is_made_up(truth: np.ndarray | None, classes: list[int | None] | None) -> None:
    found = measure_image(LABELS, truth, classes)
    assert (found.accuracy, found.miou) == (None, None)
    assert [part.iou for part in found.parts] == [None] * 3


def test_an_image_without_labels_has_no_parts() -> None:
    assert measure_image(np.full((2, 2), 255, np.uint8), None, None).parts == ()
    whole = measure_image(np.full((2, 2), 254, np.uint8), None, None)
    assert whole.parts == (ClassPart(254, 100.0, None),)
