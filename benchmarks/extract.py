"""The extract stage against the bare forward pass of its backbone, all threads."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.comparison import Comparison, Section, race
from benchmarks.machine import Machine
from benchmarks.samples import PHOTOGRAPHS
from pipeline.compute.devices import resolve_precision
from pipeline.compute.scheduler import Execution
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.run.frames import read_windows
from pipeline.run.manifest import read_manifest
from pipeline.run.runner import run_stage
from pipeline.storage.arrays import open_arrays
from stages.extract.backbones import Backbone, build_backbone
from stages.extract.settings import ExtractSettings
from stages.extract.stage import Extract
from stages.extract.weights import find_weights

BACKBONE = "vit_small_patch14_dinov2.lvd142m"
SIZE = 322
BATCH = 8
COPIES = 8
CPU = torch.device("cpu")


def compare_extract(repeats: int, machine: Machine) -> Iterator[Comparison]:
    """Compare a shard's extraction with the forward passes alone, of both views.

    The bare passes take as many windows at a time as there are threads, as the stage does inside
    its batches on a processor, or a whole batch.

    The stage has read nothing beforehand: it opens, decodes, resizes and cuts every file,
    multiplies, checks, writes to disk and waits until the disk has it. The bare passes get tensors
    that are ready.

    Parameters
    ----------
    repeats : int
        Runs of each side per input, in turn; the best counts.
    machine : Machine
        Not asked: the rate of a bfloat16 product is measured here.

    Yields
    ------
    Comparison
        The ratio is the stage's images per second over the bare backbone's. Agreement is the mean
        cosine of the stored features with those of the bare backbone in float32. The limit is the
        operations of the forward passes at the rate of a large matrix product in that precision.
    """
    with TemporaryDirectory() as folder:
        weights = draw_weights(Path(folder) / "weights.safetensors")
        exact = _build(weights, "float32")
        precision = resolve_precision("auto", CPU)
        backbone = _build(weights, precision)
        limit = 2 * COPIES * count_operations(exact, SIZE) / measure_rate(precision)
        for name, path in PHOTOGRAPHS.items():
            root = Path(folder) / name
            run, settings = prepare_run(root, path, weights)
            pixels = read_pixels(run)
            for together in dict.fromkeys((torch.get_num_threads(), BATCH)):
                ours, theirs, _, _ = race(
                    partial(Extract().compute, run, settings, 0),
                    partial(forward_bare, backbone, pixels, together),
                    repeats,
                )
                stored = np.asarray(open_arrays(run.features, ["clean"])["clean"][0])
                yield Comparison(
                    group=f"{precision}, {together} at a time",
                    sample=name,
                    ours=ours,
                    theirs=theirs,
                    agreement=_mean_cosine(torch.from_numpy(stored), exact(pixels[:1])[0]),
                    limit=limit,
                )
            shutil.rmtree(root)


def draw_weights(path: Path) -> Path:
    """Save a backbone of random weights, which cost as much time as trained ones."""
    torch.manual_seed(0)
    model = timm.create_model(BACKBONE, pretrained=False, num_classes=0, dynamic_img_size=True)
    # as they start, the layer scales would leave every token nearly as it was embedded
    state = {
        name: torch.ones_like(value) if name.endswith(".gamma") else value
        for name, value in model.state_dict().items()
    }
    save_file(state, path)
    return path


def link_copies(folder: Path, photograph: Path, copies: int) -> Path:
    """Make a folder in which a photograph lies many times; return it."""
    folder.mkdir(parents=True)
    for copy in range(copies):
        (folder / f"{copy}{photograph.suffix}").symlink_to(photograph)
    return folder


def prepare_run(
    root: Path, photograph: Path, weights: Path
) -> tuple[RunDirectory, ExtractSettings]:
    """Extract from a folder of copies of one photograph; return the run, ready to do it again."""
    images = link_copies(root / "images", photograph, COPIES)
    settings = ExtractSettings.model_validate(
        {
            "dataset": "folder",
            "root": images,
            "frame": "centre",
            "backbone": BACKBONE,
            "weights": weights,
            "size": SIZE,
            "device": "cpu",
            "shard_size": COPIES,
            "batch_size": BATCH,
        }
    )
    run = RunDirectory(root / "run")
    run_stage(Extract(), run, settings, Execution(), Silence(progress=False))
    return run, Extract().resolve(run, settings)


class Silence(Screen):
    """A screen that shows nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""

    def warn(self, text: str) -> None:
        """Show nothing."""


def read_pixels(run: RunDirectory) -> Tensor:
    """Read the windows as the stage does: float32 [window, rgb, y, x] in 0..1."""
    manifest = read_manifest(run)
    frames = read_windows(manifest, manifest.windows, ahead=BATCH)
    windows = [window for _, pixels in frames for window in pixels]
    return torch.from_numpy(np.stack(windows)).permute(0, 3, 1, 2).float().div(255)


def forward_bare(backbone: Backbone, pixels: Tensor, together: int) -> None:
    """Run the backbone on both views of some windows at a time, and drop what comes out."""
    for batch in pixels.split(together):
        backbone(batch)
        backbone(batch.flip(-1))


def count_operations(backbone: Backbone, side: int) -> float:
    """Count the multiply-adds, two operations each, of one window through a ViT-S of 12 blocks.

    Per token and block: 12 D^2 in the four linear layers, and 2 N D in the two products of the
    attention over N tokens; the patch embedding before.
    """
    blocks, channels = 12, backbone.channels
    patches = (side // backbone.patch) ** 2
    tokens = patches + 1
    inside = tokens * blocks * (12 * channels**2 + 2 * tokens * channels)
    return 2.0 * (inside + patches * 3 * backbone.patch**2 * channels)


def measure_rate(precision: str) -> float:
    """Measure the operations per second of a large matrix product, all threads."""
    first = torch.rand(4096, 384).to(getattr(torch, precision))
    second = torch.rand(384, 1536).to(first.dtype)
    best = float("inf")
    for _ in range(50):
        start = perf_counter()
        torch.mm(first, second)
        best = min(best, perf_counter() - start)
    return 2 * 4096 * 384 * 1536 / best


def _build(weights: Path, precision: str) -> Backbone:
    found = find_weights(BACKBONE, weights, report=lambda _: None)
    return build_backbone(BACKBONE, found, size=SIZE, device=CPU, precision=precision)


def _mean_cosine(stored: Tensor, exact: Tensor) -> float:
    return float(torch.cosine_similarity(stored.float(), exact, dim=-1).mean())


SECTIONS = (
    Section(
        "extraction of 8 photographs, both views, decoded, resized and written",
        "bare\nforward",
        "cosine to\nfloat32",
        compare_extract,
    ),
)
