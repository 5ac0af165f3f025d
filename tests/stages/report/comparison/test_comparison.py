"""Several evaluations on one page: what is compared, and what is refused."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ImageError, RunError, StaleError, UsageError
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.run.subject import Evaluation, open_evaluation
from pipeline.storage.files import read_json
from stages.report.comparison.colours import Paint
from stages.report.comparison.common_images import choose_rows
from stages.report.comparison.comparison import build_comparison, compare_runs
from stages.report.comparison.gallery import draw_gallery
from stages.report.comparison.page import ComparisonContent
from tests.scenes import FAST_EM, Invoke, write_scenes

SCREEN = Screen(progress=False)
QUIET = "--no-progress"
Subject = tuple[RunDirectory, str | None, str | None]


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory, finished: Path, invoke: Invoke) -> Path:
    """The run of the scenes with a fit of four clusters beside that of three."""
    run = tmp_path_factory.mktemp("two fits") / "run"
    shutil.copytree(finished, run)
    invoke("em", run, "--classes", 4, "--method", "kmeans", "--name", "four", *FAST_EM, QUIET)
    invoke("evaluate", run, "--em", "four", "--crf", "none", QUIET)
    return run


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory, scenes: Path, invoke: Invoke) -> Path:
    """A run on some of the same scenes, without labels."""
    folder = tmp_path_factory.mktemp("some scenes")
    shutil.copytree(scenes / "photographs", folder / "photographs")
    (folder / "photographs" / "part 0" / "scene 0.png").unlink()
    run = folder / "bare"
    invoke(
        *("extract", run, "--dataset", "folder", "--root", folder / "photographs"),
        *("--backbone", "handcrafted", "--size", 64, QUIET),
    )
    invoke("em", run, "--classes", 5, "--method", "kmeans", *FAST_EM, QUIET)
    invoke("evaluate", run, "--crf", "none", QUIET)
    return run


def open_both(run: Path, *more: Path) -> list[Evaluation]:
    fits = [open_evaluation(RunDirectory(run), name, None) for name in ("default", "four")]
    return [*fits, *(open_evaluation(RunDirectory(path), None, None) for path in more)]


@pytest.fixture(scope="module")
def content(fits: Path) -> ComparisonContent:
    return build_comparison(open_both(fits), 4, SCREEN)


def read_maps(run: Path, folder: str) -> dict[str, np.ndarray]:
    files = sorted((run / folder).rglob("*.png"))
    return {str(f.relative_to(run / folder)): np.asarray(Image.open(f)) for f in files}


def agree(first: np.ndarray, second: np.ndarray) -> float:
    """Try every matching of three clusters to four, in per cent of the pixels."""
    valid = (first != 255) & (second != 255)
    return 100 * max(
        float((np.array(order)[first[valid]] == second[valid]).mean())
        for order in itertools.permutations(range(4), 3)
    )


def test_the_agreement_is_that_of_the_best_matching(fits: Path, content: ComparisonContent) -> None:
    first, second = read_maps(fits, "labels"), read_maps(fits, "labels-four")
    joined = [np.concatenate([m.ravel() for m in maps.values()]) for maps in (first, second)]
    ((one, share), (same, other)) = content.agreement
    assert one is other is None
    assert share == same == pytest.approx(agree(*joined), abs=1e-9)
    assert "All 9 images in common were compared" in content.agreement_note


def test_the_scores_are_those_of_the_evaluations(fits: Path, content: ComparisonContent) -> None:
    (table,) = content.scores
    rows = {row.name: row for row in table.rows}
    metrics: list[Any] = [
        read_json(fits / f"report{end}" / "metrics.json") for end in ("", "-four")
    ]
    assert rows["Mean IoU without CRF, %"].values == tuple(m["miou"] for m in metrics)
    assert rows["Mean IoU with CRF, %"].values == (metrics[0]["miou_crf"], None)
    assert rows["Clusters"].values == (3, 4)
    assert rows["Clusters"].best == rows["Confidence, %"].best == ()
    (classes,) = content.classes
    assert len(classes.rows) == 3
    assert classes.rows[0].values[0] == metrics[0]["per_class"][0]["iou_crf"]
    assert classes.rows[0].values[1] == metrics[1]["per_class"][0]["iou"]


def test_the_commands_make_both_again(fits: Path, content: ComparisonContent) -> None:
    verbs = [command.split(" ")[1] for command in content.commands]
    # a K-means fit needs no masks, and both have the same features
    assert verbs == ["extract", "masks", "em", "evaluate", "em", "evaluate"]
    assert "--name four" in content.commands[-2]
    assert content.commands[-1].endswith("--em four --crf none")


def test_only_settings_that_differ_are_listed(content: ComparisonContent) -> None:
    settings = {row.name: row.values for row in content.settings}
    assert settings["em.method"] == ("primaps", "kmeans")
    assert settings["em.classes"] == ("3", "4")
    assert settings["evaluate.crf"][1] == "none"
    # a K-means fit has nothing to do with proposals
    assert settings["masks.threshold"][1] is None
    assert not {"em.epochs", "em.name", "evaluate.em", "em.device", "extract.size"} & set(settings)


def test_the_gallery_begins_with_what_differs_most(content: ComparisonContent) -> None:
    differences = [image.difference or 0.0 for image in content.gallery]
    assert len(differences) == 4
    assert differences == sorted(differences, reverse=True)
    assert [image.role for image in content.gallery] == ["most", "most", "sample", "sample"]
    assert all(len(image.labels) == 2 and image.truth for image in content.gallery)
    assert all(None not in image.accuracy for image in content.gallery)
    assert [name for name, _ in content.legend] == ["class 0", "class 1", "class 2"]
    # the fourth cluster of the second fit is no class's
    assert content.other_colours


def test_the_page_is_the_same_every_time(fits: Path, tmp_path: Path) -> None:
    subjects: list[Subject] = [(RunDirectory(fits), name, None) for name in ("default", "four")]
    pages = []
    # the third is written over the first
    for name in ("a.html", "new folder/b.html", "a.html"):
        out = tmp_path / name
        assert compare_runs(subjects, out, images=2, screen=SCREEN) == out
        pages.append(out.read_bytes())
    assert pages[0] == pages[1] == pages[2]
    assert pages[0].count(b'<li class="panel"') == 2


def test_runs_with_and_without_labels(fits: Path, unlabelled: Path) -> None:
    content = build_comparison(open_both(fits, unlabelled), 3, SCREEN)
    assert [column.name for column in content.columns] == [
        "run · default",
        "run · four",
        "bare · default",
    ]
    (note,) = content.notes
    assert "8 images are in common" in note
    assert "1 of run · default, 1 of run · four" in note
    assert "those of bare · default have the colour of the cluster of run · def" in (
        content.gallery_note
    )
    assert content.scores[0].rows[2].values[2] is None
    assert all(image.truth for image in content.gallery)
    turned = build_comparison(open_both(fits, unlabelled)[::-1], 3, SCREEN)
    assert "Clusters of run · four have the colour of the class" in turned.gallery_note
    assert [row[::-1] for row in turned.agreement[::-1]] == [
        pytest.approx(row, nan_ok=True) for row in content.agreement
    ]


def test_without_any_labels_there_is_still_something_to_see(
    unlabelled: Path, invoke: Invoke
) -> None:
    invoke("em", unlabelled, "--classes", 3, "--method", "kmeans", "--name", "few", *FAST_EM, QUIET)
    invoke("evaluate", unlabelled, "--em", "few", "--crf", "none", QUIET)
    opened = [open_evaluation(RunDirectory(unlabelled), n, None) for n in ("default", "few")]
    content = build_comparison(opened, 2, SCREEN)
    assert content.verdict.startswith("There are no labels to score these by")
    assert "agree on" in content.verdict
    assert content.classes == ()
    assert [name for name, _ in content.legend] == [f"cluster {k}" for k in range(5)]
    assert all(image.truth is None for image in content.gallery)


def test_images_are_left_out_where_there_is_no_room(fits: Path) -> None:
    opened = open_both(fits)
    differences = {name: float(i) for i, name in enumerate(opened[0].images)}
    rows = choose_rows(differences, 9)
    paints = {"all": [Paint(np.zeros((256, 3), np.uint8), "class")] * 2}
    paints = dict.fromkeys(opened[0].splits, paints["all"])
    gallery = draw_gallery(opened, rows, differences, paints, 0, SCREEN, budget=30_000)
    size = sum(len(s or "") for i in gallery.images for s in (i.photograph, i.truth, *i.labels))
    assert 0 < len(gallery.images) < 9
    assert size <= 30_000
    assert gallery.left_out == 9 - len(gallery.images)
    assert gallery.images[0].difference == 8.0


@pytest.fixture
def copy(fits: Path, tmp_path: Path) -> Path:
    run = tmp_path / "copy"
    shutil.copytree(fits, run)
    return run


def test_a_photograph_that_is_gone_is_said(fits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ImageError("no such file")

    monkeypatch.setattr("stages.report.comparison.gallery.read_frame", refuse)
    content = build_comparison(open_both(fits), 2, SCREEN)
    assert all(image.photograph is None for image in content.gallery)
    assert any(
        "could not be read and is not shown: no such file (1 more)" in note
        for note in content.notes
    )


def change_label(run: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    file = sorted((run / "labels-four").rglob("*.png"))[0]
    Image.fromarray(change(np.asarray(Image.open(file)))).save(file)
    return file


@pytest.mark.parametrize(
    "change", [lambda ids: ids[1:], lambda ids: np.where(ids == 255, 255, 77).astype(np.uint8)]
)
def test_a_label_map_of_something_else_is_refused(
    copy: Path, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    change_label(copy, change)
    with pytest.raises(RunError, match=r"labels-four.* is no label map of .* --repair`"):
        build_comparison(open_both(copy), 2, SCREEN)


def test_a_label_map_that_is_gone_is_refused(copy: Path) -> None:
    sorted((copy / "labels-four").rglob("*.png"))[0].unlink()
    with pytest.raises(RunError, match=r"cannot be read \(no such file\); run .*--em four"):
        build_comparison(open_both(copy), 2, SCREEN)


def test_what_was_not_evaluated_is_refused(copy: Path, invoke: Invoke) -> None:
    run = RunDirectory(copy)
    invoke("em", copy, "--classes", 3, "--name", "new", *FAST_EM, QUIET)
    with pytest.raises(RunError, match=r"em/new in .* has not been evaluated; .* --em new` first"):
        open_evaluation(run, "new", None)
    invoke("em", copy, "--classes", 5, "--name", "four", "--method", "kmeans", *FAST_EM, QUIET)
    with pytest.raises(StaleError, match=r"evaluate/four is stale .* --em four` again"):
        open_evaluation(run, "four", None)
    with pytest.raises(UsageError, match="did you mean 'four'"):
        open_evaluation(run, "fuor", None)


def test_one_alone_or_one_twice_is_refused(fits: Path, tmp_path: Path) -> None:
    def compare(*names: str | None, images: int = 2, out: Path = tmp_path / "a.html") -> None:
        subjects: list[Subject] = [(RunDirectory(fits), name, None) for name in names]
        compare_runs(subjects, out, images=images, screen=SCREEN)

    with pytest.raises(UsageError, match="only one"):
        compare("four")
    with pytest.raises(UsageError, match=r"em/default of .* is given twice"):
        compare("default", "four", None)
    with pytest.raises(UsageError, match="too many"):
        compare(*["four"] * 13)
    with pytest.raises(UsageError, match="--images -1"):
        compare("default", "four", images=-1)
    for out in (tmp_path, tmp_path / "a.jpg"):
        with pytest.raises(UsageError, match=r"ends in \.html"):
            compare("default", "four", out=out)
    report = fits / "report" / "index.html"
    before = report.read_bytes()
    with pytest.raises(UsageError, match="was not written by compare"):
        compare("default", "four", out=report)
    assert report.read_bytes() == before
    assert not (tmp_path / "a.html").exists()


def test_runs_of_other_photographs_are_refused(fits: Path, tmp_path: Path, invoke: Invoke) -> None:
    write_scenes(tmp_path, 2, width=90)
    run = tmp_path / "other"
    invoke(
        *("extract", run, "--dataset", "folder", "--root", tmp_path / "photographs"),
        *("--backbone", "handcrafted", "--size", 64, QUIET),
    )
    invoke("em", run, "--classes", 2, "--method", "kmeans", *FAST_EM, QUIET)
    invoke("evaluate", run, "--crf", "none", QUIET)
    subjects: list[Subject] = [(RunDirectory(path), None, None) for path in (fits, run)]
    with pytest.raises(RunError, match="no image of the same size in common"):
        compare_runs(subjects, tmp_path / "a.html", images=2, screen=SCREEN)
