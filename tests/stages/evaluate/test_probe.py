"""The linear probe: against scikit-learn, against automatic gradients, and at its limits.

What the linear probe is trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import zarr
from scipy.sparse import csr_array
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from pipeline.errors import UsageError
from pipeline.images.windows import Window
from pipeline.run.manifest import Image, Manifest
from stages.evaluate.probe import (
    DECAYS,
    NEVER,
    POINTS,
    SHRINKAGE,
    Batches,
    LabelledWindows,
    LinearProbe,
    choose_linear_probe,
    count_labels,
    differentiate,
    fit_discriminants,
    fit_linear_probe,
    list_training_windows,
    measure_accuracy,
    measure_channels,
    spread_classes,
)


def split(features: Tensor, counts: Tensor, size: int = 3) -> Batches:
    def read() -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(features.split(size), counts.split(size), strict=True)

    return read


def make_data(
    *,
    windows: int = 8,
    classes: int = 3,
    channels: int = 5,
    points: int = 1,
    noise: float = 1.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Draw features around class means on grids of 4 x 3, and counts of mostly that class."""
    generator = torch.Generator().manual_seed(seed)
    means = 3 * torch.randn(
        classes, channels, generator=torch.Generator().manual_seed(99), dtype=torch.float64
    )
    label = torch.randint(classes, (windows, 4, 3), generator=generator)
    noisy = torch.randn(windows, 4, 3, channels, generator=generator, dtype=torch.float64)
    features = means[label] + noise * noisy + 7
    large = label.repeat_interleave(points, 1).repeat_interleave(points, 2)
    counts = 9.0 * F.one_hot(large, classes).permute(0, 3, 1, 2).double()
    counts += torch.randint(3, counts.shape, generator=generator)
    return features, counts


def predict(probe: LinearProbe, features: Tensor) -> Tensor:
    return (features @ probe.weight.double().T + probe.bias.double()).softmax(dim=-1)


def test_labels_are_counted_by_hand() -> None:
    labels = np.array(
        [
            [[0, 0, 7, 255, 7], [0, 7, 7, 255, 255], [254, 254, 255, 0, 0]],
            [[255] * 5, [255] * 5, [255] * 5],
        ],
        np.uint8,
    )
    counts = count_labels(labels, (2, 2))
    assert counts.shape == (8, 255)
    assert counts.dtype == np.float32
    dense = counts.toarray()
    # the first cell has rows 0 and 1 and columns 0 to 2, as 2 * 2 // 5 and 1 * 2 // 3 are 0
    assert dense[0, [0, 7]].tolist() == [3, 3]
    assert dense[1, [0, 7]].tolist() == [0, 1]
    assert dense[2, 254] == 2
    assert dense[3, 0] == 2
    assert dense.sum() == (labels != 255).sum()
    assert not dense[4:].any()


def test_counts_are_those_of_every_cell() -> None:
    labels = np.random.default_rng(0).choice([0, 3, 9, 255], (3, 12, 8)).astype(np.uint8)
    dense = count_labels(labels, (4, 2)).toarray().reshape(3, 4, 2, 255)
    for row, column in np.ndindex(4, 2):
        cell = labels[:, 3 * row : 3 * row + 3, 4 * column : 4 * column + 4].reshape(3, -1)
        for label in (0, 3, 9):
            expected = (cell == label).sum(axis=1)
            np.testing.assert_array_equal(dense[:, row, column, label], expected)


@pytest.mark.parametrize("points", [1, 2, 3])
def test_the_loss_is_that_of_upsampled_logits_and_so_is_its_gradient(points: int) -> None:
    features, counts = make_data(points=points)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)
    logits = (features @ weight.T + bias).permute(0, 3, 1, 2)
    large = F.interpolate(logits, counts.shape[2:], mode="bilinear", align_corners=False)
    expected = -(counts * large.log_softmax(dim=1)).sum()
    expected.backward()
    loss, slope, shift = differentiate(weight.detach(), bias.detach(), features, counts)
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(slope, weight.grad)
    torch.testing.assert_close(shift, bias.grad)


