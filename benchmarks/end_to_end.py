"""All four stages against the published procedure, step by step, on the same photographs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from benchmarks.comparison import Comparison, Section, race
from benchmarks.crf import bound_seconds
from benchmarks.em import find_limit, fit_literally, start_fit
from benchmarks.extract import Silence, count_operations, draw_weights, link_copies, measure_rate
from benchmarks.machine import Machine
from benchmarks.masks import propose_literally
from benchmarks.samples import PHOTOGRAPHS
from pipeline.compute.scheduler import Execution
from pipeline.run.directory import RunDirectory
from pipeline.run.frames import read_windows
from pipeline.run.manifest import read_manifest
from pipeline.storage.arrays import read_group
from stages import SETTINGS as STAGES
from stages import run_stage
from stages.crf.backends import choose_backend
from stages.crf.settings import CrfSettings
from stages.em.settings import EmSettings
from stages.extract.backbones import Backbone, build_backbone
from stages.extract.weights import find_weights
from stages.masks.proposals import Proposals, score_proposals
from stages.masks.settings import MaskSettings
from stages.masks.stage import enlarge_scores, take_largest

BACKBONE = "vit_small_patch14_dinov2.lvd142m"
SIZE = 322
COPIES = 4
CLASSES = 27
# The published recipe has 50; with more of them the ratio grows, for they are where it is largest.
EPOCHS = 5


def run_stages(folder: Path, images: Path, weights: Path, numbers: Iterator[int]) -> float:
    """Run all four stages in a fresh run directory; return the loss of the first epoch."""
    run = RunDirectory(folder / f"run {next(numbers)}")
    settings: dict[str, dict[str, Any]] = {
        "extract": {
            "dataset": "folder",
            "root": images,
            "frame": "centre",
            "backbone": BACKBONE,
            "weights": weights,
            "size": SIZE,
            "device": "cpu",
        },
        "masks": {"device": "cpu"},
        "em": _fit_settings().model_dump() | {"device": "cpu"},
        "evaluate": {"device": "cpu", "gallery": 0},
    }
    for name, given in settings.items():
        stage_settings = STAGES[name].model_validate(given)
        run_stage(name, run, stage_settings, Execution(), Silence(progress=False))
    return float(read_group(run.em, "default")[0]["loss"][0])


def run_published(backbone: Backbone, pixels: Tensor) -> float:
    """Run the published procedure; return the loss of the first epoch.

    Features of all images, in float32; proposals by `pca_lowrank`, refined by pydensecrf; epochs
    that run the backbone on a clean and on an augmented view, up-sample features, vote proposal by
    proposal and back-propagate; labels from features averaged with the mirror image's, refined by
    pydensecrf. Nothing is written to disk.
    """
    photographs = pixels.permute(0, 2, 3, 1).mul(255).byte().numpy()
    features = backbone(pixels).half()
    ids = torch.stack(
        [_refine_proposals(*pair) for pair in zip(features.float(), photographs, strict=True)]
    )
    batches = [(features, ids)]
    state = start_fit(batches)
    losses = []
    for _ in range(EPOCHS):
        backbone(pixels)
        backbone(pixels.mean(dim=1, keepdim=True).expand_as(pixels))
        losses.append(fit_literally(state, batches))
    both = (backbone(pixels) + backbone(pixels.flip(-1)).flip(2)) / 2
    large = F.interpolate(both.permute(0, 3, 1, 2), (SIZE, SIZE), mode="bilinear")
    logits = torch.einsum("ndyx,kd->nkyx", large, state.momentum.weight())
    for scores, photograph in zip(logits.log_softmax(dim=1), photographs, strict=True):
        _refine(scores, photograph).argmax(axis=0)
    return losses[0]


def _refine_proposals(features: Tensor, photograph: np.ndarray) -> Tensor:
    soft, _ = propose_literally(features)
    proposals = Proposals(soft.reshape(1, -1, *features.shape[:2]), torch.tensor([len(soft)]))
    scores = score_proposals(proposals, gain=MaskSettings().gain)[0]
    posterior = _refine(enlarge_scores(scores, SIZE), photograph)
    return take_largest(torch.from_numpy(posterior))


def _refine(log_probabilities: Tensor, photograph: np.ndarray) -> np.ndarray:
    backend = choose_backend("pydensecrf")
    assert backend is not None
    return backend.refine((-log_probabilities).contiguous().numpy(), photograph, CrfSettings())


def _fit_settings() -> EmSettings:
    return EmSettings(classes=CLASSES, epochs=EPOCHS, init_epochs=0, init_steps=0)


def compare_runs(repeats: int, machine: Machine) -> Iterator[Comparison]:
    """Compare whole runs over copies of each photograph, all threads on both sides.

    Parameters
    ----------
    repeats : int
        Runs of each side per input, in turn; the best counts.
    machine : Machine
        The measured limits.

    Yields
    ------
    Comparison
        Agreement is the relative difference of the first epoch's losses: ours is that of bfloat16
        features where the processor has them. The limit is the sum of the stages': the
        operations of both views' forward passes, two refinements of an image, and the epochs.
    """
    cpu = torch.device("cpu")
    with TemporaryDirectory() as name:
        folder = Path(name)
        weights = draw_weights(folder / "weights.safetensors")
        found = find_weights(BACKBONE, weights, report=lambda _: None)
        exact = build_backbone(BACKBONE, found, size=SIZE, device=cpu, precision="float32")
        forward = 2 * COPIES * count_operations(exact, SIZE) / measure_rate("bfloat16")
        numbers = count()
        for sample, path in PHOTOGRAPHS.items():
            images = link_copies(folder / sample, path, COPIES)
            run_stages(folder, images, weights, numbers)  # compiles
            run = RunDirectory(folder / f"run {next(numbers) - 1}")
            manifest = read_manifest(run)
            frames = read_windows(manifest, manifest.windows, ahead=COPIES)
            photographs = np.concatenate([np.asarray(part) for _, part in frames])
            pixels = torch.from_numpy(photographs).permute(0, 3, 1, 2).float().div(255)
            ours, theirs, loss, reference = race(
                partial(run_stages, folder, images, weights, numbers),
                partial(run_published, exact, pixels),
                repeats,
            )
            crf = bound_seconds(photographs[0], CLASSES, CrfSettings(), machine)
            grid = torch.zeros(COPIES, SIZE // 14, SIZE // 14, exact.channels)
            batches = [(grid, torch.zeros(COPIES, SIZE, SIZE))]
            yield Comparison(
                group=f"{COPIES} images, {EPOCHS} epochs",
                sample=sample,
                ours=ours,
                theirs=theirs,
                agreement=abs(loss / reference - 1),
                limit=forward + 2 * COPIES * crf + EPOCHS * find_limit(batches, machine),
            )


SECTIONS = (
    Section(
        f"all four stages on {COPIES} images of {SIZE} x {SIZE}, K = {CLASSES}, {EPOCHS} epochs",
        "published\nprocedure",
        "loss, largest\nrelative difference",
        compare_runs,
        max,
    ),
)
