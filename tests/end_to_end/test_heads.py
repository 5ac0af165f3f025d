"""Heads, their codes, and what is fitted on them, through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import zarr
from PIL import Image
from safetensors.torch import save_file

from pipeline import Run
from tests.end_to_end.conftest import FAST_EM, Invoke, hash_tree, list_times

MODEL = "test_vit"
FAST_HEAD = ("--classes", 3, "--dim", 8, "--batch-size", 8, "--no-progress")


@pytest.fixture(scope="session")
def viewed(tmp_path_factory: pytest.TempPathFactory, invoke: Invoke, scenes: Path) -> Path:
    """A run of a tiny random network with every further view, and proposals; not to be changed."""
    folder = tmp_path_factory.mktemp("viewed")
    torch.manual_seed(0)
    state = timm.create_model(MODEL, pretrained=False, num_classes=0).state_dict()
    save_file(state, folder / "weights.safetensors")
    run = folder / "run"
    invoke(
        *("extract", run, "--dataset", "folder", "--root", scenes / "photographs"),
        *("--labels", scenes / "labels", "--backbone", MODEL, "--precision", "float32"),
        *("--weights", folder / "weights.safetensors", "--size", 64, "--shard-size", 6),
        *(
            "--views",
            "clean,photometric:2,jittered",
            "--crops",
            "five",
            "--attention",
            "--no-progress",
        ),
    )
    invoke("masks", run, "--crf", "none", "--no-progress")
    return run


@pytest.fixture
def run(viewed: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(viewed, tmp_path / "run"))


@pytest.mark.parametrize("method", ["stego", "hp"])
def test_a_head_its_codes_and_what_is_made_of_them(run: Path, invoke: Invoke, method: str) -> None:
    output = invoke("head", run, "--method", method, "--steps", 6, *FAST_HEAD).output
    assert f"head: {method} with 8 channels" in output
    assert "encode: codes of 8 channels" in output
    codes = zarr.open_group(run / "codes" / f"{method}.zarr", mode="r")
    features = zarr.open_group(run / "features.zarr", mode="r")
    for view in ("clean", "mirror", "photometric_1", "photometric_2_mirror"):
        assert codes[view].shape == (*features[view].shape[:3], 8)
        assert np.isfinite(codes[view][:]).all()
        assert np.ptp(codes[view][:]) > 0
    invoke("evaluate", run, "--head", method, "--crf", "none", "--no-progress")
    metrics = json.loads((run / f"report-head-{method}" / "metrics.json").read_text())
    assert metrics["classes"] == 3
    reader = Run(run)
    np.testing.assert_array_equal(reader.codes(view="mirror"), codes["mirror"][:])
    np.testing.assert_array_equal(reader.features(view="crop_2"), features["crop_2"][:])
    np.testing.assert_array_equal(
        reader.prototypes(head=method), zarr.open_group(run / "heads.zarr")[method]["probe"][:]
    )
    assert reader.labels(reader.images[0].id, head=method).max() < 3
    invoke("em", run, "--head", method, "--name", "on", *FAST_EM, "--no-progress")
    invoke("evaluate", run, "--em", "on", "--crf", "none", "--no-progress")
    metrics = json.loads((run / "report-on" / "metrics.json").read_text())
    assert metrics["classes"] == 3
    assert metrics["running_prototypes"]["accuracy"] > 0
    rows = json.loads(invoke("status", run, "--json").stdout)
    assert {row["state"] for row in rows} == {"fresh"}
    assert [row["stage"] for row in rows] == [
        "extract",
        *(f"views/{part}" for part in ("crops", "jittered_1", "mixing")),
        *(f"views/photometric_{number}" for number in (1, 2)),
        *("masks", f"head/{method}", f"encode/{method}", "em/on"),
        *sorted([f"evaluate/head-{method}", "evaluate/on"]),
        *sorted([f"report/head-{method}", "report/on"]),
    ]


def test_a_head_is_the_same_whenever_it_is_trained(run: Path, invoke: Invoke) -> None:
    command = ("head", run, "--method", "stego", "--steps", 4, *FAST_HEAD)
    invoke(*command)
    heads, codes = hash_tree(run / "heads.zarr"), hash_tree(run / "codes")
    before = list_times(run)
    assert "nothing to do" in invoke(*command).output
    after = list_times(run)
    assert {k: t for k, t in after.items() if "zarr" in k} == {
        k: t for k, t in before.items() if "zarr" in k
    }
    invoke(*command, "--force")
    assert hash_tree(run / "heads.zarr") == heads
    assert hash_tree(run / "codes") == codes
    invoke(*command, "--seed", 1)
    assert hash_tree(run / "codes") != codes


def test_masks_stay_fresh_when_views_are_added(
    invoke: Invoke, scenes: Path, viewed: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(viewed, tmp_path / "run"))
    invoke("extract", run, "--views", "clean,photometric:3", "--no-progress")
    rows = {row["stage"]: row for row in json.loads(invoke("status", run, "--json").stdout)}
    assert rows["masks"]["state"] == "fresh"
    views = {name.partition("/")[2]: row for name, row in rows.items() if "views/" in name}
    assert {f"photometric_{number}" for number in (1, 2, 3)} <= views.keys()
    assert {row["state"] for row in views.values()} == {"fresh"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("head", "--method", "hp", "--classes", 3), "--attention"),
        (("head", "--method", "stego"), "head needs --classes"),
        (("em", "--head", "none-such"), "no such head"),
        (("em", "--classes", 3, "--student", "photometric"), "--views clean,photometric"),
        (("evaluate", "--head", "none-such"), "none-such"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(
    finished: Path, invoke: Invoke, tmp_path: Path, arguments: tuple[object, ...], says: str
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    verb, *rest = arguments
    result = invoke(verb, run, *rest, "--no-progress", code=None)
    assert result.exit_code in (1, 2)
    assert says in result.output
    assert "Traceback" not in result.output
    assert result.output.count("\n") == 1


def test_a_fit_on_codes_takes_the_classes_of_the_probe(run: Path, invoke: Invoke) -> None:
    invoke("head", run, "--method", "stego", "--steps", 2, *FAST_HEAD)
    output = invoke("em", run, "--head", "stego", "--classes", 4, "--no-progress", code=2).output
    assert "3 clusters" in output


def test_the_number_of_classes_is_estimated(run: Path, invoke: Invoke) -> None:
    invoke("em", run, "--classes", "auto", "--most-classes", 5, *FAST_EM, "--no-progress")
    fit = zarr.open_group(run / "em.zarr" / "default", mode="r")
    curve = fit.attrs["classes_curve"]
    assert fit["prototypes"].shape[0] == max(curve, key=lambda pair: pair[1])[0]
    invoke("evaluate", run, "--crf", "none", "--no-progress")
    assert "silhouette" in (run / "report" / "index.html").read_text()


def test_views_may_come_after_a_head(finished: Path, invoke: Invoke, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    train = ("head", run, "--method", "stego", "--steps", 3, *FAST_HEAD)
    fit = ("em", run, "--head", "stego", "--name", "on", *FAST_EM, "--no-progress")
    invoke(*train)
    invoke("extract", run, "--views", "clean,photometric", "--no-progress")
    # the codes are of the clean view alone, and still good
    invoke(*fit)
    output = invoke(*fit, "--student", "photometric", code=2).output
    assert "`head` again, with --name stego" in output
    invoke(*train)
    invoke(*fit, "--student", "photometric")


def read_states(run: Path, invoke: Invoke) -> dict[str, str]:
    rows = json.loads(invoke("status", run, "--json").stdout)
    return {row["stage"]: row["state"] for row in rows}


def test_a_head_stays_fresh_when_views_change_that_it_does_not_read(
    run: Path, invoke: Invoke
) -> None:
    invoke("head", run, "--method", "hp", "--steps", 2, *FAST_HEAD)
    invoke("em", run, "--classes", 3, *FAST_EM, "--no-progress")
    invoke("extract", run, "--crops", "none", "--no-progress")
    rows = {
        row["stage"]: row["state"] for row in json.loads(invoke("status", run, "--json").stdout)
    }
    assert set(rows.values()) - {"missing"} == {"fresh"}
    invoke("extract", run, "--seed", 7, "--no-progress")
    rows = {
        row["stage"]: row["state"] for row in json.loads(invoke("status", run, "--json").stdout)
    }
    assert (rows["head/hp"], rows["em/default"], rows["masks"]) == ("stale", "stale", "fresh")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--method", "kmeans", "--classes", 3, "--student", "photometric"), "no student"),
        (("--classes", 60), "channels"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(
    finished: Path, invoke: Invoke, tmp_path: Path, options: tuple[object, ...], says: str
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    channels = zarr.open_group(run / "features.zarr", mode="r")["clean"].shape[-1]
    given = [channels + 1 if option == 60 else option for option in options]
    assert says in invoke("em", run, *given, "--no-progress", code=2).output


def test_a_head_goes_on_where_it_was_stopped(
    run: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages.head import stage as module

    command = ("head", run, "--method", "stego", "--steps", 9, *FAST_HEAD)
    monkeypatch.setattr(module, "_ROUND", 3)
    invoke(*command)
    whole = hash_tree(run / "heads.zarr" / "stego")
    shutil.rmtree(run / "heads.zarr")
    shutil.rmtree(run / "state" / "head")
    begun = []

    def stop(training: module.Training, batches: object) -> None:
        begun.append(training.step)
        if len(begun) == 3:
            raise KeyboardInterrupt
        original(training, batches)  # type: ignore[arg-type]

    original = module.Training.run_round
    monkeypatch.setattr(module.Training, "run_round", stop)
    invoke(*command, code=130)
    invoke(*command)
    assert begun == [0, 3, 6, 6]
    assert hash_tree(run / "heads.zarr" / "stego") == whole


def test_a_head_needs_two_windows(finished: Path, invoke: Invoke, tmp_path: Path) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(photographs / "one.png")
    run = tmp_path / "run"
    invoke(
        *("extract", run, "--dataset", "folder", "--root", photographs, "--no-progress"),
        *("--backbone", "handcrafted", "--size", 64),
    )
    output = invoke("head", run, "--classes", 2, "--no-progress", code=1).output
    assert "1 usable windows" in output
