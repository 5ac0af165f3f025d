"""The em stage: cached features and proposals -> class prototypes, one group of em.zarr per fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pipeline.batches import BatchStream
from pipeline.checkpoint import Checkpoint
from pipeline.condition import read_record
from pipeline.devices import resolve_device
from pipeline.errors import RunError, UsageError
from pipeline.files import fingerprint
from pipeline.ledger import ShardRecord
from pipeline.manifest import Manifest, read_manifest
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
        extract = read_record(run, "extract")
        manifest = read_manifest(run)
        stream = _open_stream(run, settings, extract.settings["shard_size"], manifest)
        print_ = read_record(run, self.key(settings)).shards[shard]
        checkpoint = Checkpoint(
            run.em,
            f"_checkpoints/{settings.name}",
            run.state(self.key(settings)) / "fit.json",
            print_,
        )

        def read_epoch(epoch: int) -> Iterator[tuple[Tensor, Tensor | None]]:
            # a seed sequence takes no negative numbers: the initialisation's epochs are -1, -2, …
            for batch in stream.read_epoch(settings.seed, int(epoch < 0), abs(epoch)):
                features = torch.from_numpy(batch.arrays["clean"]).to(device).float()
                ids = batch.arrays.get("proposals")
                yield features, None if ids is None else torch.from_numpy(ids).to(device)

        saved = checkpoint.load()
        if saved is None:
            announce(say="initialisation")
            sample = _sample_windows(stream, settings)

            def read_sample() -> Iterator[Tensor]:
                for batch in sample.read_epoch():
                    yield torch.from_numpy(batch.arrays["clean"]).to(device).float()

            state = initialise(read_sample, read_epoch, len(stream), settings)
            checkpoint.save(*_pack(state))
        else:
            state = _unpack(*saved, device)
            announce(advance=state.epoch)
        for _ in run_epochs(state, read_epoch, settings):
            checkpoint.save(*_pack(state))
            text = _describe_epoch(state)
            announce(
                advance=1,
                say="",
                note=f"em: epoch {state.epoch}/{settings.epochs}: {text}",
            )
        _write_fit(run, settings, state)
        checkpoint.remove()
        return {"loss": state.loss[-1], "usage": state.usage[-1], "windows": len(stream.windows)}

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


def _open_stream(run: Run, settings: EmSettings, shard: int, manifest: Manifest) -> BatchStream:
    arrays = open_arrays(run.features, ["clean"])
    if settings.method == "primaps":
        arrays |= open_arrays(run.masks, ["proposals"])
    windows = [window.index for window in manifest.usable_windows(splits=settings.splits)]
    return BatchStream(arrays, np.array(windows), shard, settings.batch_size)


def _sample_windows(stream: BatchStream, settings: EmSettings) -> BatchStream:
    windows = stream.windows
    if len(windows) > settings.sample:
        generator = np.random.default_rng(settings.seed)
        windows = np.sort(generator.choice(windows, settings.sample, replace=False))
    return BatchStream(
        {"clean": stream.arrays["clean"]}, windows, stream.shard, settings.batch_size
    )


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
