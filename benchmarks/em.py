"""The EM on cached features against the literal procedure and the published loop, one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from benchmarks.comparison import Comparison, Section, one_thread, race
from benchmarks.machine import Machine
from benchmarks.samples import GRID, PHOTOGRAPHS, draw_features, load_square
from pipeline.datasets.definition import IGNORE
from stages.em.methods import FitState, run_em_epoch
from stages.em.pieces import FitBatch, make_prototypes
from stages.em.settings import EmSettings
from stages.em.start import find_initial_directions
from stages.masks.proposals import propose_masks, score_proposals
from stages.masks.settings import MaskSettings
from stages.masks.stage import enlarge_scores, take_largest

SIZE = 322
BACKBONE = "vit_small_patch14_dinov2"
# A batch of 32 at image size would be 5 GB for the literal side; both sides take 4 at a time.
CLASSES = 27
SETTINGS = EmSettings(classes=CLASSES, batch_size=4)
# Multiplications and additions per pixel and class of the fused loops: prediction (interpolate,
# compare), sum of exponentials (multiply, add), softmax (multiply, add, multiply), gradient
# (multiply by the ratio and the weight, and by both interpolation weights, add twice).
FLOPS_PER_LOGIT = 3 + 2 + 3 + 6

Batches = list[tuple[Tensor, Tensor]]
Literal = Callable[[FitState, Batches], float]


def make_batches(name: str) -> Batches:
    """Make the cached arrays of a photograph seen from eight sides: turned, and mirrored.

    Parameters
    ----------
    name : str
        One of ``PHOTOGRAPHS``.

    Returns
    -------
    list of (float16 [window, row, column, channel], uint8 [window, y, x])
        Features and proposals.
    """
    features = draw_features(name, GRID)
    method = MaskSettings()
    proposals = propose_masks(features[None], **method.proposing())
    scores = score_proposals(proposals, gain=method.gain)[0]
    ids = take_largest(enlarge_scores(scores, SIZE))
    sides = [
        (torch.rot90(one, turns), torch.rot90(other, turns))
        for turns in range(4)
        for one, other in ((features, ids), (features.flip(1), ids.flip(1)))
    ]
    grids, maps = (torch.stack(list(part)) for part in zip(*sides, strict=True))
    size = SETTINGS.batch_size
    return list(zip(grids.half().split(size), maps.split(size), strict=True))


def start_fit(batches: Batches) -> FitState:
    """Start a fit at the principal directions of the batches."""
    directions = find_initial_directions(
        lambda: [features.float() for features, _ in batches], CLASSES
    )
    prototypes = make_prototypes(directions)
    return FitState(prototypes, prototypes.copy(), prototypes.copy())


def fit_ours(state: FitState, batches: Batches) -> float:
    """Run one epoch; return its mean loss."""
    fresh = FitState(state.running, state.momentum, state.initial)
    moved = ([FitBatch(features.float(), ids)] for features, ids in batches)
    return run_em_epoch(fresh, moved, SETTINGS).loss


def fit_literally(state: FitState, batches: Batches) -> float:
    """Run one epoch as the method is written down; return its mean loss.

    Features are up-sampled and multiplied by both sets of prototypes, every proposal is looked up
    and votes for itself, and the weighted cross entropy is back-propagated.
    """
    running = state.running.copy()
    direction, norm = running.direction.requires_grad_(), running.norm.requires_grad_()
    adam = torch.optim.Adam([direction, norm], lr=SETTINGS.learning_rate)
    losses = []
    for features, proposals in batches:
        channels_first = features.float().permute(0, 3, 1, 2)
        large = F.interpolate(channels_first, (SIZE, SIZE), mode="bilinear", align_corners=False)
        with torch.no_grad():
            teacher = torch.einsum("ndyx,kd->nkyx", large, state.momentum.weight())
            labels = vote_literally(teacher.argmax(dim=1), proposals)
        student = torch.einsum("ndyx,kd->nkyx", large, norm * F.normalize(direction, dim=1))
        with torch.no_grad():
            weight = (1 - student.softmax(dim=1).mean(dim=(0, 2, 3))) ** SETTINGS.focus
        loss = F.cross_entropy(student, labels, weight, ignore_index=IGNORE, reduction="sum")
        loss = loss / labels.numel()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    return sum(losses) / len(losses)


def vote_literally(predictions: Tensor, proposals: Tensor) -> Tensor:
    """Give the pixels of every proposal their commonest class, one proposal after the other."""
    labels = torch.full_like(predictions, IGNORE)
    for seen, ids, target in zip(predictions, proposals, labels, strict=True):
        for number in range(1, int(ids.max()) + 1):
            inside = ids == number
            if inside.any():
                target[inside] = torch.mode(seen[inside]).values
    return labels


def make_published(name: str) -> Literal:
    """Make the published loop for a photograph: no cache, so every step runs the backbone twice.

    Its weights are random, which changes no time; what it computes is then taken from the cache,
    so that both sides fit the same features.
    """
    import timm

    torch.manual_seed(0)
    backbone: Any = timm.create_model(BACKBONE, num_classes=0, img_size=SIZE).eval()
    image = torch.from_numpy(load_square(PHOTOGRAPHS[name], SIZE)).permute(2, 0, 1) / 255
    clean = image.repeat(SETTINGS.batch_size, 1, 1, 1)
    augmented = clean.mean(dim=1, keepdim=True).expand_as(clean)

    def fit(state: FitState, batches: Batches) -> float:
        with torch.inference_mode():
            for _ in batches:
                backbone.forward_features(clean)
                backbone.forward_features(augmented)
        return fit_literally(state, batches)

    return fit


def find_limit(batches: Batches, machine: Machine) -> float:
    """Return the least seconds of an epoch.

    Features are read as float16, written as float32, and read by two products: the logits of both
    sets of prototypes, and the gradient. Proposals are read, labels written and read, and a number
    per pixel is kept between the two passes of the M-step. The rest is arithmetic.
    """
    values = sum(features.numel() for features, _ in batches)
    pixels = sum(ids.numel() for _, ids in batches)
    return machine.least_seconds(
        memory=(2 + 4 + 4 + 4) * values + (1 + 2 + 8) * pixels,
        operations=(3 * 2 * values + FLOPS_PER_LOGIT * pixels) * CLASSES,
    )


def compare_em(
    make_other: Callable[[str], Literal], repeats: int, machine: Machine
) -> Iterator[Comparison]:
    """Compare one epoch of the EM on the cached features of each photograph.

    Parameters
    ----------
    make_other : callable
        Gives the other side for a photograph.
    repeats : int
        Runs of each side per input, in turn; the best counts.
    machine : Machine
        The measured limits.

    Yields
    ------
    Comparison
        Eight windows in two steps; agreement is the relative difference of the mean losses.
    """
    with one_thread():
        for name in PHOTOGRAPHS:
            batches = make_batches(name)
            state = start_fit(batches)
            fit_ours(state, batches)
            own, other, mine, reference = race(
                partial(fit_ours, state, batches),
                partial(make_other(name), state, batches),
                repeats,
            )
            yield Comparison(
                group=f"K = {CLASSES}",
                sample=name,
                ours=own,
                theirs=other,
                agreement=abs(mine / reference - 1),
                limit=find_limit(batches, machine),
            )


SECTIONS = (
    Section(
        f"one epoch of the EM on 8 cached windows, {GRID} x {GRID} x 384 to {SIZE} x {SIZE}",
        "literal",
        "loss, largest\nrelative difference",
        partial(compare_em, lambda name: fit_literally),
        max,
    ),
    Section(
        f"the same, the other side with two passes of {BACKBONE} a step",
        "published",
        "loss, largest\nrelative difference",
        partial(compare_em, make_published),
        max,
    ),
)
