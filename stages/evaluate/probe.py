"""The linear probe and linear discriminants: classifiers of the features that learn from labels.

The probe is the optimum of a penalised logistic regression: no linear classifier has less of its
loss on the images that it learns from. Of other images it bounds nothing: of a hundred images
discriminants, which assume Gaussian classes, may have learned more. As in STEGO the probe's
logits are up-sampled bilinearly before they meet the labels; but to a few points in each cell of
the grid, which changes the scores little and makes the convex problem small enough for L-BFGS (Liu
and Nocedal, 1989). The windows are streamed, for every step anew: they are never all in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy  # which loads its rooms when they are asked for
import torch
import torch.nn.functional as F  # noqa: N812
import zarr
from numpy.typing import NDArray
from torch import Tensor

from pipeline.datasets.definition import IGNORE
from pipeline.datasets.labels import LabelCounts
from pipeline.errors import ImageError, RunError, UsageError
from pipeline.run.directory import CLEAN, RunDirectory
from pipeline.run.frames import BatchStream, count_threads, map_ahead, read_gaps
from pipeline.run.ledger import read_record
from pipeline.run.manifest import Manifest
from pipeline.run.status import fingerprint_ids
from pipeline.storage.files import fingerprint, note_file
from stages.artefacts import (
    Artefacts,
    find_features,
    fingerprint_image,
    open_artefacts,
    open_evaluated,
    read_classifier,
    read_group_of,
)
from stages.discriminants import Moments, find_discriminant
from stages.evaluate.settings import EvaluateSettings
from stages.labelling import (
    DISCRIMINANTS,
    NEVER,
    PROBE,
    SUPERVISED,
    Classifier,
    average_views,
)

# From strong to weak. Which is best depends on how many images and classes there are: 0.1 on 80
# images of COCO-Stuff, 0.001 on 74 of CamVid; 0.01 loses one to four points of mIoU on both.
DECAYS = (1.0, 0.1, 0.01, 0.001, 0.0001)
DEFAULT_DECAY = 0.01
STEPS = 2000
# Of the loss, relative, from one step to the next: with less of it no score moves by a tenth of a
# point. To compare decays on the way there, a hundred times as much is good enough; with more, a
# fit that starts at that of the last decay may end where it starts.
_TOLERANCE = 1e-8
_ROUGH = 1e-6
# Share of the identity in the discriminants' covariance; a third or a thirtieth of it moves no
# score of held-out images of COCO-Stuff or CamVid by half a point.
SHRINKAGE = 0.1
_HISTORY = 20
Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier with bias."""

    weight: Tensor
    bias: Tensor
    decay: float
    loss: float
    steps: int


def count_labels(labels: NDArray[np.uint8], grid: tuple[int, int]) -> scipy.sparse.csr_array:
    """Count the pixels of every label in the cells of a grid."""
    windows, height, width = labels.shape
    rows, columns = grid
    row = np.arange(height) * rows // height
    column = np.arange(width) * columns // width
    cell = (np.arange(windows)[:, None, None] * rows + row[:, None]) * columns + column
    valid = labels != IGNORE
    found, counts = np.unique(cell[valid] * IGNORE + labels[valid], return_counts=True)
    shape = (windows * rows * columns, IGNORE)
    return scipy.sparse.csr_array(
        (counts.astype(np.float32), np.divmod(found, IGNORE)), shape=shape
    )


def choose_linear_probe(
    read_all: Batches, read_train: Batches, read_held: Batches, classes: int
) -> LinearProbe:
    """Fit a linear probe with the weight decay that predicts held-out images best."""
    best, most, worse = None, -1.0, 0
    probe = None
    for decay in DECAYS:
        probe = fit_linear_probe(read_train, classes, decay=decay, start=probe, tolerance=_ROUGH)
        accuracy = measure_accuracy(read_held(), probe)
        if accuracy > most:
            best, most, worse = probe, accuracy, 0
        else:
            worse += 1
        if worse == 2:
            break
    assert best is not None
    return fit_linear_probe(read_all, classes, decay=best.decay, start=best)


