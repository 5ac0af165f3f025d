"""The proposals against the call sequence of the published code, one thread each."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from benchmarks.comparison import Comparison, Section, one_thread, race
from benchmarks.machine import Machine
from benchmarks.samples import CHANNELS, GRID, PHOTOGRAPHS, draw_features
from stages.masks.proposals import find_principal_directions, propose_masks
from stages.masks.settings import MaskSettings

SIDES = (GRID, 40)
# Multiplications by the covariance that a direction to five digits takes on such features.
STEPS = 10
METHOD = MaskSettings().proposing()


def propose_literally(features: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Split one window as the published code does: one call of ``pca_lowrank`` per proposal.

    Parameters
    ----------
    features : float32 tensor [row, column, channel]
        The window.

    Returns
    -------
    soft : float32 tensor [proposal, position]
        Cosine to the seed over the largest, 0 outside of the proposal.
    rounds : list of bool tensor [position]
        The active positions at the start of every round.
    """
    points = features.flatten(0, 1)
    unit = F.normalize(points, dim=-1)
    active = torch.ones(len(points), dtype=torch.bool)
    soft: list[Tensor] = []
    rounds: list[Tensor] = []
    while active.sum() > METHOD["leave"] * len(points) and len(rounds) < METHOD["max_proposals"]:
        rounds.append(active.clone())
        direction = decompose_literally(points, active)
        seed = (unit @ direction).abs().masked_fill(~active, -1).argmax()
        similarity = unit @ unit[seed]
        largest = similarity[active].max()
        proposal = active & (similarity >= METHOD["threshold"] * largest)
        soft.append(torch.where(proposal, similarity / largest, 0))
        active &= ~proposal
    return torch.stack(soft), rounds


def decompose_literally(points: Tensor, active: Tensor) -> Tensor:
    """Give the first principal direction, float32 [channel], of the active points' rows."""
    direction: Tensor = torch.pca_lowrank(points[active], q=3, niter=100)[2][:, 0]
    return direction


def compare_directions(repeats: int, machine: Machine) -> Iterator[Comparison]:
    """Compare the principal directions of all rounds of a window, on the same active positions.

    Parameters
    ----------
    repeats : int
        Runs of each side per input, in turn; the best counts.
    machine : Machine
        The measured limits.

    Yields
    ------
    Comparison
        The limit is what ten multiplications by the covariance take, each of which reads the active
        positions' features twice out of the second-level cache.
    """
    for side in SIDES:
        for name in PHOTOGRAPHS:
            features = draw_features(name, side)
            points = features.flatten(0, 1)
            with one_thread():
                _, rounds = propose_literally(features)
                _find_all(points, rounds[:1])  # compiles
                ours, theirs, mine, reference = race(
                    partial(_find_all, points, rounds),
                    partial(_decompose_all, points, rounds),
                    repeats,
                )
            size = sum(int(active.sum()) for active in rounds) * CHANNELS
            cosines = [abs(float(a @ b)) for a, b in zip(mine, reference, strict=True)]
            yield Comparison(
                group=_name_grid(side),
                sample=name,
                ours=ours,
                theirs=theirs,
                agreement=min(cosines),
                limit=machine.least_seconds(
                    cache=STEPS * 2 * 4 * size, operations=STEPS * 2 * 2 * size
                ),
            )


def compare_proposals(repeats: int, machine: Machine) -> Iterator[Comparison]:
    """Compare whole windows, from features to the id of every position; parameters as above.

    Yields
    ------
    Comparison
        The limit adds to the directions' that every round reads all unit features twice: for the
        projections and for the cosines to the seed.
    """
    for side in SIDES:
        for name in PHOTOGRAPHS:
            features = draw_features(name, side)
            with one_thread():
                ours, theirs, mine, (reference, rounds) = race(
                    partial(propose_masks, features[None], **METHOD),
                    partial(propose_literally, features),
                    repeats,
                )
            equal = _number(mine.soft[0].flatten(1)) == _number(reference)
            size = sum(int(active.sum()) for active in rounds) * CHANNELS
            read = len(rounds) * features.numel()
            yield Comparison(
                group=_name_grid(side),
                sample=name,
                ours=ours,
                theirs=theirs,
                agreement=100 * float(equal.double().mean()),
                limit=machine.least_seconds(
                    cache=2 * 4 * (STEPS * size + read), operations=2 * 2 * (STEPS * size + read)
                ),
            )


def _find_all(points: Tensor, rounds: list[Tensor]) -> list[Tensor]:
    return [find_principal_directions(points[None], active[None])[0] for active in rounds]


def _decompose_all(points: Tensor, rounds: list[Tensor]) -> list[Tensor]:
    return [decompose_literally(points, active) for active in rounds]


def _name_grid(side: int) -> str:
    return f"{side} x {side} x {CHANNELS}"


def _number(soft: Tensor) -> Tensor:
    """Return the number of every position's proposal, from 1; 0 = none."""
    taken = soft > 0
    return taken.int().argmax(dim=0) + taken.any(dim=0)


SECTIONS = (
    Section(
        "principal directions of all rounds of a window, one thread",
        "pca_lowrank",
        "least\n|cosine|",
        compare_directions,
    ),
    Section(
        "proposals of a window on the grid, one thread",
        "published\nprocedure",
        "equal positions\nlowest, %",
        compare_proposals,
    ),
)
