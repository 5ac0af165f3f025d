"""Several evaluations on one page: what is compared, what is refused, and what the page says."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import ImageError, RunError, StaleError, UsageError
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.run.evaluation import Evaluation, open_evaluation
from pipeline.run.manifest import Image as Row
from pipeline.storage.files import read_json
from stages.report.agreement import Name, Paint
from stages.report.comparison import (
    CommonImages,
    build_comparison,
    choose_rows,
    compare_runs,
    draw_gallery,
    find_best,
    find_common,
    find_differences,
    name_columns,
    render_comparison,
    sample_common,
    tabulate_agreement,
)
from stages.report.content import Content
from tests.comparison_content import make_comparison, make_hostile
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
def content(fits: Path) -> Content:
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


def test_the_agreement_is_that_of_the_best_matching(fits: Path, content: Content) -> None:
    first, second = read_maps(fits, "labels"), read_maps(fits, "labels-four")
    joined = [np.concatenate([m.ravel() for m in maps.values()]) for maps in (first, second)]
    ((one, share), (same, other)) = content["agreement"]
    assert one is other is None
    assert share == same == pytest.approx(agree(*joined), abs=1e-9)
    assert "All 9 images in common were compared" in Page(render_comparison(content)).text


def test_the_table_of_agreement_is_symmetric() -> None:
    shares = {(0, 1): 80.0, (0, 2): float("nan"), (1, 2): 12.5}
    table = tabulate_agreement(shares, 3)
    assert table == [[None, 80.0, None], [80.0, None, 12.5], [None, 12.5, None]]


def test_the_scores_are_those_of_the_evaluations(fits: Path, content: Content) -> None:
    (table,) = content["scores"]
    rows = {row.name: row for row in table["rows"]}
    metrics: list[Any] = [
        read_json(fits / f"report{end}" / "metrics.json") for end in ("", "-four")
    ]
    assert rows["Mean IoU without CRF, %"].values == [m["miou"] for m in metrics]
    assert rows["Mean IoU with CRF, %"].values == [metrics[0]["miou_crf"], None]
    assert rows["Clusters"].values == [3, 4]
    assert rows["Clusters"].best == rows["Confidence, %"].best == ()
    (classes,) = content["classes"]
    assert len(classes["rows"]) == 3
    assert classes["rows"][0].values[0] == metrics[0]["per_class"][0]["iou_crf"]
    assert classes["rows"][0].values[1] == metrics[1]["per_class"][0]["iou"]


def test_the_commands_make_both_again(fits: Path, content: Content) -> None:
    verbs = [command.split(" ")[1] for command in content["commands"]]
    # a K-means fit needs no masks, and both have the same features
    assert verbs == ["extract", "masks", "em", "evaluate", "em", "evaluate"]
    assert "--name four" in content["commands"][-2]
    assert content["commands"][-1].endswith("--em four --crf none")


def test_only_settings_that_differ_are_listed(content: Content) -> None:
    settings = {row.name: row.values for row in content["settings"]}
    assert settings["em.method"] == ["primaps", "kmeans"]
    assert settings["em.classes"] == ["3", "4"]
    assert settings["evaluate.crf"][1] == "none"
    # a K-means fit has nothing to do with proposals
    assert settings["masks.threshold"][1] is None
    assert not {"em.epochs", "em.name", "evaluate.em", "em.device", "extract.size"} & set(settings)


def test_the_gallery_begins_with_what_differs_most(content: Content) -> None:
    differences = [image.difference or 0.0 for image in content["gallery"]]
    assert len(differences) == 4
    assert differences == sorted(differences, reverse=True)
    assert [image.role for image in content["gallery"]] == ["most", "most", "sample", "sample"]
    assert all(len(image.labels) == 2 and image.truth for image in content["gallery"])
    assert all(None not in image.accuracy for image in content["gallery"])
    assert [name for name, _ in content["legend"]] == ["class 0", "class 1", "class 2"]
    # the fourth cluster of the second fit is no class's
    assert content["other_colours"]


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
    assert [column["name"] for column in content["columns"]] == [
        "run · default",
        "run · four",
        "bare · default",
    ]
    (note,) = content["notes"]
    assert "8 images are in common" in note
    assert "1 of run · default, 1 of run · four" in note
    text = Page(render_comparison(content)).text
    assert "those of bare · default have the colour of the cluster of run · def" in text
    assert content["scores"][0]["rows"][2].values[2] is None
    assert all(image.truth for image in content["gallery"])
    turned = build_comparison(open_both(fits, unlabelled)[::-1], 3, SCREEN)
    text = Page(render_comparison(turned)).text
    assert "Clusters of run · four have the colour of the class" in text
    assert [row[::-1] for row in turned["agreement"][::-1]] == [
        pytest.approx(row, nan_ok=True) for row in content["agreement"]
    ]


def test_without_any_labels_there_is_still_something_to_see(
    unlabelled: Path, invoke: Invoke
) -> None:
    invoke("em", unlabelled, "--classes", 3, "--method", "kmeans", "--name", "few", *FAST_EM, QUIET)
    invoke("evaluate", unlabelled, "--em", "few", "--crf", "none", QUIET)
    opened = [open_evaluation(RunDirectory(unlabelled), n, None) for n in ("default", "few")]
    content = build_comparison(opened, 2, SCREEN)
    assert content["verdict"].startswith("There are no labels to score these by")
    assert "agree on" in content["verdict"]
    assert content["classes"] == []
    assert [name for name, _ in content["legend"]] == [f"cluster {k}" for k in range(5)]
    assert all(image.truth is None for image in content["gallery"])


def test_images_are_left_out_where_there_is_no_room(fits: Path) -> None:
    opened = open_both(fits)
    differences = {name: float(i) for i, name in enumerate(opened[0].images)}
    rows = choose_rows(differences, 9)
    paints = {"all": [Paint(np.zeros((256, 3), np.uint8), "class")] * 2}
    paints = dict.fromkeys(opened[0].splits, paints["all"])
    images, _ = draw_gallery(opened, rows, differences, paints, 0, SCREEN, budget=30_000)
    size = sum(len(s or "") for i in images for s in (i.photograph, i.truth, *i.labels))
    assert 0 < len(images) < 9
    assert size <= 30_000
    assert images[0].difference == 8.0


def test_images_that_found_no_room_are_counted(fits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.report.comparison.BUDGET", 30_000)
    content = build_comparison(open_both(fits), 9, SCREEN)
    left = 9 - len(content["gallery"])
    assert left
    assert f"{left} more found no room" in Page(render_comparison(content)).text


@pytest.fixture
def copy(fits: Path, tmp_path: Path) -> Path:
    run = tmp_path / "copy"
    shutil.copytree(fits, run)
    return run


def test_a_photograph_that_is_gone_is_said(fits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ImageError("no such file")

    monkeypatch.setattr("stages.report.comparison.read_frame", refuse)
    content = build_comparison(open_both(fits), 2, SCREEN)
    assert all(image.photograph is None for image in content["gallery"])
    assert any(
        "could not be read and is not shown: no such file (1 more)" in note
        for note in content["notes"]
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


def make_listing(*names: str, width: int = 8, digest: str = "") -> dict[Name, Row]:
    listing = {}
    for number, name in enumerate(names):
        split, _, identity = name.partition("/")
        path = f"{identity}.png"
        image = Row(number, identity, split, path, None, width, 6, 1, 0, digest or name)
        listing[split, identity] = image
    return listing


def test_images_are_matched_by_split_and_id() -> None:
    first = make_listing("train/a", "train/b", "val/a", "val/c")
    second = make_listing("val/c", "train/b", "train/c", "val/d", "val/e")
    common = find_common([first, second])
    assert common.splits == {"train": ["b"], "val": ["c"]}
    assert common.others == (2, 3)
    assert (common.count, common.resized, common.changed) == (2, 0, 0)


def test_another_size_is_another_image() -> None:
    first = make_listing("train/a") | make_listing("train/b")
    second = make_listing("train/a", width=9) | make_listing("train/b")
    common = find_common([first, second])
    assert common.splits == {"train": ["b"]}
    assert (common.others, common.resized) == ((1, 1), 1)


def test_another_file_of_the_same_size_is_said() -> None:
    common = find_common([make_listing("train/a"), make_listing("train/a", digest="other")])
    assert (common.count, common.changed) == (1, 1)


def test_nothing_in_common_is_refused() -> None:
    first, second = make_listing("train/a"), make_listing("train/x")
    with pytest.raises(RunError, match=r"no image in common.*train/a of 8 x 6, another train/x"):
        find_common([first, first, second])
    with pytest.raises(RunError, match="no image of the same size in common"):
        find_common([first, make_listing("train/a", width=9)])
    with pytest.raises(RunError, match="another none at all"):
        find_common([first, {}])


def test_the_sample_is_even_in_every_split() -> None:
    ids = [str(i) for i in range(9)]
    common = CommonImages({"train": ids, "val": ids[:2]}, (0, 0), 0, 0)
    assert sample_common(common, 3) == [
        ("train", "1"),
        ("train", "4"),
        ("train", "7"),
        ("val", "0"),
        ("val", "1"),
    ]


def test_those_that_differ_most_come_first() -> None:
    differences = {("train", str(i)): float(i % 7) for i in range(14)}
    differences["train", "nothing"] = float("nan")
    differences["val", "a"] = 1.0
    rows = choose_rows(differences, 5)
    chosen = [identity for split, identity in rows if split == "train"]
    assert chosen[:3] == ["13", "6", "12"]
    assert [rows["train", i] for i in chosen] == ["most"] * 3 + ["sample"] * 2
    assert rows["val", "a"] == "most"
    assert "nothing" not in chosen
    assert choose_rows(differences, 0) == {}
    assert list(choose_rows(differences, 99))[14] == ("train", "nothing"), "the last of its split"


@given(
    values=st.lists(st.floats(0, 100) | st.just(float("nan")), max_size=40),
    wanted=st.integers(0, 50),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_rows_are_as_many_as_wanted_in_order(values: list[float], wanted: int) -> None:
    differences = {("val", f"{i:02d}"): value for i, value in enumerate(values)}
    rows = choose_rows(differences, wanted)
    assert len(rows) == min(wanted, len(values))
    shown = [differences[name] for name in rows]
    known = [value for value in shown if not np.isnan(value)]
    assert known == sorted(known, reverse=True)
    assert shown[: len(known)] == known


def test_fits_of_one_run_are_called_by_their_names() -> None:
    run = Path("/runs/a")
    assert name_columns([(run, "default"), (run, "head stego")]) == ["default", "head stego"]


def test_runs_are_called_by_theirs() -> None:
    places = [(Path("/runs/a"), "default"), (Path("/runs/b"), "default")]
    assert name_columns(places) == ["a", "b"]


def test_runs_of_one_name_are_told_apart_by_their_folders() -> None:
    places = [(Path("/x/here/a"), "default"), (Path("/x/there/a"), "default")]
    assert name_columns(places) == ["here/a", "there/a"]
    places = [(Path("/a"), "default"), (Path("/x/a"), "default")]
    assert len(set(name_columns(places))) == 2


def test_runs_and_fits_are_called_by_both() -> None:
    places = [(Path("/r/a"), "default"), (Path("/r/b"), "default"), (Path("/r/b"), "k12")]
    assert name_columns(places) == ["a · default", "b · default", "b · k12"]


def test_only_what_differs_is_listed() -> None:
    first = {"extract.size": 320, "em.seed": 0, "em.splits": ["train"], "masks.gain": 10.0}
    second = {"extract.size": 320, "em.seed": 1, "em.splits": ["train"], "em.student": "clean"}
    assert find_differences([first, second, first]) == {
        "em.seed": (0, 1, 0),
        "masks.gain": (10.0, None, 10.0),
        "em.student": (None, "clean", None),
    }
    assert find_differences([first, dict(first)]) == {}


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_data(self, data: str) -> None:
        if self.inside not in ("style", "script"):
            self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.parts).split())


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([1.0, 3.0, 2.0], (1,)),
        ([3.0, None, 3.001], ()),
        ([3.0, None, 3.0, 1.0], (0, 2)),
        ([3.0, None], ()),
        ([], ()),
        ([float("nan"), 1.0, 2.0], (2,)),
    ],
)
def test_the_best_is_the_largest_where_they_differ(
    values: list[float | None], best: tuple[int, ...]
) -> None:
    assert find_best(values) == best


def test_the_page_says_all() -> None:
    text = Page(render_comparison(make_comparison())).text
    for said in (
        "Comparison of default, k-means",
        "1.0 points above the next",
        "30 images are in common.",
        "Mean IoU with CRF, %",
        "41.5 (best)",
        "Not as many images in all.",
        "71.2",
        "em.method",
        "primaps-pipe evaluate k-means",
        "sky",
        "labels differ on 60.0 %",
        "no ground truth",
        "1.2.3",
    ):
        assert said in text, said


def test_every_picture_is_in_its_row() -> None:
    page = render_comparison(make_comparison(("a", "b", "c")))
    rows = [row.split("</li>")[0] for row in page.split('<li class="panel"')[1:]]
    assert len(rows) == 4
    assert [row.count("<figure") for row in rows] == [5] * 4
    assert [len(re.findall(r'src="data:image/', row)) for row in rows] == [5, 5, 5, 4]


def test_the_page_needs_nothing_but_itself() -> None:
    html = render_comparison(make_hostile())
    page = Page(html)
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("data:", "#")), f"{tag} asks for {value[:80]}"
        assert not any(name.startswith("on") for name in attributes)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert "default-src 'none'" in html


def test_what_is_not_there_is_left_out() -> None:
    bare = dict(
        make_comparison(), gallery=(), classes=(), settings=(), curves=(), notes=(), legend=()
    )
    html = render_comparison(bare)
    for place in ("gallery", "classes", "curves"):
        assert f'id="{place}"' not in html
        assert f'href="#{place}"' not in html
    assert "None: every setting that changes a result is the same in all." in Page(html).text


def test_pictures_from_elsewhere_are_refused() -> None:
    content = make_comparison()
    image = replace(content["gallery"][0], photograph="https://example.org/a.png")
    with pytest.raises(ValueError, match="no data URI"):
        render_comparison(dict(content, gallery=(image,)))


def test_the_same_content_gives_the_same_page() -> None:
    assert render_comparison(make_comparison()) == render_comparison(make_comparison())