def test_it_is_the_solution_of_scikit_learn() -> None:
    features, counts = make_data(noise=3.0)
    counts[1] = 0  # not labelled
    decay = 0.02
    probe = fit_linear_probe(split(features, counts), 3, decay=decay, tolerance=1e-13)
    rows = counts.permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    values = features.reshape(-1, 5).numpy()
    weight = rows.sum(axis=1)
    mean = np.average(values, axis=0, weights=weight)
    spread = np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weight))
    standard = (values - mean) / spread
    oracle = LogisticRegression(C=1 / (decay * weight.sum()), tol=1e-10, max_iter=10_000)
    oracle.fit(
        np.concatenate([standard] * 3), np.repeat([0, 1, 2], len(values)), rows.T.reshape(-1)
    )
    np.testing.assert_allclose(
        predict(probe, features).reshape(-1, 3), oracle.predict_proba(standard), atol=2e-5
    )
    # scikit-learn's weights on the features as they are; the bias is free up to a constant
    np.testing.assert_allclose(probe.weight, oracle.coef_ / spread, atol=2e-5)


def test_by_its_own_tolerance_it_is_at_the_optimum_wherever_it_starts() -> None:
    features, counts = make_data(noise=3.0)
    read = split(features, counts)
    first = fit_linear_probe(read, 3, decay=1.0)
    for decay in (0.1, 1e-3):
        # a fit that starts where another decay ended must not stop there
        warm = fit_linear_probe(read, 3, decay=decay, start=first)
        best = fit_linear_probe(read, 3, decay=decay, tolerance=1e-14)
        assert warm.loss == pytest.approx(best.loss, rel=1e-4)
        assert abs(predict(warm, features) - predict(best, features)).max() < 2e-3


@pytest.mark.parametrize("points", [1, 2])
def test_discriminants_are_those_of_scikit_learn(points: int) -> None:
    features, counts = make_data(noise=3.0, points=points)
    counts[1] = 0  # not labelled
    weight, bias = fit_discriminants(split(features, counts)(), 3)
    cells = counts.unflatten(3, (3, points)).unflatten(2, (4, points)).sum(dim=(3, 5))
    cells = cells.permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    values, known = features.reshape(-1, 5).numpy(), cells.any(axis=1)
    within = LinearDiscriminantAnalysis(solver="lsqr", store_covariance=True)
    within.fit(values[known], cells[known].argmax(axis=1))
    shrunk = (1 - SHRINKAGE) * within.covariance_
    shrunk += SHRINKAGE * np.trace(within.covariance_) / 5 * np.eye(5)
    oracle = within.means_ @ np.linalg.inv(shrunk)
    logits = values @ oracle.T - (oracle * within.means_).sum(axis=1) / 2 + np.log(within.priors_)
    ours = values @ weight.numpy().T + bias.numpy()
    # up to what all classes of a position have in common
    np.testing.assert_allclose(ours - ours[:, :1], logits - logits[:, :1], atol=1e-5)


@pytest.mark.parametrize("points", [1, 2])
def test_separable_classes_are_told_apart(points: int) -> None:
    features, _ = make_data(noise=0.01)
    _, counts = make_data(noise=0.01, points=points)
    probe = fit_linear_probe(split(features, counts), 3, decay=1e-4)
    assert probe.steps > 1
    centre = counts[:, :, ::points, ::points].argmax(dim=1)
    assert torch.equal(predict(probe, features).argmax(dim=-1), centre)
    alone = fit_linear_probe(split(features, 9.0 * (counts > 8)), 3, decay=1e-4)
    assert points > 1 or measure_accuracy(split(features, 9.0 * (counts > 8))(), alone) == 1


def test_the_same_bytes_again_and_nearly_the_same_in_other_batches() -> None:
    features, counts = (part.float() for part in make_data(points=2))
    first, second = (fit_linear_probe(split(features, counts), 3) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
    other = fit_linear_probe(split(features, counts, 8), 3)
    torch.testing.assert_close(first.weight, other.weight, rtol=1e-3, atol=1e-3)


def test_mirrored_images_give_the_same_probe() -> None:
    features, counts = make_data(points=2)
    one = fit_linear_probe(split(features, counts), 3, tolerance=1e-12)
    other = fit_linear_probe(split(features.flip(2), counts.flip(3)), 3, tolerance=1e-12)
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-4, atol=1e-5)


