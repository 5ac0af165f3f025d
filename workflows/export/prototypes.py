"""The file of prototypes: one safetensors file with all that labelling new images needs.

Tensors: ``prototypes`` [class, channel], ``bias`` [class] where there is one, and the layers of the
head (``head.<name>``) where the prototypes are of codes. Everything else is one JSON text under the
key ``primaps`` of the file's metadata, with a version of its own. Reading it executes nothing.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pipeline.errors import RunError, UsageError
from pipeline.images.reading import PERCENTILES, Taking
from pipeline.run.directory import CLEAN, RunDirectory
from pipeline.run.evaluation import open_evaluation
from pipeline.run.ledger import read_record
from pipeline.run.manifest import read_manifest
from pipeline.storage.files import checksum, confine_writes, write_bytes
from pipeline.storage.places import require_local
from stages import SETTINGS
from stages.artefacts import open_evaluated
from stages.crf.settings import CrfSettings
from stages.extract.backbones import describe_backbone
from stages.head.projection import ProjectionHead
from stages.head.stage import load_head
from stages.labelling import MAIN, Classifier

KEY = "primaps"
SUFFIX = ".safetensors"
FILE = f"prototypes{SUFFIX}"
_MOST_BYTES = 2**30
_HEAD = "head."

_Byte = Annotated[int, Field(ge=0, le=255)]
_Floats = tuple[float, float, float]


class ClusterFacts(BaseModel, frozen=True, extra="forbid"):
    """Name and colour of a cluster, and the class that it was matched to."""

    name: str = Field(max_length=1000)
    colour: tuple[_Byte, _Byte, _Byte]
    class_index: int | None = None


class PrototypeFacts(BaseModel, frozen=True, extra="forbid"):
    """What the file says besides its tensors."""

    format: Literal["primaps-pipe prototypes"] = "primaps-pipe prototypes"
    version: Literal[1] = 1
    made_by: str = Field(max_length=200)
    backbone: str = Field(min_length=1, max_length=500)
    weights_digest: str = Field(pattern=r"^([0-9a-f]{64})?$")
    weights_source: str = Field(max_length=10_000)
    patch: int = Field(ge=1, le=4096)
    channels: int = Field(ge=1, le=1_000_000)
    mean: _Floats
    std: _Floats
    precision: Literal["float32", "bfloat16"]
    size: int = Field(ge=1, le=16384)
    # of the pictures whose features are labelled, where they are finer than the windows
    side: int | None = Field(default=None, ge=1, le=16384)
    frame: Literal["whole", "centre"]
    overlap: float = Field(ge=0, lt=1)
    bands: str | None = Field(default=None, max_length=100)
    range: str | None = Field(default=None, max_length=100)
    logits: Literal["inner product", "cosine"]
    gain: float = Field(gt=0, allow_inf_nan=False)
    head_channels: int | None = Field(default=None, ge=1, le=1_000_000)
    crf: str = Field(max_length=100)
    crf_settings: CrfSettings
    clusters: tuple[ClusterFacts, ...] = Field(min_length=1, max_length=255)


@dataclass(frozen=True)
class Prototypes:
    """A file of prototypes, read and checked."""

    facts: PrototypeFacts
    classifier: Classifier
    head: ProjectionHead | None
    digest: str


def export_prototypes(
    run: RunDirectory, out: Path, *, em: str | None, head: str | None
) -> list[str]:
    """Write the file of prototypes of a fit or head."""
    require_local(out, f"--out {out}: an export needs a local folder; copy it there afterwards.")
    file = out if out.suffix == SUFFIX and not out.is_dir() else out / FILE
    facts, tensors = _gather(run, em, head)
    content = save(tensors, {KEY: facts.model_dump_json(exclude=_unsaid(facts))})
    if file.is_file() and file.read_bytes() != content:
        try:
            read_prototypes(file)
        except UsageError as error:
            raise RunError(
                f"{file} is there and holds something else; give another --out."
            ) from error
    with confine_writes(file.parent):
        write_bytes(file, content)
    count = len(facts.clusters)
    return [
        f"export: {count} prototypes of {facts.made_by} in {file} ({len(content) / 1e3:.0f} kB)",
        f"export: `primaps-pipe predict IMAGES --prototypes {shlex.quote(str(file))} --out DIR` "
        "labels new images",
    ]


def _unsaid(facts: PrototypeFacts) -> set[str]:
    return {name for name in ("bands", "range", "side") if getattr(facts, name) is None}


def _describe_reading(run: RunDirectory, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give bands and range of the photographs, which new ones must be read by, too."""
    bands, range = settings.get("bands"), settings.get("range")
    if range == PERCENTILES:
        digests = read_manifest(run).images.column("digest").to_pylist()
        range = next((found for each in digests if (found := Taking.parse(each).range)), None)
    return {"bands": bands, "range": range}


