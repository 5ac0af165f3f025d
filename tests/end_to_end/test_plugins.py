"""Variants that another package brings through its entry points, used from the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.run.directory import RunDirectory
from pipeline.storage.arrays import read_group
from tests.conftest import REPOSITORY
from tests.end_to_end.conftest import hash_tree

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def write_package(folder: Path, group: str, name: str, code: str) -> Path:
    """Write what installing a package leaves behind: a module, and the entry point of a variant.

    ``code`` defines the class ``Variant``, which ``group`` has as ``name``. Several packages may
    lie in one folder.
    """
    module = name.replace("-", "_") + "_plugin"
    metadata = folder / f"{module}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / f"{module}.py").write_text(textwrap.dedent(code))
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}:Variant\n")
    return folder


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Call the program as an installation calls it that has the packages of ``tmp_path/site``."""

    def call(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        paths = [str(tmp_path / "site"), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        done = subprocess.run(
            [sys.executable, "-m", "cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return call


def test_a_registry_finds_what_a_package_brings(tmp_path: Path) -> None:
    site = write_package(tmp_path / "site", "primaps_pipe.things", "a-thing", "class Variant: ...")
    lines = (
        f"import sys; sys.path.insert(0, {str(site)!r})",
        "from pipeline.registry import Registry",
        "things = Registry('thing', 'primaps_pipe.things', {})",
        "print(list(things), things['a-thing'].__module__)",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    assert done.stdout.split("\n")[0] == "['a-thing'] a_thing_plugin"


METHOD = """
    from typing import ClassVar

    import numpy as np
    from pipeline.compute.scheduler import announce
    from pipeline.settings import setting
    from stages.em.methods import Fit, Method
    from stages.em.settings import EmSettings

    class MineSettings(EmSettings):
        version: ClassVar[int] = 1

        stride: int = setting(3, "positions from one prototype to the next", ge=1)

    class Variant(Method):
        settings_class = MineSettings
        needs_proposals = False

        def fit(self, task):
            settings, sums = task.settings, 0
            saved = task.checkpoint.load()
            for (batch,) in task.cache.read_epoch(0):
                sums = sums + batch.features.double().sum(dim=0)
                assert batch.proposals is None
            task.checkpoint.save({"sums": sums.numpy()}, {"epoch": 1})
            announce(advance=settings.epochs)
            rows = sums.flatten(0, 1)[:: settings.stride][: settings.classes].float()
            return Fit(
                rows,
                [[1 / settings.classes] * settings.classes],
                f"{len(task.cache.windows)} windows, every {settings.stride} positions",
                bias=rows.new_zeros(len(rows)),
                logits="cosine",
                arrays={
                    "halves": (rows.numpy() / 2, ("class", "channel")),
                    "score_made_up": (np.ones(1, np.float32), ("epoch",)),
                },
                others={"half_as_long": "halves"},
                attributes={"score_units": {"made_up": "%"}},
            )
"""


def test_a_method_of_another_package_fits_and_is_evaluated(
    tmp_path: Path, finished: Path, command: Command
) -> None:
    write_package(tmp_path / "site", "primaps_pipe.methods", "mine", METHOD)
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    page = command("em", "--help").stdout
    assert "[primaps|kmeans|robust|mine]" in page
    assert "Of the method mine:\n  --stride INTEGER" in page
    assert "positions from one prototype to the next" in page

    fit = ("em", run, "--classes", 3, "--name", "mine", "--no-progress")
    message = command(*fit, "--method", "min", code=2).stderr
    assert "(did you mean 'mine'?) is none of primaps, kmeans, robust, mine" in message
    assert "must be at least 1" in command(*fit, "--method", "mine", "--stride", 0, code=2).stderr
    command(*fit, "--method", "mine", "--stride", 2)
    assert "fresh" in command(*fit).stderr + command(*fit).stdout
    arrays, attributes = read_group(run / "em.zarr", "mine")
    assert {"momentum_prototypes", "bias", "halves", "score_made_up"} <= arrays.keys()
    assert (attributes["method"], attributes["logits"]) == ("mine", "cosine")
    assert RunDirectory(run).read_given("em/mine")["stride"] == 2

    command("evaluate", run, "--em", "mine", "--crf", "none", "--no-progress")
    metrics = json.loads((run / "report-mine/metrics.json").read_text())
    # a prototype half as long has the same cosines
    assert metrics["half_as_long"]["miou"] == metrics["miou"]
    assert list((run / "labels-mine").rglob("*.png"))
    # the commands that make the run again, in the report
    page = (run / "report-mine/index.html").read_text()
    assert "--method mine --stride 2" in page
    assert "mine" in command("status", run).stdout
    assert "all as written" in command("verify", run, "--repair", "--no-progress").stdout

    # without the package its fit is still a classifier, but cannot be made again
    shutil.rmtree(tmp_path / "site")
    command("evaluate", run, "--em", "mine", "--crf", "none", "--force", "--no-progress")
    assert "--method must be one of" in command(*fit, code=2).stderr


LEAKY = """
    from stages.em.methods import Kmeans
    from pipeline.run.manifest import read_manifest


    class Variant(Kmeans):
        def fit(self, task):
            fit = super().fit(task)
            manifest = read_manifest(task.source.run)
            labels = [
                manifest.open_dataset().read_label(manifest.label_path(image)).mean()
                for image in manifest.images
                if image.label is not None
            ]
            fit.prototypes[0] += sum(labels) * 1e-3
            return fit
"""


def test_a_method_of_another_package_that_looks_at_labels_is_found_out(
    tmp_path: Path, finished: Path, command: Command
) -> None:
    write_package(tmp_path / "site", "primaps_pipe.methods", "leaky", LEAKY)
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    fit = ("--method", "leaky", "--name", "leaky", "--epochs", 2, "--no-progress")
    command("em", run, "--classes", 3, *fit)
    command("evaluate", run, "--em", "leaky", "--crf", "none", "--no-progress")
    before = hash_tree(run)
    done = command("verify", run, "--label-free", "--images", 4, "--json", code=1)
    proof = json.loads(done.stdout)
    assert {"em.zarr/leaky", "labels-leaky"} <= proof["leaks"].keys()
    assert set(proof["leaks"]["em.zarr/leaky"]) == {"as they are", "permuted", "shifted"}
    # what is ours is as innocent beside it
    clean = {"features.zarr", "masks.zarr", "em.zarr/default", "labels"}
    assert clean <= proof["artefacts"].keys() - proof["leaks"].keys()
    assert hash_tree(run) == before


TINY_MEAN = """
    from torch.nn.functional import avg_pool2d

    from stages.extract.backbones import Backbone


    class Variant(Backbone):
        patch = 16
        channels = 3

        def compute_features(self, images):
            return avg_pool2d(images, 16).permute(0, 2, 3, 1)
"""


def test_a_backbone_of_another_package_is_one_of_ours(
    command: Command, scenes: Path, tmp_path: Path
) -> None:
    site = write_package(tmp_path / "site", "primaps_pipe.backbones", "tiny-mean", TINY_MEAN)
    options = ("--dataset", "folder", "--root", scenes / "photographs", "--size", 64)
    extract = ("extract", "run", *options, "--no-progress", "--backbone")
    command(*extract, "tiny-mean")
    features = np.asarray(zarr.open_group(tmp_path / "run/features.zarr", mode="r")["clean"])
    assert features.shape[1:] == (4, 4, 3)
    assert 0 < features.min() < features.max() <= 1
    # what it says of itself is asked, as of any other
    refused = command("extract", "run", "--attention", "--no-progress", code=2).stderr
    assert "The backbone tiny-mean has no last block" in refused
    assert "did you mean tiny-mean" in command(*extract, "tiny-meen", code=2).stderr
    command("masks", "run", "--crf", "none", "--no-progress")
    # another version of it gives other features
    module = site / "tiny_mean_plugin.py"
    module.write_text(module.read_text().replace("patch = 16", "patch = 16\n    version = 2"))
    again = command("extract", "run", "--no-progress").stderr
    assert "backbone_version None -> 2" in again
