"""The em stage: cached features and proposals -> class prototypes, one group of em.zarr per fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pipeline.compute.devices import resolve_device
from pipeline.compute.memory import explain_shortage
from pipeline.compute.scheduler import announce, current_team
from pipeline.datasets import IGNORE
from pipeline.errors import RunError, UsageError
from pipeline.progress import Screen
from pipeline.run.directory import DEFAULT_NAME, RunDirectory
from pipeline.run.ledger import ShardRecord, read_record
from pipeline.run.manifest import read_manifest
from pipeline.run.stage import Plan, ShardPlan, Stage
from pipeline.settings import did_you_mean
from pipeline.storage.arrays import consolidate, read_group, write_group
from pipeline.storage.files import Checkpoint, fingerprint
from pipeline.wording import count_of
from stages.clustering import UNUSED, list_unused
from stages.em.cache import (
    Cache,
    Source,
    TeamCache,
    draw_sample,
    list_augmented,
    list_windows,
    name_device,
    open_cache,
    read_pooled,
)
from stages.em.class_count import ClassCount, estimate_classes
from stages.em.fit import FitState, initialise, run_epochs, start_at
from stages.em.prototypes import Prototypes
from stages.em.robust import RobustSettings, fit_robust
from stages.em.settings import EmSettings

_AXES = ("class", "channel")
# What a fit is judged by without labels, epoch by epoch.
_SCORE_UNITS = {"agreement": "%", "turn": "degrees"}


class Em(Stage[EmSettings]):
    """``features.zarr`` and ``masks.zarr`` -> one group of ``em.zarr``."""

    name: ClassVar[str] = "em"
    unit: ClassVar[str] = "epochs"
    settings_class = EmSettings

    def key(self, settings: EmSettings) -> str:
        """Return ``em/<name>``."""
        return f"em/{settings.name}"

    def choose_key(self, run: RunDirectory, given: Mapping[str, Any]) -> str:
        """Return ``em/<name>``, for the default name where none is given."""
        return f"em/{given.get('name', DEFAULT_NAME)}"

    def name_options(self, settings: EmSettings) -> str:
        """Return ``--name`` where it is not the default."""
        return "" if settings.name == DEFAULT_NAME else f" --name {settings.name}"

    def inputs(self, run: RunDirectory, settings: EmSettings) -> list[str]:
        """Return ``extract`` and what else is read: proposals, augmented views, codes."""
        keys = ["extract"]
        if settings.student == "photometric" and settings.head is None:
            keys += [f"views/{view}" for view in list_augmented(run, None)]
        if settings.method != "kmeans" or settings.classes == "auto":
            keys.append("masks")
        if settings.head is not None:
            keys.append(f"encode/{settings.head}")
        return keys

    def resolve(self, run: RunDirectory, settings: EmSettings) -> EmSettings:
        """Choose the splits, the number of classes, and the view of the running prototypes."""
        if settings.head is not None and settings.head not in run.names("encode"):
            raise UsageError(
                f"--head {settings.head}: the run has no such head"
                f"{did_you_mean(settings.head, run.names('encode'))}; train one with "
                f"`primaps-pipe head {run.quoted} --method stego` or hp."
            )
        return settings.replace(
            splits=read_manifest(run.require()).choose_splits(settings.splits),
            classes=_choose_classes(run, settings),
            student=_choose_student(run, settings),
        )

    def plan(self, run: RunDirectory, settings: EmSettings, screen: Screen) -> Plan:
        """Plan one shard: the fit."""
        most = _limit_classes(run, settings)
        if isinstance(settings.classes, int) and settings.classes > most:
            raise UsageError(
                f"--classes {settings.classes}: the features have only {most} channels."
            )
        windows = read_manifest(run).usable_windows(splits=settings.splits)
        if not windows:
            raise RunError(f"em: no usable image in the splits {', '.join(settings.splits)}.")
        sources = {key: read_record(run, key).digest for key in self.inputs(run, settings)}
        print_ = fingerprint(
            self.name,
            self.version,
            settings.output_settings(),
            sources,
            [window.index for window in windows],
        )
        epochs = 1 if settings.method == "robust" else settings.epochs
        return Plan([ShardPlan(print_, epochs)], {"method": settings.method})

    def shares_work(self, settings: EmSettings) -> bool:
        """Whether a team computes the steps; the robust fit, short as it is, is one worker's."""
        return settings.method != "robust"

    def prepare(self, run: RunDirectory, settings: EmSettings, plan: Plan) -> None:
        """Nothing to allocate: the arrays of a fit are small and written at its end."""

    @explain_shortage("em")
    def compute(self, run: RunDirectory, settings: EmSettings, shard: int) -> dict[str, Any]:
        """Fit, from the last checkpoint where there is one."""
        team = current_team()
        # with a team, its workers have the devices, and what is left here is small
        device = torch.device("cpu") if team.remote else resolve_device(settings.device)
        count = None
        if settings.classes == "auto":
            announce(say="number of classes")
            count = _count_classes(run, settings)
            settings = settings.replace(classes=count.classes)
        cache = open_cache(run, settings, device)
        if settings.method == "robust":
            return _fit_proposals(run, settings, cache, count)
        print_ = read_record(run, self.key(settings)).shards[shard]
        checkpoint = self._checkpoint(run, settings, print_)
        source = Source(run, settings, print_)
        shared = TeamCache(team, source, cache) if team.remote else cache
        saved = checkpoint.load()
        if saved is None:
            announce(say="initialisation")
            if settings.head is None:
                state = initialise(
                    shared.read_sample, shared.read_epoch, cache.steps, settings, team
                )
            else:
                state = start_at(_read_probe(run, settings).to(device))
            checkpoint.save(*_pack(state))
        else:
            state = _unpack(*saved, device)
            announce(advance=state.epoch)
        for _ in run_epochs(state, shared.read_epoch, settings, team):
            _require_usage(state, settings)
            checkpoint.save(*_pack(state))
            text = _describe_epoch(state)
            announce(
                advance=1,
                say="",
                note=f"em: epoch {state.epoch}/{settings.epochs}: {text}",
            )
        arrays = {
            "prototypes": (state.running.weight().cpu().numpy(), _AXES),
            "momentum_prototypes": (state.momentum.weight().cpu().numpy(), _AXES),
            "initial_prototypes": (state.initial.weight().cpu().numpy(), _AXES),
            "loss": (np.array(state.loss, np.float32), ("epoch",)),
            "class_usage": (np.array(state.usage, np.float32), ("epoch", "class")),
        }
        for name, unit in _SCORE_UNITS.items():
            if name in state.scores:
                factor = 100 if unit == "%" else 1
                values = factor * np.array(state.scores[name], np.float32)
                arrays[f"score_{name}"] = (values, ("epoch",))
        attributes = _describe_fit(settings, count) | {"score_units": _SCORE_UNITS}
        write_group(run.em, settings.name, arrays, attributes)
        windows, loss = len(cache.windows), state.loss[-1]
        return {
            "found": f"{count_of(windows, 'windows')}, loss {loss:.4f}",
            "usage": state.usage[-1],
            "device": team.map(name_device, [(source,)])[0],
        }

    def finish(
        self,
        run: RunDirectory,
        settings: EmSettings,
        records: dict[int, ShardRecord],
        screen: Screen,
    ) -> list[str]:
        """Say how the fit ended, and whether classes died."""
        with run.lock("em.zarr", wait=True, say=screen.warn):
            consolidate(run.em)
        # not before the fit is in the ledger: a kill between costs nothing
        self._checkpoint(run, settings).remove()
        result = records[0].result
        dead = list_unused(result["usage"])
        if dead:
            screen.warn(
                f"em/{settings.name}: {len(dead)} of {len(result['usage'])} classes are hardly "
                f"used (under {100 * UNUSED:g} % of the pixels: {', '.join(map(str, dead))}); "
                "fewer --classes, or another --seed, may fit better."
            )
        return [
            f"em: {len(result['usage'])} prototypes from {result['found']}, "
            f"in {run.em / settings.name}"
        ]

    def _checkpoint(
        self, run: RunDirectory, settings: EmSettings, fingerprint: str = ""
    ) -> Checkpoint:
        return Checkpoint(run.state(self.key(settings)) / "fit.npz", fingerprint)


