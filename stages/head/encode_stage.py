"""The encode stage: features and a trained head -> codes, one store per head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from pipeline.compute.devices import resolve_device
from pipeline.compute.memory import compute_halving
from pipeline.compute.scheduler import announce
from pipeline.errors import RunError
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import ShardRecord, list_photometric, read_record
from pipeline.run.manifest import read_manifest
from pipeline.run.stage import Plan, ShardPlan, Stage
from pipeline.storage.arrays import (
    ArraySpec,
    open_arrays,
    prepare_arrays,
    read_group,
    read_rows,
    write_shard,
)
from pipeline.storage.files import fingerprint
from stages.head.projection import ProjectionHead
from stages.head.settings import EncodeSettings


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
        names = _list_views(run)
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
        names = _list_views(run)
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


def encode(head: ProjectionHead, features: torch.Tensor) -> np.ndarray:
    """Encode features [window, row, column, channel] as float16 [window, row, column, code]."""
    with torch.inference_mode():
        codes: np.ndarray = head(features.float()).half().cpu().numpy()
    return codes


def encode_windows(
    head: ProjectionHead, features: np.ndarray, batch: int, device: torch.device
) -> np.ndarray:
    """Encode many windows, so many at once; fewer where memory is short."""
    # batches of one length: on a processor, threads share out the windows of a batch
    even = -(-len(features) // -(-len(features) // batch))
    parts = compute_halving(
        lambda part: encode(head, torch.from_numpy(part).to(device)),
        features,
        even,
        what="encode",
        device=device,
    )
    return np.concatenate(parts)


def load_head(run: RunDirectory, name: str) -> ProjectionHead:
    """Load a trained head, on the processor."""
    arrays, _ = read_group(run.heads, name)
    facts = read_record(run, f"head/{name}").facts
    head = ProjectionHead(facts["channels"], facts["dim"], torch.Generator())
    prefix = "head."
    head.load_state_dict(
        {
            n.removeprefix(prefix): torch.from_numpy(a)
            for n, a in arrays.items()
            if n.startswith(prefix)
        }
    )
    return head.eval()


def _list_views(run: RunDirectory) -> list[str]:
    augmented = list_photometric(run)
    return ["clean", "mirror", *augmented, *(f"{view}_mirror" for view in augmented)]
