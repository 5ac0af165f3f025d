"""What the linear probe is trained on: labelled windows of the train split, streamed."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack
from torch import Tensor

from pipeline.batches import BatchStream
from pipeline.datasets import IGNORE
from pipeline.errors import ImageError, RunError, UsageError
from pipeline.files import write_bytes
from pipeline.frames import count_threads, map_ahead
from pipeline.manifest import Manifest
from pipeline.store import open_arrays
from stages.evaluate.artefacts import Artefacts
from stages.evaluate.classifier import Classifier
from stages.evaluate.linear_probe import (
    LinearProbe,
    choose_linear_probe,
    count_labels,
    fit_linear_probe,
    spread_classes,
)
from stages.evaluate.stitching import average_views

SPLIT = "train"
# Points to which the logits of a position are up-sampled, along each side. Trained on 74 images of
# CamVid, 1 gives an mIoU of 55 on 18 others, 2 and 4 give 59, as every pixel does.
POINTS = 2
_BATCH = 8
_HELD = 5  # one of so many images is held out to choose the weight decay


@dataclass(frozen=True)
class LabelledWindows:
    """Features and labels of some windows.

    Attributes
    ----------
    arrays
        ``clean`` and ``mirror``.
    windows
        Rows in the arrays, int64 [window], ascending.
    images
        Image of every window, int64 [window].
    counts
        float32 [window * y * x, class]: labelled pixels around the points.
    labels
        The label of every class, int64 [class].
    unreadable
        Label maps that could not be read, and why.
    device
        Where to compute.
    """

    arrays: Mapping[str, zarr.Array]
    windows: NDArray[np.int64]
    images: NDArray[np.int64]
    counts: csr_array
    labels: NDArray[np.int64]
    unreadable: Mapping[str, str]
    device: torch.device

    @property
    def points(self) -> tuple[int, int]:
        """Points of a window along its sides."""
        rows, columns = self.arrays["clean"].shape[1:3]
        return rows * POINTS, columns * POINTS

    def choose(self, chosen: NDArray[np.bool_]) -> LabelledWindows:
        """Return some of the windows, bool [window]."""
        rows, columns = self.points
        return LabelledWindows(
            arrays=self.arrays,
            windows=self.windows[chosen],
            images=self.images[chosen],
            counts=self.counts[np.repeat(chosen, rows * columns)],
            labels=self.labels,
            unreadable=self.unreadable,
            device=self.device,
        )

    def read_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Read features [window, row, column, channel] and counts [window, class, y, x]."""
        rows, columns = self.points
        low = 0
        for batch in BatchStream(self.arrays, self.windows, _BATCH).read_epoch():
            clean, mirror = (
                torch.from_numpy(batch.arrays[view]).to(self.device) for view in ("clean", "mirror")
            )
            high = low + len(batch.windows) * rows * columns
            dense = torch.from_numpy(self.counts[low:high].toarray()).to(self.device)
            low = high
            counts = dense.unflatten(0, (-1, rows, columns)).permute(0, 3, 1, 2).contiguous()
            # the sum is in single precision as soon as one of them is
            yield average_views(clean.float(), mirror), counts

    def hold_out(self) -> tuple[LabelledWindows, LabelledWindows] | None:
        """Split by images; None where one part would have no labelled pixel."""
        images = np.random.default_rng(0).permutation(np.unique(self.images))
        held = np.isin(self.images, images[: len(images) // _HELD])
        parts = self.choose(~held), self.choose(held)
        return parts if all(part.counts.nnz for part in parts) else None


def list_training_windows(manifest: Manifest, limit: int) -> list[int]:
    """List the rows of the windows that the probe is trained on.

    Raises
    ------
    UsageError
        The run has no labelled train split.
    """
    windows = [
        window.index
        for window in manifest.usable_windows(splits=(SPLIT,))
        if manifest.images[window.image].label is not None
    ]
    if not windows:
        raise UsageError(
            f"--linear-probe: it is trained on the labels of the split {SPLIT}, and the run has "
            f"no labelled image in it (its splits: {', '.join(manifest.splits)}); leave it out."
        )
    if len(windows) > limit:
        drawn = np.random.default_rng(0).choice(len(windows), limit, replace=False)
        windows = [windows[i] for i in np.sort(drawn)]
    return windows


def train_linear_probe(
    artefacts: Artefacts, windows: list[int], device: torch.device
) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """Train a linear probe.

    Parameters
    ----------
    artefacts
        Where features and labels are.
    windows
        Rows of the windows.
    device
        Where to compute.

    Returns
    -------
    arrays
        ``weight`` [label, channel] and ``bias`` [label], a row for every label up to the largest.
    facts
        How it went.

    Raises
    ------
    RunError
        No pixel of these windows is labelled.
    """
    data = read_labelled(artefacts, windows, device)
    if not data.counts.nnz:
        reasons = [f"{path}: {reason}" for path, reason in data.unreadable.items()][:1]
        raise RunError(
            f"--linear-probe: the label maps of the split {SPLIT} hold no labelled pixel in the "
            f"windows ({reasons[0] if reasons else 'all are ignored'}); leave it out."
        )
    parts, classes = data.hold_out(), len(data.labels)
    if parts is None:
        probe = fit_linear_probe(data.read_batches, classes)
    else:
        train, held = (part.read_batches for part in parts)
        probe = choose_linear_probe(data.read_batches, train, held, classes)
    weight, bias = spread_classes(probe, data.labels)
    arrays = {"weight": weight.cpu().numpy(), "bias": bias.cpu().numpy()}
    return arrays, _describe(probe, data)


def _describe(probe: LinearProbe, data: LabelledWindows) -> dict[str, Any]:
    return {
        "windows": len(data.windows),
        "labels": data.labels.tolist(),
        "decay": probe.decay,
        "loss": probe.loss,
        "steps": probe.steps,
        "unreadable": dict(data.unreadable),
    }


def read_labelled(
    artefacts: Artefacts, windows: list[int], device: torch.device
) -> LabelledWindows:
    """Read the labels of some windows; those of an unreadable label map have none."""
    manifest = artefacts.manifest
    arrays = open_arrays(artefacts.features, ["clean", "mirror"])
    rows, columns = arrays["clean"].shape[1:3]
    points = (rows * POINTS, columns * POINTS)
    chosen: dict[int, list[int]] = {}
    for index in windows:
        chosen.setdefault(manifest.windows[index].image, []).append(index)
    unreadable: dict[str, str] = {}

    def count(row: int) -> csr_array:
        image = manifest.images[row]
        try:
            truth = artefacts.read_truth(image)
            assert truth is not None
        except ImageError as error:
            unreadable[image.path] = str(error)
            nothing = np.full((len(chosen[row]), *points), IGNORE, np.uint8)
            return count_labels(nothing, points)
        cover = artefacts.cover(image)
        boxes = [cover.boxes[index - cover.rows.start] for index in chosen[row]]
        parts = [truth[top:bottom, left:right] for left, top, right, bottom in boxes]
        return count_labels(np.stack(parts), points)

    threads = count_threads()
    counts = vstack(list(map_ahead(count, chosen, threads, threads)), format="csr")
    labels = np.flatnonzero(counts.sum(axis=0) > 0)
    return LabelledWindows(
        arrays=arrays,
        windows=np.array(windows),
        images=np.array([manifest.windows[index].image for index in windows]),
        counts=counts[:, labels],
        labels=labels,
        unreadable=unreadable,
        device=device,
    )


def write_probe(
    path: Path, fingerprint: str, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]
) -> None:
    """Write a probe and what it was made from, atomically."""
    buffer = io.BytesIO()
    record = np.array(json.dumps({**facts, "fingerprint": fingerprint}))
    content: dict[str, Any] = {**arrays, "record": record}
    np.savez(buffer, **content)
    write_bytes(path, buffer.getvalue())


def read_probe(path: Path, fingerprint: str) -> tuple[Classifier, dict[str, Any]] | None:
    """Read what :func:`write_probe` wrote; None where there is nothing of that fingerprint."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as content:
            arrays = {name: content[name] for name in content.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, BadZipFile) as error:
        raise RunError(f"{path} cannot be read ({error}); delete it to make it again.") from error
    facts = json.loads(str(arrays["record"]))
    if facts["fingerprint"] != fingerprint:
        return None
    weight, bias = (torch.from_numpy(arrays[name]) for name in ("weight", "bias"))
    return Classifier(weight, bias=bias), facts
