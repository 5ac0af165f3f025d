"""The downstream benchmark: trainings differ in labels alone, and scores are counted right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks import downstream
from benchmarks.downstream import (
    PSEUDO,
    TRUE,
    Condition,
    Result,
    Samples,
    choose_images,
    compare,
    draw_figure,
    read_samples,
    score,
    tabulate,
    train_network,
)
from benchmarks.students import Decoder, Recipe, UNet, draw_pixels, segmentation_loss, shape_rate
from pipeline import Run
from tests.scenes import FAST_EM, Invoke, write_split_scenes

SHORT = Recipe(2, 1e-3)


@pytest.fixture(scope="module")
def scenes_run(tmp_path_factory: pytest.TempPathFactory, invoke: Invoke) -> Run:
    folder = tmp_path_factory.mktemp("downstream")
    table = write_split_scenes(folder, {"train": 4, "val": 2})
    run = folder / "run"
    options = ("--backbone", "handcrafted", "--size", 64, "--frame", "centre", "--no-progress")
    invoke("extract", run, "--dataset", f"list:{table}", *options)
    invoke("masks", run, "--crf", "none", "--no-progress")
    invoke("em", run, "--classes", 3, *FAST_EM, "--no-progress")
    invoke("evaluate", run, "--crf", "none", "--no-progress")
    return Run(run)


@pytest.fixture(scope="module")
def samples(scenes_run: Run) -> tuple[Samples, Samples]:
    matching = scenes_run.matching("train")
    return read_samples(scenes_run, "train", matching), read_samples(scenes_run, "val", matching)


def test_samples_are_the_windows_with_both_labels(
    scenes_run: Run, samples: tuple[Samples, Samples]
) -> None:
    train, val = samples
    assert len(set(train.images)) == 4
    assert len(set(val.images)) == 2
    assert train.pixels.shape[1:] == (3, downstream.SIDE, downstream.SIDE)
    assert train.clean.shape == train.mirror.shape
    for row, name in enumerate(train.images):
        # a centred square of the height of the scene, to the pixel of the resized one
        truth = scenes_run.ground_truth(name, "train")
        width = train.truth[row].shape[1]
        middle = (truth.shape[1] - width) // 2
        cuts = [truth[:, left : left + width] for left in range(middle - 2, middle + 3)]
        assert abs(width - 100) <= 2
        assert any(np.array_equal(train.truth[row], cut) for cut in cuts)
        assert not (train.pseudo[row] == 255).any()


def test_scores_are_counted_by_hand() -> None:
    truth = np.array([[0, 0, 1, 1], [2, 2, 255, 255]], np.uint8)
    said = np.array([[0, 0, 1, 0], [2, 255, 0, 1]], np.uint8)
    accuracy, miou = score([said], [truth], 3)
    assert accuracy == pytest.approx(100 * 4 / 6)
    # class 0: 2 of 3; class 1: 1 of 2; class 2: 1 of 2, for a pixel without a class is wrong
    assert miou == pytest.approx(100 * (2 / 3 + 1 / 2 + 1 / 2) / 3)
    assert score([truth], [truth], 3) == (100, 100)


@pytest.mark.parametrize("kind", ["U-Net", "decoder"])
def test_a_training_depends_on_labels_and_seed_alone(
    kind: str, samples: tuple[Samples, Samples]
) -> None:
    def weights(condition: Condition, seed: int, material: Samples = samples[0]) -> torch.Tensor:
        network = train_network(kind, material, condition, 3, SHORT, seed)
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    first = weights(Condition(TRUE), 0)
    assert torch.equal(first, weights(Condition(TRUE), 0))
    assert not torch.equal(first, weights(Condition(TRUE), 1))
    assert not torch.equal(first, weights(Condition(PSEUDO), 0))
    same = Samples(**{**vars(samples[0]), "pseudo": samples[0].truth})
    assert torch.equal(first, weights(Condition(PSEUDO), 0, same))


def test_networks_are_compared_and_tabulated(
    scenes_run: Run, samples: tuple[Samples, Samples]
) -> None:
    conditions = [Condition(PSEUDO), Condition(TRUE), Condition(TRUE, 2)]
    results, predictions = compare(samples, 3, {"decoder": (SHORT, conditions)}, (0, 1))
    assert [c.title for c in results["decoder"]] == [PSEUDO, TRUE, "true labels of 2 images"]
    assert all(len(r.miou) == 2 for r in results["decoder"].values())
    assert [p.shape for p in predictions["decoder", TRUE]] == [t.shape for t in samples[1].truth]
    header, rule, *rows = tabulate(samples, results, 3).splitlines()
    assert header.count("|") == rule.count("|")
    assert all(row.count("|") == header.count("|") for row in rows)
    assert len(rows) == 2 + 3
    figure = draw_figure(scenes_run, samples[1], predictions, count=2, side=40)
    # three columns of its own, one a network and kind of labels
    assert figure.width == 5 * 46 + 6


def test_the_share_is_of_the_median_with_true_labels(samples: tuple[Samples, Samples]) -> None:
    results = {
        "decoder": {
            Condition(PSEUDO): Result([80, 90, 70], [30, 50, 40], [1, 1, 1]),
            Condition(TRUE): Result([90, 90, 90], [80, 90, 70], [1, 1, 1]),
        }
    }
    row = tabulate(samples, results, 3).splitlines()[4]
    assert "80.0 (70.0 – 90.0) | 40.0 (30.0 – 50.0) | 50 % |" in row


def test_a_network_learns_what_it_is_shown(samples: tuple[Samples, Samples]) -> None:
    material = samples[0]
    network = train_network("decoder", material, Condition(TRUE), 3, Recipe(40, 5e-3), 0)
    said = downstream.predict_all("decoder", network, material)
    assert score(said, material.truth, 3)[0] > 85


def test_few_images_are_drawn_by_the_seed(samples: tuple[Samples, Samples]) -> None:
    rows = choose_images(samples[0], 2, 0)
    assert len({samples[0].images[row] for row in rows}) == 2
    assert rows == choose_images(samples[0], 2, 0)
    assert choose_images(samples[0], None, 0) == list(range(len(samples[0].images)))


def test_ignored_pixels_cost_nothing_and_the_rate_falls_to_zero() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    labels = torch.full((1, 8, 8), 255)
    assert segmentation_loss(logits, labels).item() == 0
    labels[0, 0, 0] = 1
    assert segmentation_loss(logits, labels).item() > 0
    rates = [shape_rate(step, 100) for step in range(101)]
    assert max(rates) == 1
    assert rates[-1] == pytest.approx(0)
    assert shape_rate(0, 1) == 1


def test_shapes_of_the_networks() -> None:
    assert UNet(5)(torch.rand(2, 3, 64, 64)).shape == (2, 5, 32, 32)
    assert Decoder(12, 5)(torch.rand(2, 12, 7, 7)).shape == (2, 5, 7, 7)


def test_pixels_and_labels_are_turned_and_cut_alike() -> None:
    # every pixel's colour says its label, so they must agree wherever they were moved to
    labels = torch.randint(0, 4, (6, 8, 8), generator=torch.Generator().manual_seed(0))
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2).to(torch.uint8)
    pixels = (labels * 60)[:, None].expand(-1, 3, -1, -1).contiguous()
    inputs, wanted = draw_pixels(pixels, labels)(torch.arange(6), torch.Generator().manual_seed(1))
    for square, own in zip(inputs, wanted, strict=True):
        level = [square[0][own == label].median().item() for label in range(4)]
        assert level == sorted(level)
        assert np.corrcoef(square[0].flatten(), own.flatten())[0, 1] > 0.85


def test_the_command_prints_the_table_and_refuses_what_is_no_run(
    scenes_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downstream, "RECIPES", {"decoder": SHORT})
    page = tmp_path / "page.md"
    page.write_text("<!-- table: begin -->\n<!-- table: end -->\n")
    monkeypatch.setattr(downstream, "_PAGE", page)
    arguments = [str(scenes_run.path), "--seed", "0", "--few", "1", "--write"]
    result = CliRunner().invoke(downstream.main, arguments)
    assert result.exit_code == 0, result.output
    assert "true labels of 1 images" not in page.read_text()
    assert "true labels of 1 image |" in page.read_text()
    assert (tmp_path / "downstream.png").is_file()
    result = CliRunner().invoke(downstream.main, [str(tmp_path)])
    assert result.exit_code == 1
    assert "is no run directory" in result.output
