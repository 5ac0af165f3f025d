"""One image with everything that the stages have made of it so far, as one picture."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from pipeline.errors import ImageError, PipelineError, RunError, UsageError
from pipeline.run.directory import RunDirectory
from pipeline.run.frames import resize_labels
from pipeline.run.ledger import inspect_stage, read_record, require_fresh
from pipeline.run.manifest import Image, Manifest, read_manifest
from pipeline.run.reader import find_image
from pipeline.run.subject import (
    Evaluation,
    Subject,
    choose_look,
    choose_subject,
    open_evaluation,
    read_given_names,
)
from pipeline.storage.files import write_bytes
from stages import VERSIONS
from stages.crf import CrfSettings, choose_backend
from stages.evaluate.artefacts import Artefacts, open_artefacts
from stages.evaluate.settings import EvaluateSettings
from stages.labelling import MAIN, label_images, take_clusters
from stages.report.inspection.drawing import draw_sheet
from stages.report.inspection.sheet import Labels, View, make_sheet

_DEVICE = "auto"
# Key and value of the text in the PNG by which its pictures are known.
_WRITER = ("Software", "primaps-pipe inspect")


def inspect_image(
    run: RunDirectory, image: str, out: Path, *, em: str | None, head: str | None
) -> Path:
    """Draw what every stage has made of one image, as far as the run has got."""
    require_fresh(run, "extract", VERSIONS)
    manifest = read_manifest(run)
    row = find_image(run, manifest, image)
    _check_file(out)
    view = _gather_view(run, manifest, row, em, head)
    write_bytes(out, _encode(draw_sheet(make_sheet(view))))
    return out


def _check_file(out: Path) -> None:
    """Refuse to write over anything but an earlier picture: ground truth is called like images."""
    if out.is_dir() or out.suffix.lower() != ".png":
        raise UsageError(f"--out {out}: give the name of a file that ends in .png.")
    if not out.exists():
        return
    try:
        with PillowImage.open(io.BytesIO(out.read_bytes()), formats=("PNG",)) as picture:
            own = picture.info.get(_WRITER[0]) == _WRITER[1]
    except (OSError, SyntaxError, ValueError):
        own = False  # not even a picture
    if not own:
        raise UsageError(
            f"--out {out} is there already and was not written by inspect; give another name."
        )


def _encode(pixels: NDArray[np.uint8]) -> bytes:
    """Encode a picture as a PNG that says who wrote it."""
    signed = PngInfo()
    signed.add_text(*_WRITER)
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, "PNG", optimize=True, pnginfo=signed)
    return buffer.getvalue()


@dataclass(frozen=True)
class _Opened:
    """A run as far as it has got."""

    artefacts: Artefacts
    subject: Subject | None
    evaluated: Evaluation | None
    notes: tuple[str, ...]


def _gather_view(
    run: RunDirectory, manifest: Manifest, image: Image, em: str | None, head: str | None
) -> View:
    opened = _open(run, manifest, image, em, head)
    artefacts, notes = opened.artefacts, list(opened.notes)
    if not artefacts.has_proposals:
        notes.append(f"No proposals: {_explain(run, 'masks')}")
    try:
        frame = artefacts.read_pixels(image)
    except ImageError as error:
        raise RunError(f"{manifest.root / image.path} cannot be read: {error}.") from error
    try:
        truth = artefacts.read_truth(image)
    except ImageError as error:
        truth = None
        notes.append(f"No ground truth: {image.label} cannot be read: {error}.")
    cover = artefacts.cover(image)
    return View(
        run=str(run.path),
        image=image,
        frame=frame,
        cover=cover,
        features=artefacts.read_features(image),
        features_of="" if artefacts.features == run.features else "codes of the head",
        proposals=artefacts.read_proposals(image),
        truth=truth,
        class_names=tuple(artefacts.dataset.class_names(manifest.labels)),
        class_colours=tuple(artefacts.dataset.palette),
        labels=_label(opened, image),
        notes=tuple(notes),
    )


def _open(
    run: RunDirectory, manifest: Manifest, image: Image, em: str | None, head: str | None
) -> _Opened:
    subject, note = _choose_fit(run, em, head)
    if subject is None:
        bare = Artefacts(
            run=run,
            manifest=manifest,
            dataset=manifest.open_dataset(),
            subject=Subject("em", ""),
            features=run.features,
            classifiers={},
            size=read_record(run, "extract").facts["size"],
        )
        return _Opened(bare, None, None, (note,))
    names = {"em": subject.name} if subject.kind == "em" else {"head": subject.name}
    em, head = names.get("em"), names.get("head")
    evaluated, notes = None, []
    try:
        evaluated = open_evaluation(run, em, head, VERSIONS)
    except RunError as error:
        notes.append(_note_unevaluated(str(error)))
    else:
        if image.split not in evaluated.splits:
            evaluated = None
            notes.append(_note_unevaluated(f"the split {image.split} was not evaluated"))
    gain = None if evaluated is None else evaluated.record.settings["cosine_gain"]
    artefacts = open_artefacts(run, em, head=head, gain=gain)
    return _Opened(artefacts, subject, evaluated, tuple(notes))


def _note_unevaluated(reason: str) -> str:
    return (
        "The labels were computed for this picture, and no cluster is matched to a class: "
        f"{reason.rstrip('.')}."
    )


def _choose_fit(run: RunDirectory, em: str | None, head: str | None) -> tuple[Subject | None, str]:
    """Choose the fit or head, or say why there is none; one that is asked for must be there."""
    asked = em is not None or head is not None
    if not asked and not run.names("em"):
        command = f"`primaps-pipe em {run.quoted} --classes K`"
        return None, f"No labels: there is no fit yet; run {command}."
    subject = choose_subject(run, em, head)
    try:
        for key in subject.inputs:
            require_fresh(run, key, VERSIONS)
    except PipelineError as error:
        if asked:
            raise
        return None, f"No labels: {error}"
    return subject, ""


def _explain(run: RunDirectory, key: str) -> str:
    """Say why the artefacts of a stage are not there."""
    try:
        require_fresh(run, key, VERSIONS)
    except RunError as error:
        return str(error)
    condition = inspect_stage(run, key, VERSIONS)
    return f"{key} is {condition.state} in {run.path}."


def _label(opened: _Opened, image: Image) -> Labels | None:
    """Take the labels of the evaluation, or compute them now."""
    if opened.subject is None:
        return None
    artefacts = opened.artefacts
    logits = artefacts.read_logits([image], device=_DEVICE, names=[MAIN])[image.image][MAIN]
    if opened.evaluated is not None:
        return _read_labels(artefacts, opened.evaluated, image, logits)
    backend = choose_backend(EvaluateSettings().crf, _DEVICE)
    (labelling,) = label_images(
        artefacts.manifest,
        [image],
        {image.image: logits},
        artefacts.size,
        lambda _, found: found,
        backend,
        CrfSettings(),
    )
    given = read_given_names(artefacts.run, opened.subject.title, artefacts.clusters)
    look = choose_look(artefacts.clusters, None, (), (), given)
    return Labels(
        subject=opened.subject,
        plain=labelling.plain,
        refined=labelling.refined,
        crf="none" if backend is None else backend.name,
        plain_look=look,
        final_look=look,
        scores={"confidence": 100 * labelling.confidence / labelling.plain.size},
    )


def _read_labels(
    artefacts: Artefacts, evaluated: Evaluation, image: Image, logits: Tensor
) -> Labels:
    name, crf = (image.split, image.id), str(evaluated.metrics["crf"])
    cover = artefacts.cover(image)
    refined = None
    if crf != "none":
        refined = resize_labels(evaluated.read_labels(image), *cover.resized)[cover.area]
    return Labels(
        subject=evaluated.subject,
        plain=take_clusters(logits, cover.boxes, artefacts.size),
        refined=refined,
        crf=crf,
        plain_look=evaluated.look(image.split, refined=False),
        final_look=evaluated.look(image.split),
        scores=evaluated.read_scores([name]).get(name, {}),
    )
