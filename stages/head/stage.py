"""The head stage: cached features -> a small network on them, one group of heads.zarr per head."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, islice
from typing import Any, ClassVar

import numpy as np

from pipeline.compute.devices import resolve_device, resolve_precision
from pipeline.compute.memory import explain_shortage
from pipeline.compute.scheduler import announce
from pipeline.errors import RunError, UsageError
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import ShardRecord, list_photometric, list_records, read_record
from pipeline.run.manifest import read_manifest
from pipeline.run.stage import Plan
from pipeline.run.stage import Training as TrainingStage
from pipeline.storage.arrays import open_arrays, write_group
from stages.clustering import list_unused
from stages.head.material import Material
from stages.head.methods import build_method
from stages.head.settings import METHODS, HeadSettings, get_preset
from stages.head.training import (
    Training,
    pack_training,
    restore_training,
    run_round,
    start_training,
)

_ROUND = 50


class Head(TrainingStage[HeadSettings]):
    """``features.zarr`` -> one group of ``heads.zarr``."""

    name: ClassVar[str] = "head"
    unit: ClassVar[str] = "steps"
    settings_class = HeadSettings
    checkpoint_file: ClassVar[str] = "training.npz"

    def key(self, settings: HeadSettings) -> str:
        """Return ``head/<name>``."""
        return f"head/{settings.name or settings.method}"

    def choose_key(self, run: RunDirectory, given: Mapping[str, Any]) -> str:
        """Return ``head/<name>``, the method's where none is given."""
        method = given.get("method", HeadSettings.model_fields["method"].default)
        return f"head/{given.get('name') or method}"

    def name_options(self, settings: HeadSettings) -> str:
        """Return ``--method`` and, where it is not the method's, ``--name``."""
        named = "" if settings.name == settings.method else f" --name {settings.name}"
        return f" --method {settings.method}{named}"

    def inputs(self, run: RunDirectory, settings: HeadSettings) -> list[str]:
        """Return ``extract``, and the crops, augmented views and attention that are used."""
        return ["extract", *(f"views/{name}" for name in _list_views(run, settings))]

    def resolve(self, run: RunDirectory, settings: HeadSettings) -> HeadSettings:
        """Fill in what the method and the dataset decide."""
        manifest = read_manifest(run.require())
        splits = manifest.choose_splits(settings.splits)
        dataset = manifest.open_dataset()
        classes = settings.classes or len(dataset.class_names(manifest.labels))
        if not classes:
            raise UsageError(
                f"head needs --classes: a dataset of layout {manifest.dataset} does not say how "
                "many there are."
            )
        preset = get_preset(manifest.dataset, read_record(run, "extract").facts["backbone"])
        return settings.replace(
            name=settings.name or settings.method,
            precision=resolve_precision(settings.precision, resolve_device(settings.device)),
            classes=classes,
            dim=settings.dim or METHODS[settings.method].dim,
            splits=splits,
            term_weights=settings.term_weights or preset.weights,
            term_shifts=settings.term_shifts or preset.shifts,
            renew_every=settings.renew_every or preset.renew_every,
            temperature=settings.temperature or preset.temperature,
        )

    def plan(self, run: RunDirectory, settings: HeadSettings, screen: Screen) -> Plan:
        """Plan one shard: the training."""
        manifest = read_manifest(run)
        windows = manifest.usable_windows(splits=settings.splits)
        if len(windows) < 2:
            raise RunError(
                f"head: {len(windows)} usable windows in the splits "
                f"{', '.join(settings.splits)}; a head needs two at least."
            )
        views = _list_views(run, settings)
        needed = {"photometric_1", "attention"}
        if METHODS[settings.method].needs_views and not needed <= views.keys():
            raise UsageError(
                f"--method {settings.method} needs augmented views and the last block's attention: "
                f"run `primaps-pipe extract {run.quoted} --views clean,photometric --attention` "
                "first."
            )
        facts = {
            "method": settings.method,
            "dim": settings.dim,
            "classes": settings.classes,
            "channels": read_record(run, "extract").facts["channels"],
        }
        return self.plan_one(run, settings, windows, settings.steps, facts)

    @explain_shortage("head")
    def compute(self, run: RunDirectory, settings: HeadSettings, shard: int) -> dict[str, Any]:
        """Train, from the last checkpoint where there is one."""
        assert settings.name is not None
        device = resolve_device(settings.device)
        material = _open_material(run, settings)
        record = read_record(run, self.key(settings))
        method = build_method(record.facts["channels"], settings, material.read_positions, device)
        training = start_training(method, material.read_positions, settings, device)
        checkpoint = self.checkpoint(run, settings, record.shards[shard])
        saved = checkpoint.load()
        if saved is not None:
            restore_training(training, *saved)
            announce(advance=training.step)
        batches = material.read_steps(training.step)
        while training.step < settings.steps:
            size = min(_ROUND, settings.steps - training.step)
            run_round(training, islice(batches, size), settings)
            checkpoint.save(*pack_training(training))
            text = f"head: step {training.step}/{settings.steps}: loss {training.loss[-1]:.4f}"
            announce(advance=size, note=text)
        _write_head(run, settings, training)
        return {
            "loss": training.loss[-1],
            "usage": training.usage[-1],
            "windows": len(material.windows),
            "device": device.type,
        }

    def finish(
        self,
        run: RunDirectory,
        settings: HeadSettings,
        records: dict[int, ShardRecord],
        screen: Screen,
    ) -> list[str]:
        """Say how the training ended, and whether clusters of the probe died."""
        self.close(run, settings, run.heads, screen)
        result = records[0].result
        dead = list_unused(result["usage"])
        if dead:
            screen.warn(
                f"head/{settings.name}: {len(dead)} of {settings.classes} clusters of the probe "
                f"are hardly used ({', '.join(map(str, dead))})."
            )
        return [
            f"head: {settings.method} with {settings.dim} channels from {result['windows']} "
            f"windows, loss {result['loss']:.4f}, in {run.heads / str(settings.name)}"
        ]


