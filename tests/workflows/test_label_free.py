"""Every fit, head and label map that is called label-free is made again on wrong labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from pipeline.errors import RunError
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from tests.scenes import FAST_EM, Invoke, hash_tree, write_scenes
from workflows.label_free import GIVEN, PERMUTED, REMOVED, SHIFTED, find_leaks, prove_label_free

MODEL = "test_vit"
QUICK = (*FAST_EM, "--no-progress", "--classes", 3)
FITS: dict[str, tuple[object, ...]] = {
    "primaps": QUICK,
    "kmeans": ("--method", "kmeans", *QUICK),
    "robust": ("--method", "robust", "--clusters", 5, *QUICK),
    "fine": ("--method", "robust", "--fine", *QUICK),
    "on-hp": ("--head", "hp", *FAST_EM, "--no-progress"),
    "told": ("--method", "robust", "--labels-from", "split:train", *QUICK),
}
UNTOLD = [*FITS][:-1]


@pytest.fixture
def run(tmp_path: Path, invoke: Invoke) -> Path:
    """A run of all methods and heads, with a linear probe, whose loss is one of labels."""
    write_scenes(tmp_path, 6, width=64, height=64)
    for kind in ("photographs", "labels"):
        for number, split in enumerate(("train", "val")):
            (tmp_path / kind / f"part {number}").rename(tmp_path / kind / split)
    (tmp_path / "labels" / "classes.txt").write_text("sky\nfield\nroad\n")
    torch.manual_seed(0)
    state = timm.create_model(MODEL, pretrained=False, num_classes=0).state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    run = tmp_path / "run"
    invoke(
        *("extract", run, "--dataset", "folder", "--root", tmp_path / "photographs"),
        *("--labels", tmp_path / "labels", "--split", "train", "--split", "val"),
        *("--backbone", MODEL, "--weights", tmp_path / "weights.safetensors", "--size", 64),
        *("--views", "clean,fine:96,photometric,jittered", "--crops", "five", "--attention"),
        "--no-progress",
    )
    invoke("masks", run, "--crf", "none", "--no-progress")
    for method in ("stego", "hp"):
        size = ("--classes", 3, "--dim", 8, "--batch-size", 4, "--steps", 4)
        invoke("head", run, "--method", method, *size, "--no-progress")
    for name, options in FITS.items():
        invoke("em", run, "--name", name, *options)
    subjects = [("--head", "stego"), ("--head", "hp"), *(("--em", name) for name in FITS)]
    for subject in subjects:
        more = ("--linear-probe",) if subject[1] in ("hp", "primaps") else ()
        invoke("evaluate", run, *subject, "--crf", "none", "--gallery", 0, "--no-progress", *more)
    return run


def test_no_label_reaches_features_proposals_fits_heads_or_label_maps(run: Path) -> None:
    before = hash_tree(run)
    proof = prove_label_free(RunDirectory(run), 4, Screen(progress=False))
    assert not proof.leaks
    assert proof.skipped == ("em/told",) and proof.images == 4
    wanted = {"features.zarr", "masks.zarr", "codes/hp.zarr", "codes/stego.zarr"}
    wanted |= {f"heads.zarr/{head}" for head in ("stego", "hp")}
    wanted |= {f"em.zarr/{name}" for name in UNTOLD}
    wanted |= {f"labels-{name}" for name in (*UNTOLD, "head-stego", "head-hp")}
    assert wanted <= proof.artefacts.keys()
    assert all(proof.artefacts[f"labels-{name}"] == 4 for name in UNTOLD)
    assert hash_tree(run) == before


def test_a_run_without_labels_proves_nothing(tmp_path: Path, invoke: Invoke, scenes: Path) -> None:
    run = tmp_path / "run"
    more = ("--backbone", "handcrafted", "--size", 64, "--limit", 2, "--no-progress")
    invoke("extract", run, "--dataset", "folder", "--root", scenes / "photographs", *more)
    with pytest.raises(RunError, match="no image with a label map"):
        prove_label_free(RunDirectory(run), 4, Screen(progress=False))


def test_what_is_there_with_labels_alone_leaks() -> None:
    same = {"em.zarr/fit": {"a": "1"}}
    results = {
        GIVEN: same | {"em.zarr/other": {"b": "1"}},
        PERMUTED: same | {"em.zarr/other": {"b": "2"}},
        SHIFTED: {"em.zarr/fit": {"a": "2"}},
        REMOVED: same,
    }
    counts, leaks = find_leaks(results)
    assert counts == {"em.zarr/fit": 1, "em.zarr/other": 1}
    assert leaks == {"em.zarr/fit": [SHIFTED], "em.zarr/other": [GIVEN, PERMUTED]}
