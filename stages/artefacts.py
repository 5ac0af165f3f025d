"""A run and one of its fits or heads, read image by image: to label, to count, to show."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compute.devices import resolve_device
from pipeline.datasets.base import Dataset
from pipeline.datasets.definition import IGNORE
from pipeline.datasets.labels import LabelCounts
from pipeline.errors import RunError, StaleError
from pipeline.images.windows import Cover
from pipeline.run.directory import CLEAN, RunDirectory, Subject, name_subject
from pipeline.run.frames import open_truth, read_frame, read_gaps, resize_labels
from pipeline.run.ledger import StageRecord, inspect_stage, read_record
from pipeline.run.manifest import Image, Manifest, read_manifest
from pipeline.run.status import stat_label
from pipeline.storage.arrays import open_arrays, read_group, read_rows
from pipeline.storage.files import write_bytes
from stages.labelling import MAIN, RUNNING, Classifier, classify_windows, scale_box


@dataclass(frozen=True)
class Artefacts:
    """A run and one of its fits or heads, open for reading."""

    run: RunDirectory
    manifest: Manifest
    dataset: Dataset
    subject: Subject
    features: Path
    classifiers: Mapping[str, Classifier]
    size: int
    view: str = CLEAN  # which is labelled

    @cached_property
    def has_proposals(self) -> bool:
        """Whether there are proposals of these very features."""
        # asked for pictures alone: it takes the record of every shard
        return inspect_stage(self.run, "masks").state == "fresh" and self.run.masks.is_dir()

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the positions of a window, whichever view is labelled."""
        rows, columns = open_arrays(self.features, ["clean"])["clean"].shape[1:3]
        return rows, columns

    def open_views(self) -> dict[str, zarr.Array]:
        """Open what is labelled, as :func:`open_pair` does."""
        return open_pair(self.features, self.view)

    def cover(self, image: Image) -> Cover:
        """Return what of an image its windows cover."""
        return Cover(tuple(self.manifest.windows_of(image)))

    @property
    def clusters(self) -> int:
        """Number of clusters of the labels."""
        return self.classifiers[MAIN].classes

    def read_logits(
        self, images: Sequence[Image], *, device: str, names: Sequence[str] | None = None
    ) -> dict[int, dict[str, Tensor]]:
        """Classify every position of some images, lying together in the arrays, at once."""
        covers = {image.image: self.cover(image) for image in images}
        if not covers:
            return {}
        first = min(cover.rows.start for cover in covers.values())
        last = max(cover.rows.stop for cover in covers.values())
        views = self.open_views()
        logits = classify_windows(
            lambda view, start, stop: read_rows(views[view], start, stop),
            range(first, last),
            {name: self.classifiers[name] for name in names or self.classifiers},
            values=math.prod(views["clean"].shape[1:]),
            device=resolve_device(device),
        )
        return {
            row: {
                name: values[cover.rows.start - first : cover.rows.stop - first]
                for name, values in logits.items()
            }
            for row, cover in covers.items()
        }

    def read_pixels(self, image: Image) -> NDArray[np.uint8]:
        """Read the covered part of the resized image, uint8 [y, x, rgb]."""
        cover = self.cover(image)
        return read_frame(self.manifest.root, image, *cover.resized)[cover.area]

    def read_truth(self, image: Image) -> NDArray[np.uint8] | None:
        """Read the label map of the covered part, uint8 [y, x]; None where there is none."""
        found = self.count_truth(image, read_gaps(self.manifest.root, image))
        return None if found is None else found[0]

    def count_truth(
        self, image: Image, gaps: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.uint8], LabelCounts] | None:
        """Read the label map as :meth:`read_truth`, and count its own pixels by their values.

        ``gaps`` are the pixels of the image that hold no data, [y, x]: they are ignored.
        """
        path = self.manifest.label_path(image)
        if path is None:
            return None
        cover = self.cover(image)
        truth = open_truth(self.dataset, path, image)
        box = scale_box(cover.box, cover.resized, (image.width, image.height))
        classes = truth.classes
        if gaps is not None:
            classes[gaps] = IGNORE
        return resize_labels(classes, *cover.resized)[cover.area], truth.count(box, gaps)

    def read_features(self, image: Image) -> NDArray[np.float32]:
        """Read the features of an image's windows, float32 [window, row, column, channel]."""
        clean = open_arrays(self.features, ["clean"])["clean"]
        rows = self.cover(image).rows
        return read_rows(clean, rows.start, rows.stop).astype(np.float32)

    def read_proposals(self, image: Image) -> NDArray[np.uint8] | None:
        """Read the proposals of an image's windows, uint8 [window, y, x].

        None where there are none of these features: a K-means fit needs no masks.
        """
        if not self.has_proposals:
            return None
        proposals = open_arrays(self.run.masks, ["proposals"])["proposals"]
        rows = self.cover(image).rows
        return read_rows(proposals, rows.start, rows.stop)


