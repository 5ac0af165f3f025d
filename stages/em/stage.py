"""The em stage: cached features and proposals -> class prototypes, one group of em.zarr per fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import zarr
from torch import Tensor

from pipeline.batches import Batch, BatchStream
from pipeline.checkpoint import Checkpoint
from pipeline.condition import read_record
from pipeline.devices import resolve_device
from pipeline.errors import RunError, UsageError
from pipeline.files import fingerprint
from pipeline.ledger import ShardRecord
from pipeline.manifest import read_manifest
from pipeline.progress import Screen
from pipeline.run import DEFAULT_NAME, Run
from pipeline.scheduler import announce
from pipeline.stage import Plan, ShardPlan, Stage
from pipeline.store import consolidate, open_arrays, write_group
from stages.em.fit import FitState, initialise, run_epochs
from stages.em.prototypes import Prototypes
from stages.em.settings import EmSettings

_COLLAPSED = 1e-3


class Em(Stage[EmSettings]):
    """``features.zarr`` and ``masks.zarr`` -> one group of ``em.zarr``."""

    name: ClassVar[str] = "em"
    unit: ClassVar[str] = "epochs"
    settings_class = EmSettings

    def key(self, settings: EmSettings) -> str:
        """Return ``em/<name>``."""
        return f"em/{settings.name}"

    def choose_key(self, run: Run, given: Mapping[str, Any]) -> str:
        """Return ``em/<name>``, for the default name where none is given."""
        return f"em/{given.get('name', DEFAULT_NAME)}"

    def name_options(self, settings: EmSettings) -> str:
        """Return ``--name`` where it is not the default."""
        return "" if settings.name == DEFAULT_NAME else f" --name {settings.name}"

    def inputs(self, run: Run, settings: EmSettings) -> list[str]:
        """Return ``extract``, and ``masks`` where proposals are used."""
        return ["extract", "masks"] if settings.method == "primaps" else ["extract"]

    def resolve(self, run: Run, settings: EmSettings) -> EmSettings:
        """Fit on the train split where there is one, else on all."""
        manifest = read_manifest(run.require())
        manifest.check_splits(settings.splits)
        known = manifest.splits
        splits = settings.splits or (("train",) if "train" in known else known)
        return settings.replace(splits=splits)

    def plan(self, run: Run, settings: EmSettings, screen: Screen) -> Plan:
        """Plan one shard: the fit."""
        channels = read_record(run, "extract").facts["channels"]
        if settings.classes > channels:
            raise UsageError(
                f"--classes {settings.classes}: the features have only {channels} channels."
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
        return Plan([ShardPlan(print_, settings.epochs)], {"method": settings.method})

    def prepare(self, run: Run, settings: EmSettings, plan: Plan) -> None:
        """Nothing to allocate: the arrays of a fit are small and written at its end."""

    def holds(self, run: Run, settings: EmSettings, shard: int) -> bool:
        """Whether the group of the fit is there."""
        return (run.em / settings.name / "zarr.json").is_file()

    def compute(self, run: Run, settings: EmSettings, shard: int) -> dict[str, Any]:
        """Fit, from the last checkpoint where there is one."""
        device = resolve_device(settings.device)
        cache = _open_cache(run, settings, device)
        print_ = read_record(run, self.key(settings)).shards[shard]
        checkpoint = Checkpoint(
            run.em,
            f"_checkpoints/{settings.name}",
            run.state(self.key(settings)) / "fit.json",
            print_,
        )
        saved = checkpoint.load()
        if saved is None:
            announce(say="initialisation")
            state = initialise(cache.read_sample, cache.read_epoch, cache.steps, settings)
            checkpoint.save(*_pack(state))
        else:
            state = _unpack(*saved, device)
            announce(advance=state.epoch)
        for _ in run_epochs(state, cache.read_epoch, settings):
            checkpoint.save(*_pack(state))
            text = _describe_epoch(state)
            announce(
                advance=1,
                say="",
                note=f"em: epoch {state.epoch}/{settings.epochs}: {text}",
            )
        _write_fit(run, settings, state)
        checkpoint.remove()
        return {"loss": state.loss[-1], "usage": state.usage[-1], "windows": len(cache.windows)}

    def finish(
        self, run: Run, settings: EmSettings, records: dict[int, ShardRecord], screen: Screen
    ) -> list[str]:
        """Say how the fit ended, and whether classes died."""
        with run.lock("em.zarr", wait=True):
            consolidate(run.em)
        result = records[0].result
        dead = [k for k, share in enumerate(result["usage"]) if share <= _COLLAPSED]
        if dead:
            screen.warn(
                f"em/{settings.name}: {len(dead)} of {settings.classes} classes are hardly used "
                f"(under {100 * _COLLAPSED:g} % of the pixels: {', '.join(map(str, dead))}); "
                "fewer --classes, or another --seed, may fit better."
            )
        return [
            f"em: {settings.classes} prototypes from {result['windows']} windows, "
            f"loss {result['loss']:.4f}, in {run.em / settings.name}"
        ]


def _describe_epoch(state: FitState) -> str:
    shares = " ".join(f"{100 * share:.1f}" for share in state.usage[-1])
    return f"loss {state.loss[-1]:.4f}, class usage {shares} %"


@dataclass(frozen=True)
class Cache:
    """The cached arrays that a fit reads, as tensors on its device.

    Attributes
    ----------
    arrays
        ``clean`` and, for PriMaPs-EM, ``proposals``; the windows are the first axis.
    windows
        Indices of the windows to fit on, int64 [window], ascending.
    settings
        Seed, batch size, size of the sample.
    device
        Where the tensors go.
    """

    arrays: Mapping[str, zarr.Array]
    windows: np.ndarray
    settings: EmSettings
    device: torch.device

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return len(self._stream(self.windows, self.arrays))

    def read_sample(self) -> Iterator[Tensor]:
        """Read the features of the windows that the PCA sees, each batch over the last."""
        windows = self.windows
        if len(windows) > self.settings.sample:
            generator = np.random.default_rng(self.settings.seed)
            windows = np.sort(generator.choice(windows, self.settings.sample, replace=False))
        for _, features in self._widen(self._stream(windows, ["clean"]).read_epoch()):
            yield features

    def read_epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Read the batches of an epoch; those of the initialisation, -1, -2, …, need no proposals.

        Yields
        ------
        features, proposals
            float32 [window, row, column, channel], overwritten by the next, and uint8
            [window, y, x] or None.
        """
        stream = self._stream(self.windows, self.arrays if epoch >= 0 else ["clean"])
        # a seed sequence takes no negative numbers
        batches = stream.read_epoch(self.settings.seed, int(epoch < 0), abs(epoch))
        for batch, features in self._widen(batches):
            ids = batch.arrays.get("proposals")
            yield features, None if ids is None else torch.from_numpy(ids).to(self.device)

    def _widen(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Tensor]]:
        # One buffer for all batches: to free and allocate the largest tensor in every step frays
        # the allocator's memory, and more of it the longer an epoch is.
        wide = torch.empty(0)
        for batch in batches:
            # half the bytes cross to the device, and are widened there
            features = torch.from_numpy(batch.arrays["clean"]).to(self.device)
            if len(wide) < len(features):
                wide = torch.empty_like(features, dtype=torch.float32)
            yield batch, wide[: len(features)].copy_(features)

    def _stream(self, windows: np.ndarray, names: Iterable[str]) -> BatchStream:
        arrays = {name: self.arrays[name] for name in names}
        return BatchStream(arrays, windows, self.settings.batch_size)


