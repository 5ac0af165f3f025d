"""Variants on resamples: scored as evaluate scores, judged by pairs, all looks counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import benchmarks
from benchmarks.resample import (
    Difference,
    Results,
    Sample,
    Variant,
    describe_results,
    judge,
    parse_variants,
    run_variant,
)
from pipeline.errors import UsageError
from pipeline.run.directory import RunDirectory
from stages.em.methods import Fit
from tests.scenes import Invoke, write_split_scenes

FILE = """
from stages.em.robust import Robust

class Other(Robust):
    def fit(self, task):
        return super().fit(task)
"""


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory, invoke: Invoke) -> Sample:
    folder = tmp_path_factory.mktemp("resample")
    table = write_split_scenes(folder, {"train": 8, "val": 3})
    path, quiet = folder / "run", "--no-progress"
    options = ("--backbone", "handcrafted", "--size", 64, "--frame", "centre", quiet)
    invoke("extract", path, "--dataset", f"list:{table}", *options)
    invoke("masks", path, "--crf", "none", quiet)
    return Sample(RunDirectory(path), 3)


@pytest.mark.parametrize("method", ["robust", "kmeans"])
def test_all_of_train_scores_as_the_stages_do(sample: Sample, method: str, invoke: Invoke) -> None:
    path = sample.run.path
    variant = Variant(method, {"method": method, "epochs": 2})
    settings = ("--classes", 3, "--method", method, "--epochs", 2, "--name", method, "--seed", 1)
    invoke("em", path, *settings, "--no-progress")
    invoke("evaluate", path, "--em", method, "--crf", "none", "--no-progress")
    metrics = json.loads((sample.run.report(method) / "metrics.json").read_text())
    fit = sample.fit(variant.make_settings(3, 1), sample.windows)
    for split in ("train", "val"):
        block = metrics["splits"][split]
        found = sample.score(fit, split)
        assert found == pytest.approx((block["accuracy"], block["miou"]), abs=0.01)


def test_what_is_known_is_not_scored_again(sample: Sample, tmp_path: Path) -> None:
    file = tmp_path / "other.py"
    file.write_text(FILE)
    (other,) = parse_variants(f"{file}:shrinkage=0.2")
    assert (other.name, other.settings["shrinkage"]) == ("Other:shrinkage=0.2", 0.2)
    results = Results.open(tmp_path / "results.json")
    for variant in (*parse_variants("robust"), other, other):
        results.enter(variant)
        run_variant(variant, "set", sample, results, splits=("val",), subsets=2, seeds=(0,))
    results = Results.open(results.file)
    assert results.looks == {"set": {"robust": 2, "Other:shrinkage=0.2": 2}}
    cells = results.find(other.name, "val", "set")
    assert [*cells] == ["0/0", "1/0"]
    assert len(sample.draw(0)) == round(0.7 * len(sample.windows))
    assert not np.array_equal(sample.draw(0), sample.draw(1))
    # another edition begins anew, and the old keeps its row and its looks
    results.enter(Variant(other.name, other.settings, "else"))
    assert [*results.variants] == ["robust", f"{other.name}@1", other.name]
    text = describe_results(results)
    assert "Val was scored on set 4 times, for 2 variants." in text
    assert f"| {other.name}@1 |" in text


def test_every_variant_of_ours_fits_and_differs(sample: Sample) -> None:
    def describe(fit: Fit) -> bytes:
        assert fit.sums is not None
        assert fit.sums.merges is not None
        return fit.prototypes.numpy().tobytes() + fit.sums.merges.numpy().tobytes()

    plain = sample.fit(parse_variants("robust")[0].make_settings(3, 0), sample.windows)
    variants = parse_variants(str(Path(benchmarks.__file__).parent / "variants.py"))
    assert len(variants) == 7
    for variant in variants:
        fit = sample.fit(variant.make_settings(3, 0), sample.windows)
        assert fit.prototypes.shape == plain.prototypes.shape
        assert describe(fit) != describe(plain), variant.name


def test_a_variant_is_kept_that_gains_and_loses_nowhere() -> None:
    found = Difference.find([1.0, 2.0, 3.0])
    # Student's t of 2 degrees of freedom, 95 % below: 2.920
    assert (found.low, found.high) == pytest.approx(
        (2 - 2.920 / 3**0.5, 2 + 2.920 / 3**0.5), abs=1e-3
    )
    gain = {"0/0": 2.0, "0/1": 2.5}
    assert judge({"a": gain, "b": gain}, ["a", "b"])[1] == "**kept**"
    assert (
        judge({"a": gain, "b": {"0/0": -1.5, "0/1": -1.0}}, ["a", "b"])[1] == "no: loses 1.2 on b"
    )
    assert judge({"a": gain, "b": {"0/0": -2.0, "0/1": 0.1}}, ["a", "b"])[1] == "no gain shown"
    assert judge({"a": gain}, ["a", "b"])[1] == "not run on b"


def test_a_variant_that_is_none_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file"):
        parse_variants(str(tmp_path / "none.py"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UsageError, match=r"defines no"):
        parse_variants(str(tmp_path / "empty.py"))
    with pytest.raises(UsageError, match="--against other"):
        describe_results(Results.open(tmp_path / "results.json"), "other")
