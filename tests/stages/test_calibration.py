"""Calibration by what a fit did not see: by hand, and on drawn classes with known noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.testing import assert_allclose, assert_array_equal

from stages import calibration
from stages.calibration import (
    FOLDS,
    LEVELS,
    Calibration,
    HeldOut,
    calibrate,
    count_levels,
    read_held,
)
from stages.discriminants import Moments, find_discriminant
from stages.em import sums
from stages.em.sums import Assigned, hold_positions
from tests.fakes import HeldPiece

CLASSES, CHANNELS, SHRINKAGE = 3, 6, 0.1


def test_probabilities_by_hand() -> None:
    logits = torch.tensor([[0.0], [np.log(3.0)]], dtype=torch.float64)
    # twice the logits: 1 to 9; a fifth of it is spread over two classes
    expected = [[0.8 * 0.1 + 0.1], [0.8 * 0.9 + 0.1]]
    assert_allclose(Calibration(2.0, 0.2).apply(logits), expected, rtol=1e-12)


def draw(
    positions: int,
    seed: int,
    *,
    noise: float = 0.0,
    spread: float = 1.0,
    channels: int = CHANNELS,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw features, the true class, and the cluster: of a share of them that of another class.

    A class has two clusters, k and k + CLASSES.
    """
    generator = np.random.default_rng(seed)
    truth = generator.integers(CLASSES, size=positions)
    centres = np.random.default_rng(1).normal(size=(CLASSES, channels))
    features = centres[truth] + spread * generator.normal(size=(positions, channels))
    wrong = generator.random(positions) < noise
    shift = generator.integers(1, CLASSES, size=positions)
    said = np.where(wrong, (truth + shift) % CLASSES, truth)
    clusters = said + CLASSES * generator.integers(2, size=positions)
    return tuple(torch.from_numpy(values) for values in (features, truth, clusters))


def hold(features: torch.Tensor, clusters: torch.Tensor) -> HeldOut:
    """Keep positions, each a proposal of its own, four of them of one window."""
    rows, channels = torch.arange(len(features)), features.shape[1]
    moments = Moments.make_empty(features.mean(dim=0), len(features))
    moments.add(features, rows)
    number = rows % 4 + 1
    # the last window may have fewer proposals
    spare = -len(rows) % 4
    grid = F.pad(features, (0, 0, 0, spare)).view(-1, 1, 4, channels)
    proposals = F.pad(number.to(torch.uint8), (0, spare)).view(-1, 1, 4)
    piece = HeldPiece(grid, proposals, np.arange(len(grid)), 25)
    assigned = Assigned(256 * (rows // 4) + number, rows)
    return hold_positions([piece], assigned, moments, rows // 4 % FOLDS)


def fit(held: HeldOut, numbers: torch.Tensor, classes: int = CLASSES) -> Calibration | None:
    return calibrate(
        held,
        lambda moments: moments.join(numbers.tolist(), int(numbers.max()) + 1),
        numbers,
        classes,
        shrinkage=SHRINKAGE,
        gain=1.0,
    )


def test_folds_make_the_whole_and_positions_are_evenly_spaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sums, "MOST", 150)
    features, _, clusters = draw(1000, 0)
    held = hold(features, clusters)
    windows = torch.arange(1000) // 4
    for fold in range(FOLDS):
        rest = held.leave_out(fold)
        others = windows % FOLDS != fold
        centred = (features - held.moments.origin)[others]
        assert_allclose(rest.scatter, centred.T @ centred, rtol=1e-9, atol=1e-9)
        assert_allclose(rest.total.sum(dim=0), centred.sum(dim=0), rtol=1e-9, atol=1e-9)
        assert torch.equal(rest.count, others.double())
    # every seventh, over the ends of batches
    assert torch.equal(held.features, features[::7])
    assert torch.equal(held.rows, torch.arange(1000)[::7])


def test_what_is_held_out_is_read_as_it_was_kept() -> None:
    features, _, clusters = draw(300, 0)
    held = hold(features, clusters)
    arrays = {name: values for name, (values, _) in held.list_arrays().items()}
    found = read_held(arrays, held.moments)
    assert found is not None
    assert fit(found, clusters % CLASSES) == fit(held, clusters % CLASSES)
    assert read_held({}, held.moments) is None


@pytest.mark.parametrize("noise", [0.0, 0.25])
def test_what_is_said_to_be_sure_is_right_so_often(noise: float) -> None:
    features, _, clusters = draw(3000, 0, noise=noise)
    found = fit(hold(features, clusters), clusters % CLASSES)
    assert found is not None
    # of a quarter, spread over the two other classes, 3/8 over all three
    assert found.floor == pytest.approx(1.5 * noise, abs=0.06)
    moments = Moments.make_empty(features.mean(dim=0), CLASSES)
    moments.add(features, clusters % CLASSES)
    classifier = find_discriminant(moments, shrinkage=SHRINKAGE)
    fresh, _, said = draw(40_000, 9, noise=noise)
    sure, label = found.apply(classifier.classify(fresh).T).max(dim=0)
    right = (label == said % CLASSES).double()
    for low in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        some = (sure >= low) & (sure < low + 0.1)
        if some.sum() > 300:
            assert float(right[some].mean()) == pytest.approx(float(sure[some].mean()), abs=0.05)


def test_positions_that_were_seen_are_no_judges() -> None:
    # what was learned of 150 positions of 40 channels is too sure of itself
    features, _, clusters = draw(150, 3, spread=3, channels=40)
    numbers = clusters % CLASSES
    honest = fit(hold(features, clusters), numbers)
    assert honest is not None
    moments = Moments.make_empty(features.mean(dim=0), CLASSES)
    moments.add(features, numbers)
    classifier = find_discriminant(moments, shrinkage=SHRINKAGE)
    own = calibration._fit(classifier.classify(features), numbers)
    fresh, truth, _ = draw(20_000, 8, spread=3, channels=40)
    logits = classifier.classify(fresh).T
    errors = [
        abs(float(p.values.mean() - (p.indices == truth).double().mean()))
        for p in (each.apply(logits).max(dim=0) for each in (own, honest))
    ]
    assert errors[1] < 0.08
    assert errors[0] > 0.11


def test_clusters_without_a_class_say_nothing() -> None:
    features, _, clusters = draw(600, 0)
    held = hold(features, clusters)
    # the last class has no name
    assert fit(held, clusters % CLASSES, 2) is not None
    assert fit(held, clusters % CLASSES + 2, 2) is None, "no cluster has a name"


def test_a_class_of_one_fold_alone_is_no_fault() -> None:
    features, _, clusters = draw(400, 0)
    clusters[:] = clusters % CLASSES
    # one window has all of class 2
    clusters[clusters == 2] = 1
    clusters[:4] = 2
    found = fit(hold(features, clusters), clusters % CLASSES)
    assert found is not None
    assert np.isfinite([found.gain, found.floor]).all()


def test_levels_by_hand() -> None:
    probability = torch.tensor([[[0.81, 0.26, 1.0]], [[0.19, 0.74, 0.0]]])
    labels = np.array([[0, 0, 0]], np.uint8)
    codes, counts = count_levels(probability, labels, np.array([[0, 1, 255]], np.uint8))
    levels = [32, 10, LEVELS - 1]
    expected = sorted(zip(levels, (0, 1, 255), strict=True))
    assert_array_equal(codes, [level * 2**16 + truth for level, truth in expected])
    assert_array_equal(counts, [1, 1, 1])
    assert_array_equal(count_levels(probability, labels, None)[0] % 256, [255, 255, 255])