def _open_cache(run: Run, settings: EmSettings, device: torch.device) -> Cache:
    arrays = open_arrays(run.features, ["clean"])
    if settings.method == "primaps":
        arrays |= open_arrays(run.masks, ["proposals"])
    windows = [window.index for window in read_manifest(run).usable_windows(splits=settings.splits)]
    return Cache(arrays, np.array(windows), settings, device)


_PROTOTYPES = ("running", "momentum", "initial")


def _pack(state: FitState) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays = {}
    for name in _PROTOTYPES:
        prototypes: Prototypes = getattr(state, name)
        arrays[f"{name}_direction"] = prototypes.direction.cpu().numpy()
        arrays[f"{name}_norm"] = prototypes.norm.cpu().numpy()
    for name, value in state.moments.items():
        arrays[f"adam_{name}"] = value.cpu().numpy()
    values = {"epoch": state.epoch, "step": state.step, "loss": state.loss, "usage": state.usage}
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
        epoch=values["epoch"],
        step=values["step"],
        loss=values["loss"],
        usage=values["usage"],
    )


def _write_fit(run: Run, settings: EmSettings, state: FitState) -> None:
    axes = ("class", "channel")
    arrays = {
        "prototypes": (state.running.weight().cpu().numpy(), axes),
        "momentum_prototypes": (state.momentum.weight().cpu().numpy(), axes),
        "initial_prototypes": (state.initial.weight().cpu().numpy(), axes),
        "loss": (np.array(state.loss, np.float32), ("epoch",)),
        "class_usage": (np.array(state.usage, np.float32), ("epoch", "class")),
    }
    attributes = {
        "method": settings.method,
        "classes": settings.classes,
        "seed": settings.seed,
        "splits": list(settings.splits),
        # cosine K-means knows no norms: its logits are cosines, PriMaPs-EM's are inner products
        "logits": "inner product" if settings.method == "primaps" else "cosine",
    }
    write_group(run.em, settings.name, arrays, attributes)