def test_a_start_changes_little_but_the_time() -> None:
    features, counts = make_data(points=2)
    cold = fit_linear_probe(split(features, counts), 3, tolerance=1e-12)
    warm = fit_linear_probe(split(features, counts), 3, tolerance=1e-12, start=cold)
    assert warm.steps < cold.steps
    torch.testing.assert_close(warm.weight, cold.weight, rtol=1e-4, atol=1e-5)


def test_features_far_from_zero_and_constant_ones_do_no_harm() -> None:
    features, counts = (part.float() for part in make_data())
    plain = fit_linear_probe(split(features, counts), 3)
    harder = torch.cat([features, torch.full_like(features[..., :1], 5e3)], dim=-1)
    harder[..., 0] += 500
    found = fit_linear_probe(split(harder, counts), 3)
    assert found.weight.isfinite().all()
    assert found.loss == pytest.approx(plain.loss, rel=1e-3)
    torch.testing.assert_close(found.weight[:, -1], torch.zeros(3), atol=1e-6, rtol=0)


def test_one_class_is_always_right() -> None:
    features, counts = make_data(classes=1)
    probe = fit_linear_probe(split(features, counts), 1)
    assert (probe.weight == 0).all()
    assert probe.loss == 0
    assert measure_accuracy(split(features, counts)(), probe) == 1


def test_without_labelled_pixels_there_is_no_probe() -> None:
    features, counts = make_data()
    for data in ((features, 0 * counts), (features[:0], counts[:0])):
        with pytest.raises(ValueError, match="no pixel is labelled"):
            fit_linear_probe(split(*data), 3)


def test_channels_are_measured_over_labelled_pixels() -> None:
    features = torch.tensor([1.0, 2.0, 100.0], dtype=torch.float64).reshape(1, 1, 3, 1)
    counts = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    mean, spread, pixels = measure_channels([(features, counts.reshape(1, 2, 1, 3))])
    assert pixels == 4
    assert mean.tolist() == [1.75]
    assert spread.tolist() == pytest.approx([np.sqrt(0.1875)])


def test_a_class_that_was_never_seen_never_wins() -> None:
    probe = LinearProbe(torch.ones(2, 4), torch.tensor([-3.0, 5.0]), 0.1, 1.0, 3)
    weight, bias = spread_classes(probe.weight, probe.bias, np.array([1, 4]))
    assert weight.shape == (5, 4)
    assert bias.tolist() == [NEVER, -3, NEVER, NEVER, 5]
    assert (weight[[0, 2, 3]] == 0).all()
    logits = -1e3 * torch.ones(1, 1, 1, 4) @ weight.T + bias
    assert logits.argmax(dim=-1).item() in (1, 4)


@pytest.mark.parametrize("informative", [False, True])
def test_decay_is_chosen_by_what_was_held_out(informative: bool) -> None:
    def draw(seed: int) -> Batches:
        generator = torch.Generator().manual_seed(seed)
        label = (torch.rand(6, 4, 3, generator=generator) < 0.2).long()
        features = torch.randn(6, 4, 3, 60, generator=generator, dtype=torch.float64)
        features[..., 0] += 6.0 * informative * label
        return split(features, F.one_hot(label, 2).permute(0, 3, 1, 2).double())

    train, held = draw(0), draw(1)
    probe = choose_linear_probe(train, train, held, 2)
    # with noise alone the best guess is the larger class, to which decay drives the weights;
    # it does so, too, where they are worth having
    assert probe.decay == DECAYS[0] if not informative else probe.decay < DECAYS[0]
    accuracy = measure_accuracy(held(), probe)
    assert accuracy > (0.9 if informative else 0.75)


