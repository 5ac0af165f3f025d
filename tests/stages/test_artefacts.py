"""The classifiers of a fit or a head, from what their groups hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import RunError
from pipeline.run.directory import RunDirectory
from stages.artefacts import (
    RUNNING,
    _read_classifiers,
    find_features,
    read_classifier,
    write_classifier,
)
from stages.labelling import MAIN, Classifier


def make_arrays(*names: str) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    return {name: generator.standard_normal((4, 5)).astype(np.float32) for name in names}


def test_primaps_has_running_prototypes_beside_those_of_the_labels() -> None:
    arrays = make_arrays("prototypes", "momentum_prototypes")
    attributes = {"method": "primaps", "logits": "inner product"}
    found = _read_classifiers(arrays, attributes, 2.0)
    assert list(found) == [MAIN, RUNNING]
    np.testing.assert_array_equal(found[MAIN].prototypes, arrays["momentum_prototypes"])
    np.testing.assert_array_equal(found[RUNNING].prototypes, arrays["prototypes"])
    assert list(_read_classifiers(arrays, attributes | {"method": "kmeans"}, 2.0)) == [MAIN]
    del arrays["prototypes"]
    assert list(_read_classifiers(arrays, attributes, 2.0)) == [MAIN]


def test_a_robust_fit_has_a_bias() -> None:
    arrays = make_arrays("momentum_prototypes")
    attributes = {"method": "robust", "logits": "inner product"}
    assert _read_classifiers(arrays, attributes, 2.0)[MAIN].bias is None
    arrays["bias"] = np.arange(4, dtype=np.float32)
    found = _read_classifiers(arrays, attributes, 2.0)
    assert list(found) == [MAIN]
    assert found[MAIN].classes == 4
    assert found[MAIN].bias is not None and found[MAIN].bias.tolist() == [0, 1, 2, 3]


def test_cosines_have_the_gain_that_is_asked_for() -> None:
    arrays = make_arrays("momentum_prototypes")
    attributes = {"method": "kmeans", "logits": "cosine"}
    assert _read_classifiers(arrays, attributes, 12.5)[MAIN].gain == 12.5


def test_a_head_is_its_cluster_probe() -> None:
    arrays = make_arrays("probe", "head.linear.weight")
    found = _read_classifiers(arrays, {"method": "stego", "logits": "cosine"}, 2.0)
    assert list(found) == [MAIN]
    np.testing.assert_array_equal(found[MAIN].prototypes, arrays["probe"])


def test_a_group_that_is_no_classifier_is_refused() -> None:
    with pytest.raises(KeyError):
        _read_classifiers({}, {"logits": "cosine"}, 2.0)


def test_features_are_those_of_the_run_or_codes(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert find_features(run, {}) == run.features
    assert find_features(run, {"features": "features"}) == run.features
    assert find_features(run, {"features": "codes/stego"}) == run.codes("stego")
    for name in ("codes/", "codes", "masks", ""):
        with pytest.raises(RunError, match="does not know"):
            find_features(run, {"features": name})


def test_a_classifier_is_read_only_where_it_was_made_from_the_same(tmp_path: Path) -> None:
    file = tmp_path / "state" / "classifier.npz"
    assert read_classifier(file, "a") is None
    made = Classifier(torch.ones(3, 4), torch.arange(3.0), "cosine", 2.0)
    write_classifier(file, "a", made, {"decay": 0.1})
    found = read_classifier(file, "a")
    assert found is not None
    classifier, facts = found
    assert facts["decay"] == 0.1
    assert classifier.classes == 3
    assert (classifier.logits, classifier.gain) == ("cosine", 2.0)
    torch.testing.assert_close(classifier.bias, torch.arange(3.0))
    assert read_classifier(file, "b") is None
    before = file.read_bytes()
    write_classifier(file, "a", made, {"decay": 0.1})
    assert file.read_bytes() == before


def test_a_damaged_classifier_is_said(tmp_path: Path) -> None:
    file = tmp_path / "classifier.npz"
    write_classifier(file, "a", Classifier(torch.ones(3, 4)), {})
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunError, match="delete it"):
        read_classifier(file, "a")