def open_artefacts(
    run: RunDirectory, em: str | None, *, head: str | None = None, gain: float
) -> Artefacts:
    """Open a run and one of its fits or heads; ``gain`` is the factor on cosine logits."""
    manifest = read_manifest(run)
    subject = name_subject(em, head)
    arrays, attributes = read_group_of(run, subject)
    try:
        classifiers = _read_classifiers(arrays, attributes, gain)
    except (KeyError, ValueError) as error:
        raise RunError(
            f"{subject.key} in {run.path} cannot be read as a classifier ({error}); "
            f"run `primaps-pipe {subject.kind} {run.quoted} --name {subject.name} --force` again."
        ) from error
    return Artefacts(
        run=run,
        manifest=manifest,
        dataset=manifest.open_dataset(),
        subject=subject,
        features=find_features(run, attributes),
        classifiers=classifiers,
        size=read_record(run, "extract").facts["size"],
        view=attributes.get("view", CLEAN),
    )


def open_evaluated(run: RunDirectory, record: StageRecord) -> Artefacts:
    """Open a run and the fit or head of an evaluation, with what it labelled by."""
    settings = record.settings
    artefacts = open_artefacts(
        run, settings["em"], head=settings["head"], gain=settings["cosine_gain"]
    )
    print_ = record.facts.get(OWN)
    return artefacts if print_ is None else replace_classifier(artefacts, print_)


# In the facts of an evaluation that labels by another classifier than its fit's: its fingerprint.
OWN = "classifier"


def replace_classifier(artefacts: Artefacts, print_: str) -> Artefacts:
    """Label by the classifier that was made for the evaluation, and by it alone."""
    file = classifier_file(artefacts.run, artefacts.subject)
    found = read_classifier(file, print_)
    if found is None:
        raise RunError(
            f"{file} is gone; run `primaps-pipe evaluate {artefacts.run.quoted}"
            f"{artefacts.subject.options}` again."
        )
    return replace(artefacts, classifiers={MAIN: found[0]})


def classifier_file(run: RunDirectory, subject: Subject) -> Path:
    """Return where the classifier lies that was made for the evaluation of a fit or head."""
    return run.state(f"evaluate/{subject.title}") / "classifier.npz"


def write_classifier(
    path: Path, fingerprint: str, classifier: Classifier, facts: Mapping[str, Any]
) -> None:
    """Write a classifier and what it was made from, atomically."""
    buffer = io.BytesIO()
    kept = {"logits": classifier.logits, "gain": classifier.gain} | dict(facts)
    record = np.array(json.dumps({**kept, "fingerprint": fingerprint}))
    content: dict[str, Any] = {"weight": classifier.prototypes, "record": record}
    if classifier.bias is not None:
        content["bias"] = classifier.bias
    np.savez(buffer, **content)
    write_bytes(path, buffer.getvalue())


