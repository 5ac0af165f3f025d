"""What a review shows of an image: the proposal that is shown is the one that a click means."""

from __future__ import annotations

import numpy as np

from pipeline.run.corrections import NOT_SAID, Corrections, Point
from pipeline.run.directory import RunDirectory
from pipeline.run.manifest import read_manifest
from stages.artefacts import open_artefacts
from stages.known import read_said
from stages.parts import Tree
from workflows.review.pictures import Pictures, Units, choose_of_units


def test_a_click_means_the_proposal_that_is_shown(run: RunDirectory) -> None:
    # one in which proposals meet within a window
    image = read_manifest(run).images[6]
    artefacts = open_artefacts(run, "default", gain=1.0)
    pictures, size = Pictures(artefacts, "none", "cpu"), (image.width, image.height)
    drawn = pictures.draw_proposals(image, *size)
    # where one ends and another begins
    borders = np.argwhere(drawn[:, 1:] != drawn[:, :-1])
    for y, x in borders[:: max(1, len(borders) // 200)].tolist():
        place = pictures.find_place(image, x, y)
        meant = 0 if place is None or not place.proposal else 256 * place.window + place.proposal
        assert drawn[y, x] == meant, (x, y)
    # and what was clicked is drawn where that proposal is shown
    y, x = (int(part[0]) for part in np.nonzero(drawn))
    Corrections(run).add_points(image, [Point(x, y, None, None, "lamp")])
    corrections, cover = Corrections(run), artefacts.cover(image)
    said = read_said(corrections, image, cover, pictures.masks, artefacts.grid, ["lamp"])
    assert said is not None
    shown = said.draw(*size)
    assert (shown[drawn == drawn[y, x]] == 0).all()
    assert shown[y, x] != NOT_SAID


def test_the_proposals_of_groups_are_shown() -> None:
    totals = np.array([[9.0, 1.0], [0.0, 9.0], [8.0, 0.0]])
    # the first group has three proposals, the last two; of two images each
    proposals = 256 * np.array([0, 1, 1, 2, 3, 3]) + np.array([1, 1, 2, 1, 1, 2])
    units = Units(
        Tree(np.array([[0, 2], [1, 3]]), np.array([0, 1, 0])),
        proposals,
        np.array([0, 1, 0, 0, 2, 2]),
        np.array([1.0, 1.0, 1.0]),
        totals,
    )
    rows = units.tree.find_units((0,))
    assert rows.tolist() == [0, 2]
    typical, doubtful = choose_of_units(units, rows, np.arange(4), 0)
    shown = [*typical, *doubtful]
    found = sorted((int(part["window"]), int(part["number"])) for part in shown)
    assert found == [(0, 1), (1, 2), (2, 1), (3, 1), (3, 2)]
    assert {int(part["cluster"]) for part in shown} == {0}


def test_a_proposal_without_a_position_is_the_least_typical() -> None:
    units = Units(
        Tree(np.array([[0, 1], [3, 2]]), np.zeros(3, int)),
        256 * np.arange(3) + 1,
        np.arange(3),
        np.array([2.0, 2.0, 0.0]),
        np.array([[4.0, 1.0], [4.0, 0.0], [0.0, 0.0]]),
    )
    typical, _ = choose_of_units(units, np.arange(3), np.arange(3), 0)
    assert typical["window"].tolist()[-1] == 2
    assert np.isfinite(typical["similarity"]).all()