def _fit_proposals(
    run: RunDirectory, settings: EmSettings, cache: Cache, count: ClassCount | None
) -> dict[str, Any]:
    """Make the robust fit, and write it."""
    assert isinstance(settings.classes, int)
    chosen = RobustSettings(
        settings.classes, settings.seed, settings.clusterings, settings.shrinkage
    )
    fit = fit_robust(cache.read_averaged, chosen)
    usage = fit.usage.float().numpy()
    arrays = {
        "momentum_prototypes": (fit.prototypes.numpy(), _AXES),
        "bias": (fit.bias.numpy(), ("class",)),
        "class_usage": (usage[None], ("epoch", "class")),
    }
    write_group(run.em, settings.name, arrays, _describe_fit(settings, count))
    announce(advance=1)
    found = f"{fit.units} proposals of {count_of(len(cache.sample), 'windows')}"
    # in float64 on the processor, whatever the device
    return {"found": found, "usage": usage.tolist(), "device": "cpu"}


def _require_usage(state: FitState, settings: EmSettings) -> None:
    """Refuse to go on where no pixel of an epoch had a proposal: nothing was learned."""
    if not any(state.usage[-1]):
        raise RunError(
            f"em: no window of the splits {', '.join(settings.splits)} has a proposal, so there is "
            "nothing to learn from: look at the images (are they blank?), or fit with "
            "--method kmeans, which needs none."
        )