def read_classifier(
    path: Path, fingerprint: str | None = None
) -> tuple[Classifier, dict[str, Any]] | None:
    """Read what :func:`write_classifier` wrote; None where there is nothing of the fingerprint."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as content:
            arrays = {name: content[name] for name in content.files}
        facts = json.loads(str(arrays.pop("record")))
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        kinds = {name: facts[name] for name in ("logits", "gain") if name in facts}
        classifier = Classifier(tensors["weight"], tensors.get("bias"), **kinds)
    except FileNotFoundError:
        return None
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        raise RunError(f"{path} cannot be read ({error}); delete it to make it again.") from error
    return (classifier, facts) if fingerprint in (None, facts["fingerprint"]) else None


# Of a fit, what clusters are joined and judged by: as large as all else a hundred times.
_SUMS = ("moments_", "known_", "held_")


def read_group_of(
    run: RunDirectory, subject: Subject, *, sums: bool = False
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read the arrays and attributes of a fit or a head; those of its sums if they are wanted."""
    store = run.em if subject.kind == "em" else run.heads
    return read_group(store, subject.name, leave_out=() if sums else _SUMS)


def label_file(folder: Path, image: Image) -> Path:
    """Return where the label map of an image lies."""
    return folder / image.split / f"{image.id}.png"


def fingerprint_image(manifest: Manifest, image: Image) -> tuple[Any, ...]:
    """Return what tells an image, its windows and its label map from others, JSON-able."""
    boxes = [window.box for window in manifest.windows_of(image)]
    return image.id, image.split, image.digest, boxes, stat_label(manifest, image)


def find_features(run: RunDirectory, attributes: Mapping[str, Any]) -> Path:
    """Return the store that a fit was made on, as its attributes name it."""
    name = str(attributes.get("features", "features"))
    kind, _, head = name.partition("/")
    if name == "features":
        return run.features
    if kind == "codes" and head:
        return run.codes(head)
    raise RunError(f"{run.path}: a fit names features {name!r}, which this version does not know.")


def open_pair(store: Path, view: str) -> dict[str, zarr.Array]:
    """Open a view of the windows and that of their mirror images: ``clean`` and ``mirror``.

    They are called so whatever the view is: what is labelled knows of no other.
    """
    names = (CLEAN, "mirror") if view == CLEAN else (view, f"{view}_mirror")
    arrays = open_arrays(store, names)
    return dict(zip((CLEAN, "mirror"), (arrays[name] for name in names), strict=True))


def list_views(run: RunDirectory) -> dict[str, StageRecord]:
    """Return the records of the further views of the features, but for those not asked for now."""
    if run.has_been_run("views"):
        # a version before this kept a ledger for all of them, which alone says what is asked for
        command = f"`primaps-pipe {read_record(run, 'views').command} {run.quoted}`"
        raise StaleError(
            f"views in {run.path} were made by an earlier version; run {command} once, which "
            "takes them over and computes none again."
        )
    # the shorter ones first, which brings numbers at their ends in order
    names = sorted(run.names("views"), key=lambda name: (len(name), name))
    records = {name: read_record(run, f"views/{name}") for name in names}
    return {name: record for name, record in records.items() if "dropped" not in record.facts}


def list_photometric(run: RunDirectory) -> list[str]:
    """Name the augmented views that the features are there of."""
    return [name for name in list_views(run) if name.startswith("photometric")]


def _read_classifiers(
    arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any], gain: float
) -> dict[str, Classifier]:
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    logits = attributes["logits"]
    if "probe" in tensors:
        return {MAIN: Classifier(tensors["probe"], logits=logits, gain=gain)}
    main = Classifier(
        tensors["momentum_prototypes"],
        bias=tensors.get("bias"),
        logits=logits,
        gain=gain,
    )
    # fits that were written before they said so: PriMaPs-EM alone had another classifier
    before = {RUNNING: "prototypes"} if attributes.get("method") == "primaps" else {}
    others = attributes.get("others", before)
    return {MAIN: main} | {
        name: Classifier(tensors[array], logits=logits, gain=gain)
        for name, array in others.items()
        if array in tensors
    }
