"""The head and the encode stage: cached features -> a small network on them -> its codes.

One group of heads.zarr, and one store of codes, for every head.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, islice
from typing import Any, ClassVar

import numpy as np
import torch

from pipeline.compute.devices import resolve_device, resolve_precision
from pipeline.compute.memory import explain_shortage
from pipeline.compute.scheduler import announce
from pipeline.errors import RunError, UsageError
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import ShardRecord, read_record
from pipeline.run.manifest import read_manifest
from pipeline.run.stage import Plan, ShardPlan, Stage
from pipeline.run.stage import Training as TrainingStage
from pipeline.storage.arrays import (
    ArraySpec,
    open_arrays,
    prepare_arrays,
    read_group,
    read_rows,
    write_group,
    write_shard,
)
from pipeline.storage.files import fingerprint
from stages.artefacts import list_photometric, list_views
from stages.clustering import warn_of_unused
from stages.head.material import Material
from stages.head.methods import Training, build_method
from stages.head.projection import ProjectionHead, encode_windows
from stages.head.settings import METHODS, EncodeSettings, HeadSettings, get_preset

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
        """Return ``extract``, and the crops, jittered views and mixing that are used."""
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
        method = METHODS[settings.method]
        chosen: dict[str, Any] = {"dim": method.dim, "batch_size": method.batch_size}
        backbone = read_record(run, "extract").facts["backbone"]
        chosen |= get_preset(settings.method, manifest.dataset, backbone)
        if "warm_up" in chosen:
            # of a short training it would be most, or all
            chosen["warm_up"] = min(chosen["warm_up"], settings.steps // 5)
        # what is given stays, a 0 too
        chosen = {n: value for n, value in chosen.items() if getattr(settings, n) in (None, ())}
        return settings.replace(
            name=settings.name or settings.method,
            precision=resolve_precision(settings.precision, resolve_device(settings.device)),
            classes=classes,
            splits=splits,
            **chosen,
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
        needed = {"jittered_1", "mixing"}
        if METHODS[settings.method].needs_views and not needed <= views.keys():
            raise UsageError(
                f"--method {settings.method} needs jittered views and the last block's attention: "
                f"run `primaps-pipe extract {run.quoted} --views clean,photometric,jittered "
                "--attention` first."
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
        training = Training(method)
        checkpoint = self.checkpoint(run, settings, record.shards[shard])
        saved = checkpoint.load()
        if saved is not None:
            training.restore(*saved)
            announce(advance=training.step)
        batches = material.read_steps(training.step)
        while training.step < settings.steps:
            size = min(_ROUND, settings.steps - training.step)
            training.run_round(islice(batches, size))
            checkpoint.save(*training.pack())
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
        warn_of_unused(screen.warn, self.key(settings), result["usage"])
        return [
            f"head: {settings.method} with {settings.dim} channels from {result['windows']} "
            f"windows, loss {result['loss']:.4f}, in {run.heads / str(settings.name)}"
        ]


def _list_views(run: RunDirectory, settings: HeadSettings) -> dict[str, list[str]]:
    """List the further views that a method trains on, of those that the run holds: their arrays."""
    records = list_views(run)
    method = METHODS[settings.method]
    used = ["crops"] if method.uses_crops else []
    if method.needs_views:
        used += [*(name for name in records if name.startswith("jittered")), "mixing"]
    names = [name for name in used if name in records]
    return {name: records[name].facts["arrays"] for name in names}


def _open_material(run: RunDirectory, settings: HeadSettings) -> Material:
    names = _list_views(run, settings)
    arrays = open_arrays(run.features, ["clean", *chain.from_iterable(names.values())])
    usable = read_manifest(run).usable_windows(splits=settings.splits)
    views = tuple(arrays[name] for name in ("clean", *names.get("crops", ())))
    assert settings.batch_size is not None
    material = Material(
        arrays=views,
        windows=np.array([window.index for window in usable]),
        images=np.tile([window.image for window in usable], len(views)),
        batch=settings.batch_size,
        seed=settings.seed,
        device=resolve_device(settings.device),
        augmented=tuple(arrays[name] for name in names if name.startswith("jittered")),
        mixing=arrays.get("mixing"),
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


def load_head(run: RunDirectory, name: str) -> ProjectionHead:
    """Load a trained head, on the processor."""
    arrays, _ = read_group(run.heads, name)
    facts = read_record(run, f"head/{name}").facts
    head = ProjectionHead(facts["channels"], facts["dim"], torch.Generator())
    layers = {layer: torch.from_numpy(arrays[f"head.{layer}"]) for layer in head.state_dict()}
    head.load_state_dict(layers)
    return head.eval()


class Encode(Stage[EncodeSettings]):
    """``features.zarr`` and one group of ``heads.zarr`` -> ``codes/<head>.zarr``."""

    name: ClassVar[str] = "encode"
    unit: ClassVar[str] = "windows"
    verb: ClassVar[str] = "head"
    settings_class = EncodeSettings

    def key(self, settings: EncodeSettings) -> str:
        """Return ``encode/<head>``."""
        return f"encode/{settings.head}"

    def choose_key(self, run: RunDirectory, given: Mapping[str, Any]) -> str:
        """Return ``encode/<head>``."""
        return f"encode/{given['head']}"

    def name_options(self, settings: EncodeSettings) -> str:
        """Return ``--name``: the head's verb encodes, too."""
        return f" --name {settings.head}"

    def inputs(self, run: RunDirectory, settings: EncodeSettings) -> list[str]:
        """Return ``extract``, the augmented views, and the head."""
        views = [f"views/{view}" for view in list_photometric(run)]
        return ["extract", *views, f"head/{settings.head}"]

    def plan(self, run: RunDirectory, settings: EncodeSettings, screen: Screen) -> Plan:
        """Plan one shard for every shard of features."""
        extract, head = read_record(run, "extract"), read_record(run, f"head/{settings.head}")
        base = fingerprint(self.name, self.version, settings.output_settings(), head.digest)
        names = _list_encoded(run)
        sources = [read_record(run, key).shards for key in self.inputs(run, settings)[:-1]]
        total, rows = len(read_manifest(run).windows), extract.settings["shard_size"]
        shards = [
            ShardPlan(fingerprint(base, names, prints), min(rows, total - number * rows))
            for number, prints in enumerate(zip(*sources, strict=True))
        ]
        facts = {
            "views": names,
            "augmented": list_photometric(run),
            "channels": head.facts["dim"],
        }
        return Plan(shards, facts)

    def prepare(self, run: RunDirectory, settings: EncodeSettings, plan: Plan) -> None:
        """Allocate one array per view."""
        extract = read_record(run, "extract")
        spec = ArraySpec(
            shape=(*extract.facts["grid"], plan.facts["channels"]),
            dims=("window", "row", "column", "channel"),
            dtype="float16",
            compress=False,
            attributes={"long_name": f"codes of the head {settings.head}", "units": "1"},
        )
        prepare_arrays(
            run.codes(settings.head),
            dict.fromkeys(plan.facts["views"], spec),
            len(read_manifest(run).windows),
            extract.settings["shard_size"],
            {"head": settings.head},
        )

    def compute(self, run: RunDirectory, settings: EncodeSettings, shard: int) -> dict[str, Any]:
        """Encode one block of windows in every view."""
        device = resolve_device(settings.device)
        head = load_head(run, settings.head).to(device)
        rows = read_record(run, "extract").settings["shard_size"]
        start, stop = shard * rows, min((shard + 1) * rows, len(read_manifest(run).windows))
        names = _list_encoded(run)
        blocks = {}
        for name, array in open_arrays(run.features, names).items():
            features = read_rows(array, start, stop)
            blocks[name] = encode_windows(head, features, settings.batch_size, device)
            if not np.isfinite(blocks[name]).all():
                raise RunError(
                    f"encode: codes of shard {shard} are not finite in float16; "
                    "train the head again with a smaller --learning-rate."
                )
        write_shard(run.codes(settings.head), blocks, shard, rows)
        announce(advance=stop - start)
        return {"device": device.type}

    def finish(
        self,
        run: RunDirectory,
        settings: EncodeSettings,
        records: dict[int, ShardRecord],
        screen: Screen,
    ) -> list[str]:
        """Say where the codes are."""
        channels = read_record(run, f"head/{settings.head}").facts["dim"]
        return [f"encode: codes of {channels} channels in {run.codes(settings.head)}"]


def _list_encoded(run: RunDirectory) -> list[str]:
    """List the arrays of features that a head makes codes of."""
    augmented = list_photometric(run)
    return ["clean", "mirror", *augmented, *(f"{view}_mirror" for view in augmented)]
