"""Out to an annotation tool, through its own importer and exporter, and back: pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pipeline.run.corrections import NOT_SAID
from tests.workflows.correct.conftest import NAMES, Tool
from tests.workflows.export.conftest import QUIET
from workflows.correct import coco, cvat, datumaro, fiftyone, label_studio, labelme
from workflows.correct.job import Said, _choose_format
from workflows.correct.job import Source as Given
from workflows.export import cvat as to_cvat
from workflows.export import datumaro as to_datumaro
from workflows.export import fiftyone as to_fiftyone
from workflows.export import label_studio as to_label_studio
from workflows.export import labelme as to_labelme
from workflows.export.job import Source

Write = Callable[..., Path]
NamesOf = Callable[[str], np.ndarray]


def name_pixels(said: Said) -> np.ndarray:
    """Give the name of every pixel; one that is not said has none."""
    numbers, names = said.map, said.names
    assert numbers is not None
    table = np.array([*names, *[""] * (256 - len(names))], object)
    assert set(np.unique(numbers)) <= {*range(len(names)), NOT_SAID}
    return table[numbers]


@pytest.mark.parametrize(
    ("module", "program", "format_", "reader"),
    [
        ("datumaro", "cvat", to_cvat, cvat),
        ("datumaro", "coco", to_datumaro, coco),
        ("datumaro", "datumaro", to_datumaro, datumaro),
        ("label_studio_sdk", "label_studio", to_label_studio, label_studio),
        ("labelme", "labelme", to_labelme, labelme),
        ("fiftyone", "fiftyone", to_fiftyone, fiftyone),
    ],
)
def test_a_round_trip_changes_no_pixel(
    tmp_path: Path,
    module: str,
    program: str,
    format_: ModuleType,
    reader: ModuleType,
    tool: Tool,
    write: Write,
    source: Source,
    names_of: NamesOf,
) -> None:
    given, out = write(format_, tmp_path / "given"), tmp_path / "out"
    out.mkdir()
    tool(module, program, given, out)
    place = out / "train.zip" if program == "cvat" else out
    assert _choose_format(place) == program.replace("_", "-")
    taken = Given(place, source.evaluation.run, None, None, None, QUIET)
    found = {said.image.id: name_pixels(said) for said in reader.read(taken)}
    assert not taken.strays and not taken.faults
    assert set(found) == {image.id for image in source.manifest.images}
    for id_, names in found.items():
        np.testing.assert_array_equal(names, names_of(id_))
    # all of it was tried: classes, and pixels that are ignored
    shown = {name for names in found.values() for name in np.unique(names)}
    assert "" in shown and {*NAMES[1:]} <= shown


def test_what_labelme_draws_of_an_export(
    tmp_path: Path, tool: Tool, write: Write, source: Source, names_of: NamesOf
) -> None:
    given, out = write(to_labelme, tmp_path / "given"), tmp_path / "out"
    out.mkdir()
    tool("labelme", "labelme", given, out)
    maps = np.load(out / "maps.npz", allow_pickle=False)
    names = maps["names"].astype(object)
    names[:2] = ""
    images = [item.image for item in source.list_items(nested=False)]
    shown = {item.image.id: item.name for item in source.list_items(nested=False)}
    for image in images:
        drawn = names[maps[f"train/{shown[image.id]}.json"]]
        np.testing.assert_array_equal(drawn, names_of(image.id))
