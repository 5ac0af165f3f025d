"""The file of prototypes: what it holds, and what is refused on reading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from pipeline.errors import RunError, UsageError
from pipeline.run.directory import RunDirectory
from stages.artefacts import open_artefacts
from stages.labelling import MAIN
from tests.workflows.export.conftest import Export
from workflows.export.prototypes import KEY, read_prototypes


@pytest.fixture
def file(export: Export, tmp_path: Path) -> Path:
    export("prototypes", tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


def read_parts(file: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    content = file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return load(content), json.loads(header["__metadata__"][KEY])


def test_it_holds_what_the_run_was_labelled_with(file: Path, finished: Path) -> None:
    read = read_prototypes(file)
    classifier = open_artefacts(RunDirectory(finished), "default", gain=2).classifiers[MAIN]
    assert torch.equal(read.classifier.prototypes, classifier.prototypes)
    assert read.classifier.logits == classifier.logits
    assert read.head is None
    facts = read.facts
    assert (facts.backbone, facts.weights_digest, facts.patch) == ("handcrafted", "", facts.patch)
    assert (facts.size, facts.frame, facts.precision) == (64, "whole", "float32")
    assert [c.name for c in facts.clusters] == ["class 1", "class 0", "class 2"]
    assert facts.crf == "numba"
    assert facts.crf_settings.iterations == 10


def test_two_exports_have_the_same_bytes(export: Export, file: Path, tmp_path: Path) -> None:
    lines = export("prototypes", tmp_path / "folder")
    assert "3 prototypes of em/default" in lines[0]
    assert (tmp_path / "folder" / "prototypes.safetensors").read_bytes() == file.read_bytes()


def test_another_file_is_not_overwritten(export: Export, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(save({"a": np.zeros(2, np.float32)}))
    before = file.read_bytes()
    with pytest.raises(RunError, match="holds something else; give another --out"):
        export("prototypes", file)
    assert file.read_bytes() == before


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"No such file .* --format prototypes` writes one"):
        read_prototypes(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version: Input should be 1"),
        ({"format": "another"}, "format: Input should be 'primaps-pipe prototypes'"),
        ({"size": -3}, "size: Input should be greater"),
        ({"frame": "all"}, "frame: Input should be 'whole' or 'centre'"),
        ({"logits": "euclidean"}, "logits: Input should be"),
        ({"weights_digest": "abc"}, "weights_digest: String should match"),
        ({"gain": "NaN"}, "gain"),
        ({"unknown": 1}, "unknown: Extra inputs are not permitted"),
        ({"channels": 4}, "channels on 4"),
        ({"clusters": [{"name": "a", "colour": [0, 0, 0]}]}, "for 1 clusters"),
        ({"clusters": [{"name": "a", "colour": [0, 0, 300]}]}, "clusters.0.colour.2"),
        ({"head_channels": 9}, "its tensors are"),
    ],
)
def test_facts_that_cannot_be_meant(file: Path, change: dict[str, Any], words: str) -> None:
    tensors, facts = read_parts(file)
    file.write_bytes(save(tensors, {KEY: json.dumps(facts | change)}))
    with pytest.raises(UsageError, match=words):
        read_prototypes(file)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"prototypes": np.full((3, 4), np.nan, np.float32)}, "does not hold finite"),
        ({"prototypes": np.zeros((3, 4), np.float64)}, "does not hold finite float32"),
        ({"other": np.zeros((3, 4), np.float32)}, "prototypes"),
        ({"prototypes": np.zeros(3, np.float32)}, r"prototypes \(3,\)"),
    ],
)
def test_tensors_that_do_not_fit(file: Path, tensors: dict[str, np.ndarray], words: str) -> None:
    _, facts = read_parts(file)
    file.write_bytes(save(tensors, {KEY: json.dumps(facts)}))
    with pytest.raises(UsageError, match=words):
        read_prototypes(file)


def test_a_bias_of_another_length(file: Path) -> None:
    tensors, facts = read_parts(file)
    tensors["bias"] = np.zeros(2, np.float32)
    file.write_bytes(save(tensors, {KEY: json.dumps(facts)}))
    with pytest.raises(UsageError, match=r"bias is \(2,\) for 3 prototypes"):
        read_prototypes(file)


def test_other_files(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    for content in (b"", b"PK\x03\x04", b"\x80\x04K\x01.", save({"a": np.zeros(2, np.float32)})):
        file.write_bytes(content)
        with pytest.raises(UsageError, match="is not a file of prototypes"):
            read_prototypes(file)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_files_are_refused_in_one_sentence(file: Path, data: st.DataObject) -> None:
    content = bytearray(file.read_bytes())
    header = int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        # the numbers of the tensors may be any
        content[data.draw(st.integers(0, 8 + header - 1))] = data.draw(st.integers(0, 255))
    damaged = file.with_name("damaged.safetensors")
    damaged.write_bytes(bytes(content[: data.draw(st.integers(1, len(content)))]))
    try:
        read_prototypes(damaged)
    except UsageError as error:
        assert "\n" not in str(error)
