"""Training: steps of a method beside its cluster probe, and all that is kept of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from stages.clustering import cluster_loss
from stages.head.material import HeadBatch
from stages.head.methods import Method, ReadPositions
from stages.head.settings import HeadSettings

_POSITIONS = 4096


@dataclass
class Training:
    """A head under training; all of it is saved by :func:`pack_training`."""

    method: Method
    probe: nn.Parameter
    optimisers: dict[str, Optimizer]
    step: int = 0
    loss: list[float] = field(default_factory=list)
    usage: list[list[float]] = field(default_factory=list)


def start_training(
    method: Method, read_positions: ReadPositions, settings: HeadSettings, device: torch.device
) -> Training:
    """Start training at step 0.

    The probe starts at codes of k-means++ (Arthur and Vassilvitskii, 2007). At random directions,
    as STEGO starts it, several of its clusters are nearest to no code and stay so: on CamVid 3 of
    11, which a fit that starts at the probe would inherit.
    """
    probe = nn.Parameter(_choose_codes(method, read_positions, settings).to(device))
    optimisers = {
        "head": method.make_optimiser(),
        "probe": Adam([probe], lr=settings.probe_learning_rate),
    }
    return Training(method, probe, optimisers)


def _choose_codes(method: Method, read_positions: ReadPositions, settings: HeadSettings) -> Tensor:
    # a finished head is passed over without it
    from sklearn.cluster import kmeans_plusplus

    assert settings.classes is not None
    with torch.no_grad():
        codes = F.normalize(method.head(read_positions(_POSITIONS, 4)), dim=1)
    points = codes.cpu().double().numpy()
    if len(points) < settings.classes:
        raise ValueError(f"{settings.classes} clusters need as many positions")
    chosen, _ = kmeans_plusplus(points, settings.classes, random_state=settings.seed)
    return torch.from_numpy(chosen).float()


def run_round(training: Training, batches: Iterable[HeadBatch], settings: HeadSettings) -> None:
    """Run one step for every batch, and note the round's mean loss and the probe's usage.

    Every draw of a step comes from a generator of its own, named by seed and number, so that a
    training that was stopped goes on to the same bytes.
    """
    losses: list[Tensor] = []
    usage: Tensor | None = None
    for batch in batches:
        seed = np.random.SeedSequence((settings.seed, 2, training.step)).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(seed))
        loss, codes = training.method.compute_loss(batch, training.step, generator)
        distance, counts = cluster_loss(codes.detach(), training.probe)
        for optimiser in training.optimisers.values():
            optimiser.zero_grad()
        # they share no parameter: the probe sees codes, but moves none
        (loss + distance).backward()
        for optimiser in training.optimisers.values():
            optimiser.step()
        training.method.finish_step()
        training.step += 1
        losses.append(loss.detach())
        usage = counts if usage is None else usage + counts
    if usage is None:
        raise ValueError("a round needs batches")
    training.loss.append(float(torch.stack(losses).double().mean()))
    training.usage.append((usage.double() / usage.sum().clamp_min(1)).tolist())


def pack_training(training: Training) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return all that training needs to go on: arrays, and JSON-able values."""
    arrays = {f"method.{n}": t.cpu().numpy() for n, t in training.method.state_dict().items()}
    arrays["probe"] = training.probe.detach().cpu().numpy()
    for name, optimiser in training.optimisers.items():
        for number, moments in optimiser.state_dict()["state"].items():
            for moment, value in moments.items():
                arrays[f"{name}.{number}.{moment}"] = value.cpu().numpy()
    values = {"step": training.step, "loss": training.loss, "usage": training.usage}
    return arrays, values


def restore_training(
    training: Training, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]
) -> None:
    """Bring a training that was just started to where :func:`pack_training` left it."""
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    kept = {n.partition(".")[2]: t for n, t in tensors.items() if n.startswith("method.")}
    training.method.load_state_dict(kept)
    with torch.no_grad():
        training.probe.copy_(tensors["probe"])
    for name, optimiser in training.optimisers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith(f"{name}."):
                _, number, moment = key.split(".")
                state.setdefault(int(number), {})[moment] = tensor
        optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
    training.step = values["step"]
    training.loss, training.usage = list(values["loss"]), list(values["usage"])