def _describe_epoch(state: FitState) -> str:
    shares = " ".join(f"{100 * share:.1f}" for share in state.usage[-1])
    return f"loss {state.loss[-1]:.4f}, class usage {shares} %"


def _choose_classes(run: RunDirectory, settings: EmSettings) -> int | str | None:
    """Return the number of classes, of a head's probe where there is one."""
    if settings.head is None:
        return settings.classes
    clusters = int(read_record(run, f"head/{settings.head}").facts["classes"])
    # the robust fit has a start of its own
    if settings.method != "robust" and settings.classes not in (None, clusters):
        raise UsageError(
            f"--classes {settings.classes}: the probe of the head {settings.head} has "
            f"{clusters} clusters; leave --classes out, or train a head with as many."
        )
    return settings.classes or clusters


def _limit_classes(run: RunDirectory, settings: EmSettings) -> int:
    """Return the most classes that a fit can start from: labels are bytes, 255 means none."""
    if settings.head is not None or settings.method == "robust":
        return IGNORE
    # PCA gives no more directions than there are channels
    return min(IGNORE, int(read_record(run, "extract").facts["channels"]))


def _count_classes(run: RunDirectory, settings: EmSettings) -> ClassCount:
    """Estimate the number of classes from the proposals of a sample of the windows to fit on."""
    windows = draw_sample(list_windows(run, settings), settings)
    most = min(settings.most_classes, _limit_classes(run, settings))
    try:
        return estimate_classes(read_pooled(run, windows), seed=settings.seed, most=most)
    except ValueError as error:
        raise RunError(f"--classes auto: {error}; give --classes a number.") from error


def _choose_student(run: RunDirectory, settings: EmSettings) -> str:
    """Name what ``auto`` means, and refuse views that there are not."""
    if settings.method != "primaps":
        if settings.student == "photometric":
            raise UsageError(
                f"--student photometric: --method {settings.method} has no student; leave it out, "
                "or fit with --method primaps."
            )
        return "clean"
    augmented = list_augmented(run, settings.head)
    if settings.student == "auto":
        return "photometric" if augmented else "clean"
    if settings.student == "photometric" and not augmented:
        codes = "" if settings.head is None else f" and `head` again, with --name {settings.head},"
        raise UsageError(
            "--student photometric: there are no augmented views; run "
            f"`primaps-pipe extract {run.quoted} --views clean,photometric`{codes} first."
        )
    return settings.student


def _read_probe(run: RunDirectory, settings: EmSettings) -> Tensor:
    arrays, _ = read_group(run.heads, str(settings.head))
    return torch.from_numpy(arrays["probe"])


_PROTOTYPES = ("running", "momentum", "initial")
_COUNTS = ("epoch", "step", "loss", "usage", "scores")


def _pack(state: FitState) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays = {}
    for name in _PROTOTYPES:
        prototypes: Prototypes = getattr(state, name)
        arrays[f"{name}_direction"] = prototypes.direction.cpu().numpy()
        arrays[f"{name}_norm"] = prototypes.norm.cpu().numpy()
    for name, value in state.moments.items():
        arrays[f"adam_{name}"] = value.cpu().numpy()
    values = {name: getattr(state, name) for name in _COUNTS}
    return arrays, values


def _unpack(
    arrays: dict[str, np.ndarray], values: dict[str, Any], device: torch.device
) -> FitState:
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    prototypes = {
        name: Prototypes(
            tensors[f"{name}_direction"].to(device), tensors[f"{name}_norm"].to(device)
        )
        for name in _PROTOTYPES
    }
    moments = {
        # Adam keeps its step count on the host
        name.removeprefix("adam_"): value if name.endswith("_step") else value.to(device)
        for name, value in tensors.items()
        if name.startswith("adam_")
    }
    return FitState(
        running=prototypes["running"],
        momentum=prototypes["momentum"],
        initial=prototypes["initial"],
        moments=moments,
        **{name: values[name] for name in _COUNTS},
    )


def _describe_fit(settings: EmSettings, count: ClassCount | None) -> dict[str, Any]:
    """Return what evaluation and readers need to know of a fit beside its arrays."""
    attributes: dict[str, Any] = {
        "method": settings.method,
        "classes": settings.classes,
        "seed": settings.seed,
        "splits": list(settings.splits),
        # cosine K-means knows no norms: its logits are cosines, the others' are inner products
        "logits": "cosine" if settings.method == "kmeans" else "inner product",
        "features": "features" if settings.head is None else f"codes/{settings.head}",
    }
    if count is not None:
        attributes |= {
            "classes_curve": [list(pair) for pair in count.curve],
            "classes_label": "mean silhouette of the proposals",
        }
    return attributes