def make_manifest(splits: list[str], windows: int = 2, label: str | None = "a.png") -> Manifest:
    images = [
        Image(row, f"i{row}", split, f"i{row}.png", label, 9, 9, 1, 1, "d")
        for row, split in enumerate(splits)
    ]
    rows = [
        Window(index, index // windows, 0, 0, 8, 8, 8) for index in range(windows * len(splits))
    ]
    return Manifest("folder", Path(), None, tuple(images), tuple(rows))


def make_labelled(root: Path, images: list[int]) -> LabelledWindows:
    count, generator = len(images), np.random.default_rng(0)
    group = zarr.open_group(root, mode="w")
    for name in ("clean", "mirror"):
        values = generator.standard_normal((count, 3, 2, 4)).astype(np.float16)
        group.create_array(name, data=values, chunks=(1, 3, 2, 4))
    counts = generator.integers(5, size=(count * 6 * POINTS**2, 2)).astype(np.float32)
    return LabelledWindows(
        arrays={name: group[name] for name in ("clean", "mirror")},
        windows=np.arange(count),
        images=np.array(images),
        counts=csr_array(counts),
        labels=np.array([0, 3]),
        unreadable={},
        device=torch.device("cpu"),
    )


def test_only_labelled_windows_of_the_train_split_are_listed() -> None:
    manifest = make_manifest(["train", "val", "train", "train"])
    assert list_training_windows(manifest, 100) == [0, 1, 4, 5, 6, 7]
    images = list(manifest.images)
    images[2] = replace(images[2], label=None)
    images[3] = replace(images[3], state="rejected")
    assert list_training_windows(replace(manifest, images=tuple(images)), 100) == [0, 1]


def test_a_sample_is_ascending_and_always_the_same() -> None:
    manifest = make_manifest(["train"] * 50)
    found = list_training_windows(manifest, 20)
    assert len(set(found)) == 20
    assert found == sorted(found) == list_training_windows(manifest, 20)
    assert max(found) > 50


@pytest.mark.parametrize(
    "manifest", [make_manifest(["all", "val"]), make_manifest(["train", "val"], label=None)]
)
def test_without_a_labelled_train_split_it_is_said(manifest: Manifest) -> None:
    with pytest.raises(UsageError, match=r"--linear-probe.*split train.*no labelled image"):
        list_training_windows(manifest, 10)


def test_batches_are_averages_of_both_views_with_their_counts(tmp_path: Path) -> None:
    data = make_labelled(tmp_path, [0] * 9 + [4] * 10)
    features, counts = (torch.cat(parts) for parts in zip(*data.read_batches(), strict=True))
    clean, mirror = (np.asarray(data.arrays[n][:], np.float32) for n in ("clean", "mirror"))
    np.testing.assert_array_equal(features, (clean + mirror[:, :, ::-1]) / 2)
    assert features.dtype == torch.float32
    dense = data.counts.toarray().reshape(19, 3 * POINTS, 2 * POINTS, 2)
    np.testing.assert_array_equal(counts, dense.transpose(0, 3, 1, 2))


def test_images_are_held_out_as_wholes(tmp_path: Path) -> None:
    data = make_labelled(tmp_path, [0, 0, 2, 2, 3, 5, 5, 5, 8, 9])
    parts = data.hold_out()
    assert parts is not None
    train, held = parts
    assert set(train.images) | set(held.images) == {0, 2, 3, 5, 8, 9}
    assert len(set(held.images)) == 1
    assert not set(train.images) & set(held.images)
    whole = {int(w): f for (f, _), w in zip(_one_by_one(data), data.windows, strict=True)}
    for part in parts:
        for (features, counts), window in zip(_one_by_one(part), part.windows, strict=True):
            np.testing.assert_array_equal(features, whole[int(window)])
            low = int(window) * 6 * POINTS**2
            assert counts.sum() == data.counts[low : low + 6 * POINTS**2].sum()


def _one_by_one(data: LabelledWindows) -> list[tuple[torch.Tensor, torch.Tensor]]:
    features, counts = (torch.cat(parts) for parts in zip(*data.read_batches(), strict=True))
    return list(zip(features, counts, strict=True))


def test_a_single_image_cannot_be_held_out(tmp_path: Path) -> None:
    assert make_labelled(tmp_path, [7, 7, 7]).hold_out() is None
