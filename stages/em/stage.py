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
from pipeline.condition import inspect_stage, read_record
from pipeline.devices import resolve_device
from pipeline.errors import RunError, UsageError
from pipeline.files import fingerprint
from pipeline.ledger import ShardRecord
from pipeline.manifest import read_manifest
from pipeline.progress import Screen
from pipeline.run import DEFAULT_NAME, Run
from pipeline.scheduler import announce
from pipeline.settings import did_you_mean
from pipeline.stage import Plan, ShardPlan, Stage
from pipeline.store import consolidate, open_arrays, read_group, take_rows, write_group
from stages.em.class_count import ClassCount, estimate_classes
from stages.em.fit import FitBatch, FitState, initialise, run_epochs, start_at
from stages.em.prototypes import Prototypes
from stages.em.settings import EmSettings

_COLLAPSED = 1e-3
_BLOCK = 256


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
        """Return ``extract`` and what else is read: proposals, augmented views, codes."""
        keys = ["extract"]
        if settings.student == "photometric":
            keys.append("views")
        if settings.method == "primaps" or settings.classes == "auto":
            keys.append("masks")
        if settings.head is not None:
            keys.append(f"encode/{settings.head}")
        return keys

    def resolve(self, run: Run, settings: EmSettings) -> EmSettings:
        """Choose the splits, the number of classes, and the view of the running prototypes."""
        if settings.head is not None and settings.head not in run.names("encode"):
            raise UsageError(
                f"--head {settings.head}: the run has no such head"
                f"{did_you_mean(settings.head, run.names('encode'))}; train it with "
                f"`primaps-pipe head {run.quoted} --name {settings.head}`."
            )
        manifest = read_manifest(run.require())
        manifest.check_splits(settings.splits)
        known = manifest.splits
        return settings.replace(
            splits=settings.splits or (("train",) if "train" in known else known),
            classes=settings.classes or _count_clusters(run, settings.head),
            student=_choose_student(run, settings),
        )

    def plan(self, run: Run, settings: EmSettings, screen: Screen) -> Plan:
        """Plan one shard: the fit."""
        source = "extract" if settings.head is None else f"encode/{settings.head}"
        channels = read_record(run, source).facts["channels"]
        # PCA gives no more directions than there are channels; a probe has as many as it has
        if settings.head is None and settings.classes != "auto" and settings.classes > channels:
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
        count = None
        if settings.classes == "auto":
            announce(say="number of classes")
            count = _count_classes(run, settings)
            settings = settings.replace(classes=count.classes)
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
            if settings.head is None:
                state = initialise(cache.read_sample, cache.read_epoch, cache.steps, settings)
            else:
                state = start_at(_read_probe(run, settings).to(device))
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
        _write_fit(run, settings, state, count)
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
                f"em/{settings.name}: {len(dead)} of {len(result['usage'])} classes are hardly "
                f"used (under {100 * _COLLAPSED:g} % of the pixels: {', '.join(map(str, dead))}); "
                "fewer --classes, or another --seed, may fit better."
            )
        return [
            f"em: {len(result['usage'])} prototypes from {result['windows']} windows, "
            f"loss {result['loss']:.4f}, in {run.em / settings.name}"
        ]


def _describe_epoch(state: FitState) -> str:
    shares = " ".join(f"{100 * share:.1f}" for share in state.usage[-1])
    return f"loss {state.loss[-1]:.4f}, class usage {shares} %"


def _count_clusters(run: Run, head: str | None) -> int:
    return int(read_record(run, f"head/{head}").facts["classes"])