def fit_linear_probe(
    read_batches: Batches,
    classes: int,
    *,
    decay: float = DEFAULT_DECAY,
    start: LinearProbe | None = None,
    steps: int = STEPS,
    tolerance: float = _TOLERANCE,
) -> LinearProbe:
    """Fit a multinomial logistic regression with up-sampled logits, by scipy's L-BFGS."""
    mean, spread, pixels = measure_channels(read_batches())

    def evaluate(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        table = torch.from_numpy(parameters.reshape(classes, -1))
        loss, gradient = 0.0, np.zeros(tuple(table.shape))
        for features, counts in read_batches():
            now = table.to(features)
            standard = (features - mean.to(features)) / spread.to(features)
            part, slope, shift = differentiate(now[:, :-1], now[:, -1], standard, counts)
            loss += part
            gradient[:, :-1] += slope.double().cpu().numpy()
            gradient[:, -1] += shift.double().cpu().numpy()
        weight = parameters.reshape(gradient.shape)[:, :-1]
        gradient /= pixels
        gradient[:, :-1] += decay * weight
        return loss / pixels + decay / 2 * float((weight**2).sum()), gradient.ravel()

    first = np.zeros(classes * (len(mean) + 1))
    if start is not None:
        weight = start.weight.double()
        bias = start.bias.double() + weight @ mean
        first = torch.cat([weight * spread, bias[:, None]], dim=1).cpu().numpy().ravel()
    found = scipy.optimize.minimize(
        evaluate,
        first,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": steps, "maxcor": _HISTORY, "ftol": tolerance, "gtol": tolerance / 10},
    )
    table = torch.from_numpy(found.x.reshape(classes, -1)).to(mean)
    weight = table[:, :-1] / spread
    bias = table[:, -1] - weight @ mean
    loss = float(found.fun) - decay / 2 * float(table[:, :-1].square().sum())
    return LinearProbe(weight.float(), bias.float(), decay, loss, int(found.nit))


def measure_channels(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, float]:
    """Measure the channels over the labelled pixels, each with the features of its cell.

    Gives their mean and spread, which is never 0, float64 [channel], and the number of pixels.
    """
    first = second = torch.zeros(())
    pixels = 0.0
    for features, counts in batches:
        rows, columns = features.shape[1:3]
        cells = counts.sum(dim=1).unflatten(2, (columns, -1)).unflatten(1, (rows, -1))
        weight = cells.sum(dim=(2, 4)).double().flatten()
        values = features.double().flatten(0, 2)
        pixels += float(weight.sum())
        one, two = weight @ values, weight @ values.square()
        first, second = first.to(one) + one, second.to(two) + two
    if not pixels:
        raise ValueError("no pixel is labelled")
    mean, power = first / pixels, second / pixels
    variance = power - mean.square()
    # rounding leaves a constant channel some variance, or a negative one
    constant = variance <= 1e-12 * power
    return mean, torch.where(constant, 1.0, variance.clamp_min(0).sqrt()), pixels


def differentiate(
    weight: Tensor, bias: Tensor, features: Tensor, counts: Tensor
) -> tuple[float, Tensor, Tensor]:
    """Compute the summed cross entropy of some windows, and its gradient."""
    down, across = _make_spreads(features, counts)
    log_probability = _enlarge(weight, bias, features, down, across).log_softmax(dim=1)
    loss = -float((counts * log_probability).sum(dtype=torch.float64))
    residual = counts.sum(dim=1, keepdim=True) * log_probability.exp() - counts
    grid = (down.T @ residual @ across).permute(1, 0, 2, 3).flatten(1)
    return loss, grid @ features.flatten(0, 2), grid.sum(dim=1)


def measure_accuracy(batches: Iterable[tuple[Tensor, Tensor]], probe: LinearProbe) -> float:
    """Return the share of the labelled pixels whose class is the most likely one."""
    right = pixels = 0.0
    for features, counts in batches:
        down, across = _make_spreads(features, counts)
        weight, bias = probe.weight.to(features), probe.bias.to(features)
        winner = _enlarge(weight, bias, features, down, across).argmax(dim=1, keepdim=True)
        right += float(counts.gather(1, winner).sum(dtype=torch.float64))
        pixels += float(counts.sum(dtype=torch.float64))
    return right / pixels


def _enlarge(
    weight: Tensor, bias: Tensor, features: Tensor, down: Tensor, across: Tensor
) -> Tensor:
    """Compute logits and up-sample them, [window, class, y, x]."""
    grid = torch.addmm(bias, features.flatten(0, 2), weight.T)
    grid = grid.unflatten(0, features.shape[:3]).permute(0, 3, 1, 2)
    return down @ grid @ across.T


def _make_spreads(features: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Make the matrices of bilinear up-sampling, [y, row] and [x, column].

    As matrices, their transposes take gradients back, in one order of summation on any device.
    """

    def spread(length: int, wanted: int) -> Tensor:
        unit = torch.eye(length, dtype=features.dtype, device=features.device)
        return F.interpolate(unit[None], wanted, mode="linear", align_corners=False)[0].T

    rows, columns = features.shape[1:3]
    return spread(rows, counts.shape[2]), spread(columns, counts.shape[3])


def spread_classes(
    own_weight: Tensor, own_bias: Tensor, labels: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """Give every label below the largest a row; those never seen get one that never wins."""
    rows = torch.from_numpy(labels).to(own_weight.device)
    count = int(labels.max()) + 1
    weight = own_weight.new_zeros(count, own_weight.shape[1])
    bias = own_bias.new_full((count,), NEVER)
    weight[rows], bias[rows] = own_weight, own_bias
    return weight, bias


SPLIT = "train"
# Points to which the logits of a position are up-sampled, along each side. Trained on 74 images of
# CamVid, 1 gives an mIoU of 55 on 18 others, 2 and 4 give 59, as every pixel does.
POINTS = 2
_BATCH = 8
_HELD = 5  # one of so many images is held out to choose the weight decay


@dataclass(frozen=True)
class LabelledWindows:
    """Features and labels of some windows."""

    arrays: Mapping[str, zarr.Array]
    windows: NDArray[np.int64]
    images: NDArray[np.int64]
    counts: scipy.sparse.csr_array
    labels: NDArray[np.int64]
    unreadable: Mapping[str, str]
    device: torch.device
    pixels: LabelCounts = field(default_factory=LabelCounts)

    @property
    def points(self) -> tuple[int, int]:
        """Points of a window along its sides."""
        rows, columns = self.arrays["clean"].shape[1:3]
        return rows * POINTS, columns * POINTS

    def choose(self, chosen: NDArray[np.bool_]) -> LabelledWindows:
        """Return some of the windows, bool [window]."""
        rows, columns = self.points
        counts = self.counts[np.repeat(chosen, rows * columns)]
        windows, images = self.windows[chosen], self.images[chosen]
        return replace(self, windows=windows, images=images, counts=counts)

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
    """List the rows of the windows that the probe is trained on."""
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


def fit_discriminants(
    batches: Iterable[tuple[Tensor, Tensor]], classes: int
) -> tuple[Tensor, Tensor]:
    """Fit linear discriminants to positions, each of the class of most of its labelled pixels.

    Gives weight [class, channel] and bias [class], float64.
    """
    moments = None
    for features, counts in batches:
        rows, columns = features.shape[1:3]
        cells = counts.unflatten(3, (columns, -1)).unflatten(2, (rows, -1)).sum(dim=(3, 5))
        cells = cells.permute(0, 2, 3, 1).flatten(0, 2)
        known = cells.any(dim=1)
        values = features.flatten(0, 2)[known].double().cpu()
        if moments is None and len(values):
            moments = Moments.make_empty(values.mean(dim=0), classes)
        if moments is not None:
            moments.add(values, cells[known].argmax(dim=1).cpu())
    if moments is None:
        raise ValueError("no pixel is labelled")
    return find_discriminant(moments, shrinkage=SHRINKAGE)


def train_supervised(
    artefacts: Artefacts, windows: list[int], device: torch.device
) -> dict[str, tuple[Classifier, dict[str, Any]]]:
    """Train a linear probe and discriminants; give each with how its training went, by name."""
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
    read = {
        "windows": len(data.windows),
        "labels": data.labels.tolist(),
        "unreadable": dict(data.unreadable),
        "label_pixels": data.pixels.dump(),
    }

    def spread(weight: Tensor, bias: Tensor) -> Classifier:
        weight, bias = spread_classes(weight.float(), bias.float(), data.labels)
        return Classifier(weight.cpu(), bias.cpu())

    went = {"decay": probe.decay, "loss": probe.loss, "steps": probe.steps}
    return {
        PROBE: (spread(probe.weight, probe.bias), read | went),
        DISCRIMINANTS: (spread(*fit_discriminants(data.read_batches(), classes)), read),
    }


def read_labelled(
    artefacts: Artefacts, windows: list[int], device: torch.device
) -> LabelledWindows:
    """Read the labels of some windows; those of an unreadable label map have none."""
    manifest = artefacts.manifest
    arrays = artefacts.open_views()
    rows, columns = arrays["clean"].shape[1:3]
    points = (rows * POINTS, columns * POINTS)
    chosen: dict[int, list[int]] = {}
    for index in windows:
        chosen.setdefault(manifest.windows[index].image, []).append(index)
    unreadable: dict[str, str] = {}
    pixels: dict[int, LabelCounts] = {}

    def count(row: int) -> scipy.sparse.csr_array:
        image = manifest.images[row]
        try:
            found = artefacts.count_truth(image, read_gaps(manifest.root, image))
            assert found is not None
            truth, pixels[row] = found
        except ImageError as error:
            unreadable[image.path] = str(error)
            nothing = np.full((len(chosen[row]), *points), IGNORE, np.uint8)
            return count_labels(nothing, points)
        cover = artefacts.cover(image)
        boxes = [cover.boxes[index - cover.rows.start] for index in chosen[row]]
        parts = [truth[top:bottom, left:right] for left, top, right, bottom in boxes]
        return count_labels(np.stack(parts), points)

    threads = count_threads()
    counts = scipy.sparse.vstack(list(map_ahead(count, chosen, threads, threads)), format="csr")
    labels = np.flatnonzero(counts.sum(axis=0) > 0)
    total = LabelCounts()
    for row in sorted(pixels):
        total.add(pixels[row])
    return LabelledWindows(
        arrays=arrays,
        windows=np.array(windows),
        images=np.array([manifest.windows[index].image for index in windows]),
        counts=counts[:, labels],
        labels=labels,
        unreadable=unreadable,
        device=device,
        pixels=total,
    )


def open_named(run: RunDirectory, settings: EvaluateSettings) -> Artefacts:
    """Open the artefacts of the fit or head that resolved settings name."""
    return open_artefacts(run, settings.em, head=settings.head, gain=settings.cosine_gain)


def open_with_probe(run: RunDirectory, settings: EvaluateSettings) -> Artefacts:
    """Open what the evaluation labels by, with what was trained on labels for it."""
    artefacts = open_evaluated(run, read_record(run, f"evaluate/{settings.subject.title}"))
    if not settings.linear_probe:
        return artefacts
    trained = {name: read_trained(run, settings, name)[0] for name in SUPERVISED}
    return replace(artefacts, classifiers={**artefacts.classifiers, **trained})


def read_trained(
    run: RunDirectory, settings: EvaluateSettings, name: str = PROBE
) -> tuple[Classifier, dict[str, Any]]:
    """Read what was trained on labels for this evaluation, and how its training went."""
    file = probe_file(run, settings, name)
    facts = read_record(run, f"evaluate/{settings.subject.title}").facts
    trained = read_classifier(file, facts["linear_probe"])
    if trained is None:
        raise RunError(f"the linear probe {file} is gone; run the same command again.")
    return trained


def probe_file(run: RunDirectory, settings: EvaluateSettings, name: str = PROBE) -> Path:
    """Return where the linear probe of this evaluation, or its discriminants, lie."""
    return run.state(f"evaluate/{settings.subject.title}") / f"{name}.npz"


def has_trained(run: RunDirectory, settings: EvaluateSettings, print_: str) -> bool:
    """Whether all that learns from labels was trained already; its files are noted then."""
    files = [probe_file(run, settings, name) for name in SUPERVISED]
    if any(read_classifier(file, print_) is None for file in files):
        return False
    for file in files:
        note_file(file)
    return True


def fingerprint_probe(run: RunDirectory, settings: EvaluateSettings, manifest: Manifest) -> str:
    """Return a fingerprint of all that the linear probe is trained on."""
    _, attributes = read_group_of(run, settings.subject)
    store = find_features(run, attributes)
    source = "extract" if store == run.features else f"encode/{store.stem}"
    if (view := attributes.get("view", CLEAN)) != CLEAN:
        source = f"views/{view}"
    windows = list_training_windows(manifest, settings.linear_probe_sample)
    images = {manifest.windows[index].image for index in windows}
    return fingerprint(
        EvaluateSettings.version,
        read_record(run, source).digest,
        windows,
        [fingerprint_image(manifest, manifest.images[row]) for row in sorted(images)],
        fingerprint_ids(manifest),
    )