def _list_views(run: RunDirectory, settings: HeadSettings) -> dict[str, list[str]]:
    """List the further views that a method trains on, of those that the run holds: their arrays."""
    records = list_records(run, "views")
    method = METHODS[settings.method]
    used = ["crops"] if method.uses_crops else []
    used += [*list_photometric(run), "attention"] if method.needs_views else []
    names = [name for name in used if name in records]
    return {name: records[name].facts["arrays"] for name in names}


def _open_material(run: RunDirectory, settings: HeadSettings) -> Material:
    names = _list_views(run, settings)
    arrays = open_arrays(run.features, ["clean", *chain.from_iterable(names.values())])

    def choose(*chosen: str) -> tuple[Any, ...]:
        return tuple(arrays[name] for name in chosen)

    usable = read_manifest(run).usable_windows(splits=settings.splits)
    views = choose("clean", *names.get("crops", []))
    material = Material(
        arrays=views,
        windows=np.array([window.index for window in usable]),
        images=np.tile([window.image for window in usable], len(views)),
        batch=settings.batch_size,
        seed=settings.seed,
        device=resolve_device(settings.device),
        augmented=choose(*(name for name in names if name.startswith("photometric"))),
        attention=arrays.get("attention"),
    )
    if not METHODS[settings.method].needs_neighbours:
        return material
    announce(say="neighbours")
    return material.with_neighbours(settings.neighbours)


def _write_head(run: RunDirectory, settings: HeadSettings, training: Training) -> None:
    state = training.method.head.state_dict()
    arrays = {
        f"head.{name}": (tensor.cpu().numpy(), tuple(f"axis_{i}" for i in range(tensor.ndim)))
        for name, tensor in state.items()
    }
    arrays |= {
        "probe": (training.probe.detach().cpu().numpy(), ("class", "channel")),
        "loss": (np.array(training.loss, np.float32), ("round",)),
        "class_usage": (np.array(training.usage, np.float32), ("round", "class")),
    }
    attributes = {
        "method": settings.method,
        "classes": settings.classes,
        "dim": settings.dim,
        "seed": settings.seed,
        "splits": list(settings.splits),
        "features": f"codes/{settings.name}",
        "logits": "cosine",
        "unit": f"round of {_ROUND} steps",
    }
    write_group(run.heads, str(settings.name), arrays, attributes)