def _count_classes(run: Run, settings: EmSettings) -> ClassCount:
    """Estimate the number of classes from the proposals of the windows to fit on."""
    windows = [w.index for w in read_manifest(run).usable_windows(splits=settings.splits)]
    arrays = open_arrays(run.masks, ["pooled", "area"])
    shape = arrays["pooled"].shape
    pooled = []
    for rows in np.array_split(np.array(windows), -(-len(windows) // _BLOCK)):
        block = np.empty((len(rows), *shape[1:]), np.float16)
        area = np.empty((len(rows), shape[1]), np.uint32)
        take_rows(arrays["pooled"], rows, block)
        take_rows(arrays["area"], rows, area)
        pooled.append(block[area > 0].astype(np.float32))
    try:
        return estimate_classes(
            np.concatenate(pooled), seed=settings.seed, most=settings.most_classes
        )
    except ValueError as error:
        raise RunError(f"--classes auto: {error}; give --classes a number.") from error


def _choose_student(run: Run, settings: EmSettings) -> str:
    """Name what ``auto`` means, and refuse views that there are not."""
    if settings.method != "primaps":
        return "clean"
    if settings.student == "auto":
        return "photometric" if _list_augmented(run) else "clean"
    if settings.student == "photometric" and not _list_augmented(run):
        raise UsageError(
            "--student photometric: there are no augmented views; run "
            f"`primaps-pipe extract {run.quoted} --views clean,photometric` first."
        )
    return settings.student


def _list_augmented(run: Run) -> list[str]:
    record = inspect_stage(run, "views").record
    return [] if record is None else [v for v in record.facts["views"] if v != "clean"]


def _read_probe(run: Run, settings: EmSettings) -> Tensor:
    arrays, _ = read_group(run.heads, str(settings.head))
    probe = torch.from_numpy(arrays["probe"])
    if len(probe) != settings.classes:
        raise UsageError(
            f"--classes {settings.classes}: the probe of the head {settings.head} has "
            f"{len(probe)} clusters; leave --classes out, or train a head with as many."
        )
    return probe


@dataclass(frozen=True)
class Cache:
    """The cached arrays that a fit reads, as tensors on its device.

    Attributes
    ----------
    arrays
        ``clean`` and, for PriMaPs-EM, ``proposals``; the windows are the first axis. ``clean`` may
        be a pair with the mirror image's, ``student`` holds such a pair for every augmented view.
    windows
        Indices of the windows to fit on, int64 [window], ascending.
    settings
        Seed, batch size, size of the sample.
    device
        Where the tensors go.
    """

    arrays: Mapping[str, zarr.Array | tuple[zarr.Array, ...]]
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
        for _, features in self._widen("clean", self._stream(windows, ["clean"]).read_epoch()):
            yield features

    def read_epoch(self, epoch: int) -> Iterator[FitBatch]:
        """Read the batches of an epoch; those of the initialisation, -1, -2, …, are clean.

        Yields
        ------
        FitBatch
            Its features are overwritten by the next.
        """
        names = self.arrays if epoch >= 0 else ["clean"]
        choose = self._draw_views if epoch >= 0 else None
        # a seed sequence takes no negative numbers
        batches = self._stream(self.windows, names).read_epoch(
            self.settings.seed, int(epoch < 0), abs(epoch), choose=choose
        )
        student = torch.empty(0)
        for batch, features in self._widen("clean", batches):
            ids = batch.arrays.get("proposals")
            if ids is not None and "clean" in batch.choices:
                mirrored = batch.choices["clean"] == 1
                ids[mirrored] = ids[mirrored][:, :, ::-1]
            if "student" in batch.arrays:
                student = self._copy(batch.arrays["student"], student)
            yield FitBatch(
                features,
                None if ids is None else torch.from_numpy(ids).to(self.device),
                student[: len(features)] if len(student) else None,
            )

    def _draw_views(self, generator: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        mirrored = generator.integers(_count(self.arrays["clean"]), size=count)
        if "student" not in self.arrays:
            return {"clean": mirrored}
        views = _count(self.arrays["student"]) // _count(self.arrays["clean"])
        drawn = generator.integers(views, size=count)
        # the views lie in pairs where windows are mirrored
        return {"clean": mirrored, "student": _count(self.arrays["clean"]) * drawn + mirrored}

    def _widen(self, name: str, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Tensor]]:
        # One buffer for all batches: to free and allocate the largest tensor in every step frays
        # the allocator's memory, and more of it the longer an epoch is.
        wide = torch.empty(0)
        for batch in batches:
            wide = self._copy(batch.arrays[name], wide)
            yield batch, wide[: len(batch.windows)]

    def _copy(self, array: np.ndarray, wide: Tensor) -> Tensor:
        # half the bytes cross to the device, and are widened there
        features = torch.from_numpy(array).to(self.device)
        if len(wide) < len(features):
            wide = torch.empty_like(features, dtype=torch.float32)
        wide[: len(features)].copy_(features)
        return wide

    def _stream(self, windows: np.ndarray, names: Iterable[str]) -> BatchStream:
        arrays = {name: self.arrays[name] for name in names}
        return BatchStream(arrays, windows, self.settings.batch_size)


def _count(source: zarr.Array | tuple[zarr.Array, ...]) -> int:
    return len(source) if isinstance(source, tuple) else 1


def _open_cache(run: Run, settings: EmSettings, device: torch.device) -> Cache:
    store = run.features if settings.head is None else run.codes(settings.head)
    windows = [window.index for window in read_manifest(run).usable_windows(splits=settings.splits)]
    if settings.method != "primaps":
        return Cache(open_arrays(store, ["clean"]), np.array(windows), settings, device)

    def open_views(names: Mapping[str, str]) -> tuple[zarr.Array, ...]:
        wanted = [n for pair in names.items() for n in (pair if settings.mirror else pair[:1])]
        arrays = open_arrays(store, wanted)
        return tuple(arrays[name] for name in wanted)

    arrays: dict[str, zarr.Array | tuple[zarr.Array, ...]] = {
        "clean": open_views({"clean": "mirror"}),
        **open_arrays(run.masks, ["proposals"]),
    }
    if settings.student == "photometric":
        views = {view: f"{view}_mirror" for view in _list_augmented(run)}
        arrays["student"] = open_views(views)
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


def _write_fit(run: Run, settings: EmSettings, state: FitState, count: ClassCount | None) -> None:
    axes = ("class", "channel")
    arrays = {
        "prototypes": (state.running.weight().cpu().numpy(), axes),
        "momentum_prototypes": (state.momentum.weight().cpu().numpy(), axes),
        "initial_prototypes": (state.initial.weight().cpu().numpy(), axes),
        "loss": (np.array(state.loss, np.float32), ("epoch",)),
        "class_usage": (np.array(state.usage, np.float32), ("epoch", "class")),
    }
    attributes: dict[str, Any] = {
        "method": settings.method,
        "classes": settings.classes,
        "seed": settings.seed,
        "splits": list(settings.splits),
        # cosine K-means knows no norms: its logits are cosines, PriMaPs-EM's are inner products
        "logits": "inner product" if settings.method == "primaps" else "cosine",
        "features": "features" if settings.head is None else f"codes/{settings.head}",
    }
    if count is not None:
        attributes |= {
            "classes_curve": [list(pair) for pair in count.curve],
            "classes_label": "mean silhouette of the proposals",
        }
    write_group(run.em, settings.name, arrays, attributes)
