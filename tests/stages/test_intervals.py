"""The bootstrap over images: against one drawn by hand, and what it must not depend on."""

from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.datasets.definition import IGNORE
from stages.intervals import DRAWS, Resampling, draw_weights, measure_interval

Counts = NDArray[np.float64]


def make_counts(images: int, classes: int = 5, seed: int = 0) -> tuple[Counts, Counts]:
    """Draw pixels by image and class: right, and right or wrong."""
    generator = np.random.default_rng(seed)
    union = np.zeros((images, IGNORE))
    union[:, :classes] = generator.integers(1, 1000, (images, classes))
    share = generator.uniform(0, 1, (images, 1)) * generator.uniform(0, 1, (images, IGNORE))
    return np.floor(union * share), union


def resample(hits: Counts, union: Counts, names: list[str], block: int = 10**6) -> Resampling:
    drawn = Resampling()
    for low in range(0, len(names), block):
        part = slice(low, low + block)
        drawn.add(draw_weights(names[part]), hits[part], union[part])
    return drawn


def list_names(images: int) -> list[str]:
    return [f"val/{number}" for number in range(images)]


def test_images_count_as_a_poisson_variable_of_mean_one() -> None:
    weights = draw_weights(list_names(2000)).astype(float)
    assert weights.shape == (2000, DRAWS)
    assert weights.mean() == pytest.approx(1, abs=5e-3)
    assert weights.var() == pytest.approx(1, abs=1e-2)
    assert (weights == 0).mean() == pytest.approx(np.exp(-1), abs=2e-3)
    # no two images go together, and no two draws
    assert abs(np.corrcoef(weights[:50])[np.triu_indices(50, 1)]).max() < 0.2
    assert abs(np.corrcoef(weights[:, :50].T)[np.triu_indices(50, 1)]).max() < 0.12


def test_the_interval_is_that_of_images_drawn_with_replacement() -> None:
    hits, union = make_counts(150)
    drawn = resample(hits, union, list_names(150))
    generator = np.random.default_rng(1)
    oracle = []
    for _ in range(4000):
        rows = generator.integers(0, 150, 150)
        oracle.append(np.mean((hits[rows].sum(0) / union[rows].sum(0).clip(1))[:5]))
    wanted = 100 * np.percentile(oracle, [2.5, 97.5])
    assert drawn.interval == pytest.approx(wanted, abs=0.15 * (wanted[1] - wanted[0]))
    assert drawn.miou is not None
    assert drawn.miou[-1] == np.mean((hits.sum(0) / union.sum(0).clip(1))[:5])


def test_neither_order_nor_blocks_change_a_digit() -> None:
    hits, union = make_counts(60)
    names, order = list_names(60), np.random.default_rng(2).permutation(60)
    whole = resample(hits, union, names).miou
    turned = resample(hits[order], union[order], [names[i] for i in order], block=7).miou
    assert whole is not None and turned is not None
    np.testing.assert_array_equal(whole, turned)


def test_two_fits_are_drawn_in_pairs() -> None:
    hits, union = make_counts(100)
    better = np.minimum(hits + 0.02 * union, union).round()
    first, second = (resample(h, union, list_names(100)) for h in (hits, better))
    assert first.miou is not None and second.miou is not None
    low, high = measure_interval(second.miou - first.miou)
    # each alone is far less sure
    assert first.interval is not None
    assert 0 < low < high < 5 and high - low < 0.2 * (first.interval[1] - first.interval[0])


def test_one_image_has_no_interval_and_images_without_labels_are_none() -> None:
    hits, union = make_counts(3)
    assert resample(hits[:1], union[:1], ["val/0"]).interval is None
    empty = np.zeros_like(union)
    both = [np.concatenate([values[:1], empty]) for values in (hits, union)]
    assert resample(*both, [f"{n}" for n in range(4)]).interval is None


def test_it_takes_no_time() -> None:
    hits, union = make_counts(100, 27)
    start = time.perf_counter()
    assert resample(hits, union, list_names(100)).interval is not None
    assert time.perf_counter() - start < 1
