"""What a review shows of an image: the proposal that is shown is the one that a click means."""

from __future__ import annotations

import numpy as np

from pipeline.run.corrections import NOT_SAID, Corrections, Point
from pipeline.run.directory import RunDirectory
from pipeline.run.manifest import read_manifest
from stages.artefacts import open_artefacts
from stages.known import read_said
from workflows.review.pictures import Pictures


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
