"""What the linear probe is trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from scipy.sparse import csr_array

from pipeline.errors import RunError, UsageError
from pipeline.manifest import Image, Manifest
from pipeline.windows import Window
from stages.evaluate.supervision import (
    POINTS,
    LabelledWindows,
    list_training_windows,
    read_probe,
    write_probe,
)


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


def test_a_probe_is_read_only_where_it_was_made_from_the_same(tmp_path: Path) -> None:
    file = tmp_path / "state" / "probe.npz"
    assert read_probe(file, "a") is None
    arrays = {"weight": np.ones((3, 4), np.float32), "bias": np.arange(3, dtype=np.float32)}
    write_probe(file, "a", arrays, {"decay": 0.1})
    found = read_probe(file, "a")
    assert found is not None
    classifier, facts = found
    assert facts["decay"] == 0.1
    assert classifier.classes == 3
    assert classifier.logits == "inner product"
    torch.testing.assert_close(classifier.bias, torch.arange(3.0))
    assert read_probe(file, "b") is None
    before = file.read_bytes()
    write_probe(file, "a", arrays, {"decay": 0.1})
    assert file.read_bytes() == before


def test_a_damaged_probe_is_said(tmp_path: Path) -> None:
    file = tmp_path / "probe.npz"
    write_probe(file, "a", {"weight": np.ones((3, 4), np.float32)}, {})
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunError, match="delete it"):
        read_probe(file, "a")
