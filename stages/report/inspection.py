"""One image with everything that the stages have made of it so far, as one picture."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL.PngImagePlugin import PngInfo

from pipeline.datasets import IGNORE, png_palette
from pipeline.errors import ImageError, PipelineError, RunError, UsageError
from pipeline.images.windows import Cover
from pipeline.run.directory import RunDirectory, Subject, choose_subject
from pipeline.run.evaluation import (
    ClusterLook,
    Evaluation,
    choose_look,
    open_evaluation,
    read_given_names,
)
from pipeline.run.ledger import inspect_stage, read_record, require_fresh
from pipeline.run.manifest import Image, read_manifest
from pipeline.run.reader import find_image
from pipeline.storage.files import write_bytes
from stages import SETTINGS
from stages.artefacts import Artefacts, open_artefacts
from stages.crf.backends import choose_backend
from stages.crf.settings import CrfSettings
from stages.labelling import MAIN, label_images
from stages.report.content import read_clusters
from stages.report.pictures import (
    colour_errors,
    colour_features,
    colour_labels,
    colour_proposals,
    fit_feature_colours,
    join_pictures,
    join_proposals,
)
from stages.report.sheet import Legend, Panel, Sheet, draw_sheet
from stages.report.words import describe_scores
from stages.scores import list_parts

_DEVICE = "auto"
# How images are labelled that no evaluation has labelled.
_DEFAULTS = SETTINGS["evaluate"]().model_dump()
# Key and value of the text in the PNG by which its pictures are known.
_WRITER = ("Software", "primaps-pipe inspect")
_NOTHING = "–"
_COLUMNS = ("share", "in truth", "IoU")


def inspect_image(
    run: RunDirectory, image: str, out: Path, *, em: str | None, head: str | None
) -> Path:
    """Draw what every stage has made of one image, as far as the run has got."""
    require_fresh(run, "extract", SETTINGS)
    row = find_image(run, read_manifest(run), image)
    _check_file(out)
    signed, buffer = PngInfo(), io.BytesIO()
    signed.add_text(*_WRITER)
    pixels = draw_sheet(_make_sheet(_gather(run, row, em, head)))
    PillowImage.fromarray(pixels).save(buffer, "PNG", optimize=True, pnginfo=signed)
    write_bytes(out, buffer.getvalue())
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


# --- what there is of an image -------------------------------------------------------------------


@dataclass(frozen=True)
class _Labels:
    """The labels of an image, over the box that its windows cover."""

    plain: NDArray[np.uint8]
    refined: NDArray[np.uint8] | None
    crf: str
    plain_look: ClusterLook
    look: ClusterLook
    scores: Mapping[str, float]

    @property
    def final(self) -> NDArray[np.uint8]:
        """The labels that are written."""
        return self.plain if self.refined is None else self.refined


@dataclass(frozen=True)
class _View:
    """One image of a run as far as it has got; what lacks is said in the notes."""

    artefacts: Artefacts
    image: Image
    frame: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None
    labels: _Labels | None
    notes: tuple[str, ...]

    @property
    def cover(self) -> Cover:
        return self.artefacts.cover(self.image)

    @property
    def palette(self) -> NDArray[np.uint8]:
        """Colours of the classes, uint8 [256, rgb]."""
        colours = png_palette(self.artefacts.dataset.palette[:255])
        return np.frombuffer(colours, np.uint8).reshape(256, 3)

    @cached_property
    def true_shares(self) -> dict[int, float]:
        """Share of every class in the ground truth in per cent, the largest first."""
        if self.truth is None:
            return {}
        usage = np.bincount(self.truth.ravel(), minlength=256)[:IGNORE]
        total = max(int(usage.sum()), 1)
        order = sorted(np.flatnonzero(usage).tolist(), key=lambda index: (-usage[index], index))
        return {index: 100 * float(usage[index]) / total for index in order}


def _gather(run: RunDirectory, image: Image, em: str | None, head: str | None) -> _View:
    subject, notes = _choose_fit(run, em, head)
    evaluation = None
    if subject is not None:
        evaluation, reasons = _find_evaluation(run, subject, image)
        notes += reasons
    artefacts = _open(run, subject, evaluation)
    if not artefacts.has_proposals:
        notes.append(f"No proposals: {_explain(run, 'masks')}")
    try:
        frame = artefacts.read_pixels(image)
    except ImageError as error:
        path = artefacts.manifest.root / image.path
        raise RunError(f"{path} cannot be read: {error}.") from error
    try:
        truth = artefacts.read_truth(image)
    except ImageError as error:
        truth = None
        notes.append(f"No ground truth: {image.label} cannot be read: {error}.")
    labels = None
    if evaluation is not None:
        labels = _read_labels(artefacts, evaluation, image)
    elif subject is not None:
        labels = _compute_labels(artefacts, image)
    return _View(artefacts, image, frame, truth, labels, tuple(notes))


def _choose_fit(
    run: RunDirectory, em: str | None, head: str | None
) -> tuple[Subject | None, list[str]]:
    """Choose the fit or head, or say why there is none; one that is asked for must be there."""
    asked = em is not None or head is not None
    if not asked and not run.names("em"):
        command = f"`primaps-pipe em {run.quoted} --classes K`"
        return None, [f"No labels: there is no fit yet; run {command}."]
    subject = choose_subject(run, em, head)
    try:
        for key in subject.inputs:
            require_fresh(run, key, SETTINGS)
    except PipelineError as error:
        if asked:
            raise
        return None, [f"No labels: {error}"]
    return subject, []


def _find_evaluation(
    run: RunDirectory, subject: Subject, image: Image
) -> tuple[Evaluation | None, list[str]]:
    """Find the evaluation that labelled an image, or say why there is none."""
    try:
        evaluation = open_evaluation(run, *subject.names, SETTINGS)
        if image.split in evaluation.splits:
            return evaluation, []
        reason = f"the split {image.split} was not evaluated"
    except RunError as error:
        reason = str(error).rstrip(".")
    return None, [
        "The labels were computed for this picture, and no cluster is matched to a class: "
        f"{reason}."
    ]


def _open(run: RunDirectory, subject: Subject | None, evaluation: Evaluation | None) -> Artefacts:
    if subject is not None:
        em, head = subject.names
        settings = _DEFAULTS if evaluation is None else evaluation.record.settings
        return open_artefacts(run, em, head=head, gain=settings["cosine_gain"])
    manifest = read_manifest(run)
    return Artefacts(
        run=run,
        manifest=manifest,
        dataset=manifest.open_dataset(),
        subject=Subject("em", ""),
        features=run.features,
        classifiers={},
        size=read_record(run, "extract").facts["size"],
    )


def _explain(run: RunDirectory, key: str) -> str:
    """Say why the artefacts of a stage are not there."""
    try:
        require_fresh(run, key, SETTINGS)
    except RunError as error:
        return str(error)
    condition = inspect_stage(run, key, SETTINGS)
    return f"{key} is {condition.state} in {run.path}."


def _read_labels(artefacts: Artefacts, evaluation: Evaluation, image: Image) -> _Labels:
    """Take the labels of the evaluation."""
    name = (image.split, image.id)
    plain, refined = read_clusters(evaluation, artefacts, image, _DEVICE)
    return _Labels(
        plain=plain,
        refined=refined,
        crf=str(evaluation.metrics["crf"]),
        plain_look=evaluation.look(image.split, refined=False),
        look=evaluation.look(image.split),
        scores=evaluation.read_scores([name]).get(name, {}),
    )


def _compute_labels(artefacts: Artefacts, image: Image) -> _Labels:
    """Label an image that no evaluation has labelled."""
    logits = artefacts.read_logits([image], device=_DEVICE, names=[MAIN])[image.image][MAIN]
    backend = choose_backend(_DEFAULTS["crf"], _DEVICE)
    (labelling,) = label_images(
        artefacts.manifest,
        [image],
        {image.image: logits},
        artefacts.size,
        lambda _, found: found,
        backend,
        CrfSettings(),
    )
    given = read_given_names(artefacts.run, artefacts.subject.title, artefacts.clusters)
    look = choose_look(artefacts.clusters, None, (), (), given)
    return _Labels(
        plain=labelling.plain,
        refined=labelling.refined,
        crf="none" if backend is None else backend.name,
        plain_look=look,
        look=look,
        scores={"confidence": 100 * labelling.confidence / labelling.plain.size},
    )


# --- what is drawn of it -------------------------------------------------------------------------


def _make_sheet(view: _View) -> Sheet:
    legend = [*_list_clusters(view), *_list_classes(view)]
    # columns in which nothing stands are left out
    kept = [i for i in range(len(_COLUMNS)) if any(e.figures[i] != _NOTHING for e in legend)]
    return Sheet(
        title=f"{view.image.split}/{view.image.id}",
        lines=(_describe_image(view),),
        panels=tuple(_draw_panels(view)),
        figures=tuple(_list_figures(view)),
        legend=tuple(replace(e, figures=tuple(e.figures[i] for i in kept)) for e in legend),
        columns=("class or cluster", *(_COLUMNS[i] for i in kept)),
        notes=view.notes,
    )


def _describe_image(view: _View) -> str:
    image, windows, labels = view.image, view.cover.windows, view.labels
    parts = [
        f"run {view.artefacts.run.path}",
        f"{image.width} x {image.height} px",
        f"{len(windows)} window{'s' if len(windows) > 1 else ''} of {windows[0].size} px",
    ]
    if labels is not None:
        subject = view.artefacts.subject
        kind = "fit" if subject.kind == "em" else "head"
        matched = "" if labels.look.classes is not None else ", not matched to classes"
        parts.append(f"{kind} {subject.name}: {len(labels.look.names)} clusters{matched}")
    return " · ".join(parts)


def _draw_panels(view: _View) -> Iterator[Panel]:
    artefacts, cover, shape = view.artefacts, view.cover, view.frame.shape[:2]
    left, top, right, bottom = cover.box
    whole = (right - left, bottom - top) == cover.resized
    part = "" if whole else ", the part that the windows cover"
    yield Panel(f"photograph{part}", view.frame, "photograph")
    features = artefacts.read_features(view.image)
    fitted = fit_feature_colours(features)
    grids = colour_features(features, fitted)
    what = "features" if artefacts.features == artefacts.run.features else "codes of the head"
    caption = f"{what}: the first three principal components as colours, of this image alone"
    yield Panel(caption, join_pictures(grids, cover.boxes, shape))
    proposals = artefacts.read_proposals(view.image)
    if proposals is not None:
        ids = join_proposals(proposals, cover.boxes, shape)
        count = len(np.unique(ids[ids > 0]))
        yield Panel(f"{count} proposals; dark grey: none", colour_proposals(ids))
    if view.labels is not None:
        yield from _draw_labels(view, view.labels)
    if view.truth is not None:
        yield Panel("ground truth", colour_labels(view.truth, view.palette))
    if view.truth is not None and view.labels is not None and view.labels.look.classes:
        final = view.labels.look.index[view.labels.final]
        caption = "errors: red is wrong, light green is right, grey is not judged"
        yield Panel(caption, colour_errors(final, view.truth))


def _draw_labels(view: _View, labels: _Labels) -> Iterator[Panel]:
    before, after = labels.plain_look, labels.look
    plain = colour_labels(before.index[labels.plain], before.palette)
    final = colour_labels(after.index[labels.final], after.palette)
    if labels.refined is None:
        yield Panel("labels", plain)
    else:
        own = "" if before.classes == after.classes else ", matched to classes on their own"
        yield Panel(f"labels before the CRF{own}", plain)
        yield Panel(f"labels after the CRF ({labels.crf})", final)
    mixed = (view.frame.astype(np.uint16) + final) // 2
    yield Panel("final labels over the photograph", mixed.astype(np.uint8), "photograph")


def _list_figures(view: _View) -> Iterator[tuple[str, str]]:
    if view.labels is not None:
        yield from describe_scores(view.labels.scores)
    if view.truth is not None:
        share = 100 * float((view.truth != IGNORE).mean())
        yield "pixels with ground truth", f"{share:.1f} %"


def _list_clusters(view: _View) -> Iterator[Legend]:
    """List the clusters that occur, the largest share first, then classes that are all missed."""
    labels = view.labels
    if labels is None:
        return
    look = labels.look
    truth = view.true_shares if look.classes is not None else {}
    found = set()
    for part in list_parts(labels.final, view.truth, look.classes):
        index = None if look.classes is None else look.classes[part.cluster]
        found.add(index)
        name = look.names[part.cluster]
        number = f"cluster {part.cluster}"
        share = truth.get(index) if index is not None else None
        yield Legend(
            look.colours[part.cluster],
            name if name == number else f"{name} ({number})",
            (_percent(part.share), _percent(share), _percent(part.iou)),
        )
    for index, share in truth.items():
        if index not in found:
            yield _describe_class(view, index, (_NOTHING, _percent(share), _percent(0.0)))


def _list_classes(view: _View) -> Iterator[Legend]:
    """List the classes of the ground truth, where no cluster has their colours."""
    if view.labels is not None and view.labels.look.classes is not None:
        return
    for index, share in view.true_shares.items():
        yield _describe_class(view, index, (_NOTHING, _percent(share), _NOTHING))


def _describe_class(view: _View, index: int, figures: tuple[str, ...]) -> Legend:
    names = view.artefacts.dataset.class_names(view.artefacts.manifest.labels)
    name = names[index] if index < len(names) else f"class {index}"
    red, green, blue = view.palette[index].tolist()
    return Legend((red, green, blue), f"{name} (ground truth)", figures)


def _percent(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.1f} %"
