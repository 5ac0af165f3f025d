"""Prediction: new images labelled with a file of prototypes, without a run directory.

What is computed is what ``extract`` and ``evaluate`` compute, by their own functions: the same
windows, features of each and of its mirror image, logits, stitching and CRF; so the label maps have
the same bytes.

The output folder holds ``<id>.png``, or ``<id>.tif``, for every image, ``classes.json``, and
``predictions.jsonl``, a line for every image, which says what its label map was made from: what is
up to date is kept. Lines are appended block by block, with the checksums alone before the label
maps that they speak of, and whole after them; a later line about an image counts, and one that was
cut off does not. When all is done the file is written anew, in the order of the images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compute.devices import resolve_device
from pipeline.datasets import get_dataset
from pipeline.datasets.definition import png_palette
from pipeline.errors import (
    DatasetError,
    ImageError,
    RunError,
    StaleError,
    UsageError,
    WeightsError,
    count_of,
)
from pipeline.images.decoding import encode_png, is_whole_image
from pipeline.images.geo import (
    describe_unplaced,
    encode_geotiff,
    is_placed,
    read_place,
    require_rasterio,
)
from pipeline.images.windows import Cover, Window
from pipeline.progress import Screen
from pipeline.run.by_hand import BY_HAND
from pipeline.run.evaluation import choose_look
from pipeline.run.frames import count_threads, cut_groups, map_ahead, read_gaps
from pipeline.run.manifest import Image, Manifest
from pipeline.storage.files import (
    checksum,
    confine_writes,
    fingerprint,
    make_folder,
    remove_file,
    write_bytes,
    write_changed,
)
from pipeline.storage.locks import hold_lock
from pipeline.storage.places import (
    count_requests,
    make_absolute,
    require_local,
    resolve_inside,
)
from stages.crf.backends import Backend, choose_backend
from stages.extract.backbones import Backbone, build_backbone, describe_backbone
from stages.extract.listing import list_manifest
from stages.extract.settings import ExtractSettings
from stages.extract.views import (
    Clean,
    Fine,
    Part,
    check_backbone,
    compute_part,
    explain_faults,
    find_faulty,
)
from stages.head.projection import encode_windows
from stages.labelling import MAIN, Labelling, classify_windows, draw_labels, label_images
from workflows.export import GEOTIFF, PNG
from workflows.export.job import describe_places
from workflows.export.prototypes import PrototypeFacts, Prototypes, read_prototypes

# Windows whose features are in memory at a time.
_BLOCK = 64
VERSION = 1
INDEX = "predictions.jsonl"
_HEAD = {"format": "primaps-pipe predictions", "version": 1}
# The suffix of the label maps of every format.
SUFFIXES = {PNG: ".png", GEOTIFF: ".tif"}
_LOCK = ".predict.lock"

Views = Mapping[str, NDArray[np.float16]]


@dataclass(frozen=True)
class Labeller:
    """All that one image after the other is labelled with; ``batch_size`` windows at a time."""

    prototypes: Prototypes
    backbone: Backbone
    backend: Backend | None
    device: torch.device
    batch_size: int
    format: str = PNG


def label_block(
    labeller: Labeller, manifest: Manifest, images: Sequence[Image]
) -> Iterator[tuple[Image, bytes | str]]:
    """Label images; yield each with its map, a file, or with the reason why there is none."""
    views, reasons = _extract(labeller, manifest, images)
    yield from ((image, reasons[image.image]) for image in images if image.image in reasons)
    logits = _classify(labeller, views)
    good = [image for image in images if image.image not in reasons]
    counts = [len(manifest.windows_of(image)) for image in images]
    parts = {image.image: part for image, part in zip(images, logits.split(counts), strict=True)}

    def draw(image: Image, labelling: Labelling) -> tuple[Image, bytes]:
        cover = Cover(tuple(manifest.windows_of(image)))
        gaps = read_gaps(manifest.root, image)
        drawn = draw_labels(labelling.probabilities, cover, image.width, image.height, gaps)
        labels = first[drawn]
        if labeller.format == GEOTIFF:
            place = read_place(manifest.root, image.path, image.digest)
            return image, encode_geotiff(labels, palette, place)
        return image, encode_png(labels, palette)

    facts = labeller.prototypes.facts
    first, palette = join_names(facts), png_palette([each.colour for each in facts.clusters])
    yield from label_images(
        manifest, good, parts, facts.size, draw, labeller.backend, facts.crf_settings
    )


def _extract(
    labeller: Labeller, manifest: Manifest, images: Sequence[Image]
) -> tuple[Views, dict[int, str]]:
    """Extract the features of some images' windows; return them, and why some images failed."""
    facts = labeller.prototypes.facts
    windows = [window for image in images for window in manifest.windows_of(image)]
    places = {window.index: place for place, window in enumerate(windows)}
    part: Part = Clean() if facts.side is None else Fine(facts.side)
    grid = [facts.size // facts.patch] * 2
    laid_out = {"grid": grid, "patch": facts.patch, "channels": facts.channels}
    blocks = part.allocate(laid_out, len(windows)).values()
    views = dict(zip(("clean", "mirror"), blocks, strict=True))
    reasons: dict[int, str] = {}

    def note(group: list[Window], error: ImageError) -> None:
        reasons[group[0].image] = str(error)

    computed = compute_part(part, labeller.backbone, manifest, windows, labeller.batch_size, note)
    for numbers, found in computed:
        rows = [places[number] for number in numbers.tolist()]
        views["clean"][rows], views["mirror"][rows] = found
    faulty = find_faulty(views)
    if len(faulty):
        check_backbone(labeller.backbone, part.side or facts.size)
    return views, reasons | explain_faults(views, faulty, windows)


def _classify(labeller: Labeller, views: Views) -> Tensor:
    """Classify every position, of codes where the prototypes are of codes."""
    if labeller.prototypes.head is not None:
        head = labeller.prototypes.head.to(labeller.device)
        views = {
            view: encode_windows(head, values, labeller.batch_size, labeller.device)
            for view, values in views.items()
        }
    first = views["clean"]
    logits = classify_windows(
        lambda view, start, stop: views[view][start:stop],
        range(len(first)),
        {MAIN: labeller.prototypes.classifier},
        values=first[0].size,
        device=labeller.device,
    )
    return logits[MAIN]


class Predictions:
    """The label maps of a folder, and the line of each: what it was made from, by id of the image.

    What it is ``made`` from now is a fingerprint of the prototypes and the CRF. The folder may be
    new or old; one that holds something else is refused.
    """

    def __init__(self, folder: Path, made: str, format: str = PNG) -> None:
        self.folder = folder
        self.made = made
        self.suffix = SUFFIXES[format]
        own = {**_HEAD, **({} if format == PNG else {"labels": format})}
        self.file = folder / INDEX
        self._entries: dict[str, dict[str, Any]] = {}
        make_folder(folder)
        try:
            text = self.file.read_bytes()
        except FileNotFoundError:
            if any(not path.name.startswith(".") for path in folder.iterdir()):
                raise RunError(
                    f"{folder} is not empty and holds no predictions; give a new folder with --out."
                ) from None
            text = _line(own)
            write_changed(self.file, text)
        except OSError as error:
            raise RunError(f"cannot read {self.file}: {error.strerror or error}.") from error
        head, *lines, last = text.split(b"\n") if b"\n" in text else (text, b"")
        found = _parse(head) or {}
        if not _HEAD.items() <= found.items():
            raise RunError(
                f"{self.file} is not an index of predictions; give a new folder with --out."
            )
        if found != own:
            raise RunError(
                f"{folder} holds label maps of --format {found.get('labels', PNG)}; give that one, "
                "or a new folder with --out."
            )
        self._head = own
        if last:
            # cut off by a kill: what is appended must not become a part of it
            write_changed(self.file, text[: -len(last)])
        for line in lines:
            entry = _parse(line)
            if entry is not None and isinstance(entry.get("id"), str):
                self._entries[entry["id"]] = entry

    def has(self, image: Image) -> bool:
        """Whether the label map of an image is there, and of these very bytes and prototypes."""
        entry = self._entries.get(image.id, {})
        same = (entry.get("image"), entry.get("made")) == (image.digest, self.made)
        return same and self._file(image.id).is_file()

    def check(self, images: Sequence[Image]) -> None:
        """Refuse to write over label maps that a person has changed."""
        for image in images:
            if self._is_changed(image.id):
                raise RunError(
                    f"{self._file(image.id)} {BY_HAND} since predict wrote it; move it elsewhere "
                    "to keep it, or delete it to drop it, and run the same command again."
                )

    def write(self, maps: Sequence[tuple[Image, bytes]]) -> None:
        """Write label maps and their lines: a stopped prediction goes on behind them."""
        self.check([image for image, _ in maps])
        sums = {image.id: checksum(content) for image, content in maps}
        before = {name: self._entries.get(name, {}).get("checksums", []) for name in sums}
        self._add([{"id": n, "checksums": [*before[n], sum_]} for n, sum_ in sums.items()])
        for image, content in maps:
            write_bytes(self._file(image.id), content)
        self._add(
            [
                {"id": i.id, "image": i.digest, "made": self.made, "checksums": [sums[i.id]]}
                for i, _ in maps
            ]
        )

    def _add(self, entries: list[dict[str, Any]]) -> None:
        try:
            with self.file.open("ab") as stream:
                stream.write(b"".join(map(_line, entries)))
        except OSError as error:
            raise RunError(f"cannot write {self.file}: {error.strerror or error}.") from error
        self._entries |= {entry["id"]: entry for entry in entries}

    def _is_changed(self, name: str) -> bool:
        entry = self._entries.get(name, {})
        if not self._file(name).is_file() or ("made" in entry and "checksums" not in entry):
            return False  # an earlier version kept no checksums
        content = self._file(name).read_bytes()
        return checksum(content) not in entry.get("checksums", ()) and is_whole_image(content)

    def close(self, images: Sequence[Image]) -> int:
        """Write the file anew, and remove the label maps of images that cannot be read any more.

        Returns how many label maps are there that are of no listed image, or a person's.
        """
        lines, left = [self._head], 0
        for image in images:
            changed = not image.ok and self._is_changed(image.id)
            entry = self._entries.pop(image.id, {})
            if image.ok:
                lines.append(entry)
                continue
            if changed:
                left += 1
            elif "made" in entry:
                remove_file(self._file(image.id))
            lines.append({"id": image.id, "path": image.path, "skipped": image.reason})
        gone = [
            entry
            for _, entry in sorted(self._entries.items())
            if "made" in entry and self._file(entry["id"]).is_file()
        ]
        write_changed(self.file, b"".join(map(_line, [*lines, *gone])))
        return left + len(gone)

    def _file(self, name: str) -> Path:
        return resolve_inside(self.folder, f"{name}{self.suffix}")


def join_names(facts: PrototypeFacts) -> NDArray[np.uint8]:
    """Return the first cluster of the name of every cluster, as :class:`ClusterLook` has it."""
    names = {n: each.name for n, each in enumerate(facts.clusters)}
    return choose_look(len(names), None, (), (), names).first


def describe_classes(facts: PrototypeFacts) -> bytes:
    """Describe what the numbers in the label maps stand for, as JSON."""
    first = join_names(facts)
    classes = [
        {"id": n, "name": each.name, "colour": list(each.colour)}
        for n, each in enumerate(facts.clusters)
        if first[n] == n
    ]
    content = {"ids": "clusters", "ignore": 255, "made_by": facts.made_by, "classes": classes}
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


def predict_folder(
    images: Path,
    prototypes: Path,
    out: Path,
    *,
    weights: Path | None,
    crf: str,
    device: str,
    batch_size: int,
    format: str = PNG,
    screen: Screen,
) -> list[str]:
    """Label all images below a folder.

    Parameters
    ----------
    images
        Folder, or prefix of an object store, with images at any depth.
    prototypes
        File that ``export --format prototypes`` wrote.
    out
        Local folder; new, empty, or one of an earlier prediction.
    weights
        File of the backbone's weights; looked for as ``extract`` does when None.
    crf
        A backend of the dense CRF, ``none``, or ``auto``: with one where the labels that the
        prototypes were evaluated by had one.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    batch_size
        Windows per forward pass.
    format
        ``png``, or ``geotiff``, which keeps the georeference of photographs that have one.
    screen
        Where progress is shown.

    Returns
    -------
    list of str
        What was written and what was skipped, a sentence each.

    Raises
    ------
    UsageError
        The file is no file of prototypes, or a folder is not what is meant.
    WeightsError
        The weights are not found, or are not those that the prototypes were made with.
    DatasetError
        There are no images, or none can be labelled.
    """
    if format not in SUFFIXES:
        raise UsageError(f"--format {format!r}: give {' or '.join(SUFFIXES)}.")
    if format == GEOTIFF:
        require_rasterio(f"--format {format}")
    chosen = read_prototypes(prototypes)
    images = make_absolute(images)
    _check_out(out, images)
    if crf == "auto" and chosen.facts.crf in ("none", "pydensecrf"):
        # as the evaluation had it
        crf = chosen.facts.crf
    backend = choose_backend(crf, device)
    made = fingerprint(VERSION, chosen.digest, backend.name if backend else "none")
    manifest = _list(images, out, chosen.facts, screen)
    with confine_writes(out), hold_lock(out / _LOCK, what=f"the folder {out}", wait=False):
        predictions = Predictions(out, made, format)
        usable = [image for image in manifest.images if image.ok]
        _tell_places(manifest.root, usable, format, screen)
        pending = [image for image in usable if not predictions.has(image)]
        if pending:
            predictions.check(pending)
            backbone = _build(chosen.facts, weights, device, screen)
            labeller = Labeller(
                chosen, backbone, backend, resolve_device(device), batch_size, format
            )
            manifest = _label_all(labeller, manifest, pending, predictions, screen)
        write_changed(out / "classes.json", describe_classes(chosen.facts))
        left = predictions.close(manifest.images)
    return _describe(manifest, len(usable) - len(pending), left, out)


def _tell_places(root: Path, images: Sequence[Image], format: str, screen: Screen) -> None:
    """Say which georeferences the label maps do not keep."""
    if format != GEOTIFF:
        if lost := describe_places(root, images):
            screen.warn(f"predict: {lost} --format {GEOTIFF} keeps it.")
        return
    threads = count_requests(root, count_threads())
    placed = map_ahead(lambda i: is_placed(root, i.path, i.digest), images, threads, threads)
    unplaced = [i.path for i, there in zip(images, placed, strict=True) if not there]
    if unplaced:
        screen.warn(f"predict: {describe_unplaced(unplaced, len(images))}")


def _describe(manifest: Manifest, kept: int, left: int, out: Path) -> list[str]:
    rejected = manifest.rejected
    first = f"{rejected[0].path}: {rejected[0].reason}" if rejected else ""
    if len(rejected) == len(manifest.images):
        many = count_of(len(rejected), "images")
        raise DatasetError(f"of {many} none can be labelled (first: {first}).")
    there = f", {kept} of them there already" if kept else ""
    made = count_of(len(manifest.images) - len(rejected), "label maps")
    lines = [f"predict: {made} in {out}{there}"]
    if rejected:
        lines.append(
            f"predict: {len(rejected)} of {len(manifest.images)} images are skipped (first: "
            f"{first}); all reasons are in {out / INDEX}"
        )
    if left:
        lines.append(f"predict: {left} label maps of images that are gone are left in {out}")
    return lines


def _check_out(out: Path, images: Path) -> None:
    require_local(out, f"--out {out}: labels need a local folder; copy them there afterwards.")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a folder.")
    if out.resolve() in (images.resolve(), *images.resolve().parents):
        raise UsageError(
            f"--out {out} holds the images too: label maps must not lie among them; "
            "give another folder."
        )


def _list(images: Path, out: Path, facts: PrototypeFacts, screen: Screen) -> Manifest:
    """List the images and place their windows, as extract does."""
    dataset = get_dataset("folder")
    settings = ExtractSettings(
        dataset=dataset.name,
        root=images,
        splits=dataset.default_splits,
        size=facts.size,
        frame=facts.frame,
        overlap=facts.overlap,
        bands=facts.bands,
        range=facts.range,
    )
    return list_manifest(dataset, settings, (), [out], screen)


def _build(facts: PrototypeFacts, given: Path | None, device: str, screen: Screen) -> Backbone:
    """Build the backbone that the prototypes were made with; other weights are refused."""
    weights = describe_backbone(facts.backbone).find_weights(given, screen.note)
    if weights is not None:
        if weights.digest != facts.weights_digest:
            raise WeightsError(
                f"the weights at {weights.path} are not those that the prototypes were made with "
                f"(sha256 {weights.digest[:12]}…, not {facts.weights_digest[:12]}…, which came "
                f"from {facts.weights_source}); name the right file with --weights."
            )
        screen.note(f"predict: weights of {facts.backbone} from {weights.source}")
    backbone = build_backbone(
        facts.backbone,
        weights,
        size=facts.side or facts.size,
        device=resolve_device(device),
        precision=facts.precision,
    )
    if (backbone.patch, backbone.channels) != (facts.patch, facts.channels):
        raise WeightsError(
            f"{facts.backbone} has patches of {backbone.patch} pixels and {backbone.channels} "
            f"channels here, and {facts.patch} and {facts.channels} in the prototypes; install "
            "the version of timm that they were made with."
        )
    backbone.mean, backbone.std = facts.mean, facts.std
    return backbone


def _label_all(
    labeller: Labeller,
    manifest: Manifest,
    pending: Sequence[Image],
    predictions: Predictions,
    screen: Screen,
) -> Manifest:
    """Label images block by block; return the manifest with those rejected that failed."""
    reasons: dict[int, str] = {}
    try:
        with screen.count("predict", len(pending), "images") as counter:
            for block in cut_groups(pending, lambda i: len(manifest.windows_of(i)), _BLOCK):
                done = []
                for image, made in label_block(labeller, manifest, block):
                    if isinstance(made, bytes):
                        done.append((image, made))
                    else:
                        reasons[image.image] = made
                    counter.advance()
                predictions.write(done)
    except StaleError as error:
        reason = str(error).partition(";")[0]
        raise StaleError(
            f"an image has changed while it was labelled ({reason}); run the same command again."
        ) from error
    return manifest.reject(reasons)
