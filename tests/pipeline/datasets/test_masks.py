"""Label maps among photographs are left out, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets import get_dataset
from pipeline.datasets.listing import Globs
from pipeline.errors import DatasetError
from tests.scenes import draw_scene

COLOURS = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)
FOLDER = get_dataset("folder")


def draw(root: Path, photograph: str, mask: str, *, coloured: bool = False) -> None:
    """Draw two photographs and their label maps; ``{}`` is the number."""
    for number in range(2):
        pixels, ids = draw_scene(number, 40, 30)
        for name, values in ((photograph, pixels), (mask, COLOURS[ids] if coloured else ids)):
            path = root / name.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)


def list_paths(
    root: Path, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()
) -> list[str]:
    samples = FOLDER.list_samples(root, ("all",), globs=Globs(include, exclude))
    return [sample.image for sample in samples]


@pytest.mark.parametrize(
    ("photograph", "mask", "way"),
    [
        ("images/p{}.jpg", "masks/p{}.png", "--root {0}/images --labels {0}/masks"),
        ("images/p{}.png", "masks/p{}.png", "--root {0}/images --labels {0}/masks"),
        ("images/x/p{}.jpg", "masks/x/p{}.png", "--root {0}/images --labels {0}/masks"),
        ("p{}.jpg", "p{}.png", "--labels {0} scores with them"),
        ("p{}.jpg", "p{}_mask.png", "--labels {0} scores with them"),
        ("a/p{}.jpg", "b/p{}_mask.tif", "--labels {0} scores with them"),
    ],
)
@pytest.mark.parametrize("coloured", [False, True])
def test_label_maps_are_left_out_with_the_way_to_use_them(
    photograph: str,
    mask: str,
    way: str,
    coloured: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    draw(tmp_path, photograph, mask, coloured=coloured)
    assert list_paths(tmp_path) == [photograph.format(number) for number in range(2)]
    (line,) = caplog.messages
    caplog.clear()
    assert line.startswith("2 label maps are left out") and way.format(tmp_path) in line
    root, _, labels = way.format(tmp_path).removesuffix(" scores with them").partition("--labels ")
    images = Path(root.removeprefix("--root ").strip() or tmp_path)
    samples = FOLDER.list_samples(images, ("all",), Path(labels))
    assert [(images / s.image, Path(labels) / str(s.label)) for s in samples] == [
        (tmp_path / photograph.format(n), tmp_path / mask.format(n)) for n in range(2)
    ]
    # what is named is taken
    assert list_paths(tmp_path, include=(mask.replace("{}", "*"),)) == [
        mask.format(number) for number in range(2)
    ]


def test_a_label_map_without_a_photograph_goes_with_its_folder(tmp_path: Path) -> None:
    draw(tmp_path, "images/p{}.jpg", "masks/p{}.png")
    Image.fromarray(draw_scene(5, 40, 30)[1]).save(tmp_path / "masks" / "more.png")
    assert list_paths(tmp_path) == ["images/p0.jpg", "images/p1.jpg"]


def test_label_maps_among_the_photographs_that_are_of_none_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    draw(tmp_path, "p{}.jpg", "p{}.png")
    draw(tmp_path, "q{}.jpg", "q{}.png")
    # a second one of p1, and one of a photograph that is gone
    Image.fromarray(draw_scene(1, 40, 30)[1]).save(tmp_path / "p1_mask.png")
    (tmp_path / "q1.jpg").unlink()
    samples = FOLDER.list_samples(tmp_path, ("all",), tmp_path)
    assert {s.image: s.label for s in samples} == {
        "p0.jpg": "p0.png",
        "p1.jpg": None,
        "q0.jpg": "q0.png",
    }
    first, second = caplog.messages
    assert first.startswith("2 label maps lie among the photographs, and are used as such")
    assert second == (
        "3 label maps are of no photograph, or of one that has several (first: p1.png)"
    )


def test_files_among_the_label_maps_that_belong_to_no_image_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    draw(tmp_path, "images/p{}.jpg", "labels/p{}.png")
    (tmp_path / "labels" / "p1.png").rename(tmp_path / "labels" / "P1.png")
    (tmp_path / "labels" / "classes.txt").write_text("sky\nground\n")
    images, labels = tmp_path / "images", tmp_path / "labels"
    FOLDER.list_samples(images, ("all",), labels)
    assert caplog.messages == [
        f"files in {labels} that are the label maps of no image: 1 (first: P1.png)"
    ]
    caplog.clear()
    FOLDER.list_samples(images, ("all",), labels, globs=Globs(("p0*",)))
    assert not caplog.messages, "who chooses images leaves label maps out"


def test_photographs_drawings_and_pages_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # two cameras, one scene saved twice, and pages in black and white
    draw(tmp_path, "left/p{}.png", "unused/x{}.png")
    draw(tmp_path, "right/p{}.png", "unused/x{}.png")
    for name in ("book/1.png", "other book/1.png"):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(draw_scene(1, 40, 30)[1] > 0).save(tmp_path / name)
    assert len(list_paths(tmp_path, exclude=("unused",))) == 6
    assert not caplog.messages


def test_globs_choose_names_folders_and_paths(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.png", "x/a.jpg", "x/deep/c.jpg", "y/d.jpg"):
        draw(tmp_path, name.replace(".", "{}."), "unused/x{}.png")
    only = {"exclude": ("unused",)}
    assert list_paths(tmp_path, ("*.png",), **only) == ["b0.png", "b1.png"]
    assert list_paths(tmp_path, ("x/a*", "y"), **only) == [
        "x/a0.jpg",
        "x/a1.jpg",
        "y/d0.jpg",
        "y/d1.jpg",
    ]
    left = list_paths(tmp_path, exclude=("unused/", "deep", "*.png", "y/*"))
    assert left == ["a0.jpg", "a1.jpg", "x/a0.jpg", "x/a1.jpg"]
    with pytest.raises(DatasetError, match="--include and --exclude leave no images below"):
        list_paths(tmp_path, ("*.bmp",))


def test_a_definition_and_a_list_take_globs(tmp_path: Path) -> None:
    draw(tmp_path, "p{}.jpg", "labels/p{}.png")
    (tmp_path / "x.yaml").write_text('name: x\nimages: "*.jpg"\n')
    (tmp_path / "x.csv").write_text("image\np0.jpg\np1.jpg\n")
    for name in (f"{tmp_path}/x.yaml", f"list:{tmp_path}/x.csv"):
        samples = get_dataset(name).list_samples(tmp_path, ("all",), globs=Globs(("p1*",)))
        assert [sample.image for sample in samples] == ["p1.jpg"]