def _gather(
    run: RunDirectory, em: str | None, head: str | None
) -> tuple[PrototypeFacts, dict[str, NDArray[np.float32]]]:
    evaluation = open_evaluation(run, em, head, SETTINGS)
    subject, settings, look = evaluation.subject, evaluation.record.settings, evaluation.look()
    artefacts = open_evaluated(run, evaluation.record)
    classifier, view = artefacts.classifiers[MAIN], artefacts.view
    tensors = {"prototypes": _array(classifier.prototypes)}
    if classifier.bias is not None:
        tensors["bias"] = _array(classifier.bias)
    made = read_record(run, "extract")
    channels = None
    if artefacts.features != run.features:
        name = artefacts.features.stem
        channels = int(read_record(run, f"head/{name}").facts["channels"])
        layers = load_head(run, name).state_dict()
        tensors |= {_HEAD + layer: _array(values) for layer, values in layers.items()}
    backbone = describe_backbone(made.facts["backbone"])
    facts = PrototypeFacts(
        made_by=subject.key,
        # without folders of this machine: the file goes elsewhere
        weights_source=re.sub(r"(?<!\S)/.*/", "", made.facts["weights_source"]),
        mean=backbone.mean,
        std=backbone.std,
        **{n: made.facts[n] for n in ("backbone", "weights_digest", "patch", "channels")},
        **{n: made.settings[n] for n in ("precision", "size", "frame", "overlap")},
        side=None if view == CLEAN else read_record(run, f"views/{view}").facts["side"],
        **_describe_reading(run, made.settings),
        logits="cosine" if classifier.logits == "cosine" else "inner product",
        gain=classifier.gain,
        head_channels=channels,
        crf=settings["crf"],
        crf_settings=CrfSettings(),
        clusters=tuple(
            ClusterFacts(name=name, colour=colour, class_index=matched)
            for name, colour, matched in zip(
                look.names, look.colours, look.classes or repeat(None), strict=False
            )
        ),
    )
    return facts, tensors


def _array(values: torch.Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(values.detach().cpu().numpy().astype(np.float32))


def read_prototypes(file: Path) -> Prototypes:
    """Read a file of prototypes and check all that it says."""
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise UsageError(f"--prototypes {file}: larger than any file of prototypes is.")
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(
            f"--prototypes {file}: {error.strerror or error}; "
            "`primaps-pipe export RUN --format prototypes` writes one."
        ) from error
    try:
        tensors = load(content)
        facts = PrototypeFacts.model_validate_json(_read_metadata(content)[KEY])
        return _assemble(facts, tensors, checksum(content))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _unreadable(file, f"{where}: {first['msg']}") from error
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise _unreadable(file, " ".join(str(error).split())) from error


def _unreadable(file: Path, reason: str) -> UsageError:
    return UsageError(
        f"--prototypes {file} is not a file of prototypes that this version reads ({reason}); "
        "`primaps-pipe export RUN --format prototypes` writes one."
    )


def _read_metadata(content: bytes) -> dict[str, Any]:
    """Read the metadata from the header, whose length the first eight bytes give."""
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    if KEY not in metadata:
        raise ValueError("it has no metadata of primaps-pipe")
    return dict(metadata)


def _assemble(facts: PrototypeFacts, tensors: dict[str, NDArray[Any]], digest: str) -> Prototypes:
    """Put the tensors together, and refuse those that do not fit one another."""
    for name, values in tensors.items():
        if values.dtype != np.float32 or not np.isfinite(values).all():
            raise ValueError(f"{name} does not hold finite float32 numbers")
    prototypes = tensors.pop("prototypes")
    bias = tensors.pop("bias", None)
    layers = {n.removeprefix(_HEAD): v for n, v in tensors.items() if n.startswith(_HEAD)}
    if len(layers) != len(tensors) or bool(layers) != (facts.head_channels is not None):
        raise ValueError(f"its tensors are {', '.join(sorted(tensors))}")
    if prototypes.ndim != 2 or len(prototypes) != len(facts.clusters):
        raise ValueError(f"prototypes {prototypes.shape} for {len(facts.clusters)} clusters")
    head = None
    width = facts.channels
    if layers:
        width = prototypes.shape[1]
        if facts.head_channels != facts.channels:
            raise ValueError(f"a head of {facts.head_channels} channels on {facts.channels}")
        head = ProjectionHead(facts.channels, width, torch.Generator())
        head.load_state_dict({name: torch.from_numpy(v) for name, v in layers.items()})
        head.eval()
    if prototypes.shape[1] != width:
        raise ValueError(f"prototypes of {prototypes.shape[1]} channels on {width}")
    classifier = Classifier(
        torch.from_numpy(prototypes),
        bias=None if bias is None else torch.from_numpy(bias),
        logits=facts.logits,
        gain=facts.gain,
    )
    return Prototypes(facts, classifier, head, digest)
