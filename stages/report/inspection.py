"""One image with everything that the stages have made of it so far, as one picture.

It is a sheet of captioned pictures with a legend and figures, drawn as one matplotlib figure.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL.PngImagePlugin import PngInfo

from pipeline.datasets.definition import IGNORE, Colour
from pipeline.errors import ImageError, PipelineError, RunError, UsageError
from pipeline.run.directory import RunDirectory, Subject, choose_subject
from pipeline.run.evaluation import Evaluation, choose_look, open_evaluation, read_given_names
from pipeline.run.ledger import read_record, require_fresh
from pipeline.run.manifest import Image, read_manifest
from pipeline.run.reader import find_image
from pipeline.storage.files import write_bytes
from stages import SETTINGS
from stages.artefacts import Artefacts, open_artefacts, open_evaluated
from stages.crf.backends import choose_backend
from stages.crf.settings import CrfSettings
from stages.labelling import MAIN, label_images
from stages.report.content import gather_exhibit, read_labels
from stages.report.pictures import (
    Exhibit,
    Labels,
    colour_labels,
    draw_exhibit,
    fit_feature_colours,
    join_proposals,
    scale_size,
)
from stages.report.words import NOTHING, describe_scores, format_percent
from stages.scores import list_parts

_DEVICE = "auto"
# How images are labelled that no evaluation has labelled.
_DEFAULTS = SETTINGS["evaluate"]().model_dump()
# Key and value of the text in the PNG by which its pictures are known.
_WRITER = ("Software", "primaps-pipe inspect")
_COLUMNS = ("share", "in truth", "IoU")
# Of the sheet. All lengths are pixels.
_WIDTH = 1640
_MARGIN = 28
_INNER = _WIDTH - 2 * _MARGIN
_GAP = 14
_TALLEST = 620  # of a picture
_FIGURE = 88  # that a figure of the legend may take
_BESIDE = 3  # columns of the legend
_INK, _MUTED, _RULE = "#1d2125", "#5d6670", "#d0d4d2"
_TITLE, _TEXT, _SMALL = 26, 16, 14
_LINE = 1.4  # line height in units of the font size
_ASCENT = 0.93  # of the font, in the same unit
_POINT = 0.72  # points a pixel, at matplotlib's 100 pixels an inch


@dataclass(frozen=True)
class Panel:
    """One picture of the sheet; a photograph is smoothed, a map is not."""

    caption: str
    pixels: NDArray[np.uint8]
    smooth: bool = False


@dataclass(frozen=True)
class Legend:
    """One row of the legend."""

    colour: Colour
    name: str
    figures: tuple[str, ...] = ()


def inspect_image(
    run: RunDirectory, image: str, out: Path, *, em: str | None, head: str | None
) -> Path:
    """Draw what every stage has made of one image, as far as the run has got."""
    require_fresh(run, "extract", SETTINGS)
    row = find_image(run, read_manifest(run), image)
    _check_file(out)
    subject, notes = _choose_fit(run, em, head)
    evaluation = None
    if subject is not None:
        evaluation, reasons = _find_evaluation(run, subject, row)
        notes += reasons
    artefacts = _open(run, subject, evaluation)
    if not artefacts.has_proposals:
        notes.append(f"No proposals: {_explain(run)}")
    frame = _read_frame(artefacts, row)
    try:
        truth = artefacts.read_truth(row)
    except ImageError as error:
        truth = None
        notes.append(f"No ground truth: {row.label} cannot be read: {error}.")
    labels, scores, crf = None, dict[str, float](), "none"
    if evaluation is not None:
        looks = (evaluation.look(row.split, refined=False), evaluation.look(row.split))
        labels = read_labels(evaluation, artefacts, row, looks, _DEVICE)
        name = (row.split, row.id)
        scores, crf = evaluation.read_scores([name]).get(name, {}), str(evaluation.metrics["crf"])
    elif subject is not None:
        labels, scores, crf = _compute_labels(artefacts, row)
    exhibit = gather_exhibit(artefacts, row, frame, truth, labels)
    legend = _list_legend(artefacts, exhibit)
    # columns in which nothing stands are left out
    kept = [i for i in range(len(_COLUMNS)) if any(e.figures[i] != NOTHING for e in legend)]
    pixels = draw_sheet(
        title=f"{row.split}/{row.id}",
        line=_describe_image(artefacts, row, labels),
        panels=list(_list_panels(artefacts, row, exhibit, crf)),
        figures=_list_figures(exhibit, scores),
        legend=[replace(e, figures=tuple(e.figures[i] for i in kept)) for e in legend],
        columns=("class or cluster", *(_COLUMNS[i] for i in kept)),
        notes=notes,
    )
    signed, buffer = PngInfo(), io.BytesIO()
    signed.add_text(*_WRITER)
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
        if evaluation is not None:
            return open_evaluated(run, evaluation.record)
        em, head = subject.names
        return open_artefacts(run, em, head=head, gain=_DEFAULTS["cosine_gain"])
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


def _explain(run: RunDirectory) -> str:
    """Say why there are no proposals of these very features."""
    try:
        require_fresh(run, "masks", SETTINGS)
    except RunError as error:
        return str(error)
    return f"masks is fresh in {run.path}."


def _read_frame(artefacts: Artefacts, image: Image) -> NDArray[np.uint8]:
    try:
        return artefacts.read_pixels(image)
    except ImageError as error:
        path = artefacts.manifest.root / image.path
        raise RunError(f"{path} cannot be read: {error}.") from error


def _compute_labels(artefacts: Artefacts, image: Image) -> tuple[Labels, dict[str, float], str]:
    """Label an image that no evaluation has labelled; say how sure that is, and by which CRF."""
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
    scores = {"confidence": 100 * labelling.confidence / labelling.plain.size}
    labels = Labels(labelling.plain, labelling.refined, look, look)
    return labels, scores, "none" if backend is None else backend.name


# --- what is drawn of it -------------------------------------------------------------------------


def _describe_image(artefacts: Artefacts, image: Image, labels: Labels | None) -> str:
    windows, subject = artefacts.cover(image).windows, artefacts.subject
    parts = [
        f"run {artefacts.run.path}",
        f"{image.width} x {image.height} px",
        f"{len(windows)} window{'s' if len(windows) > 1 else ''} of {windows[0].size} px",
    ]
    if labels is not None:
        kind = "fit" if subject.kind == "em" else "head"
        matched = "" if labels.look.classes is not None else ", not matched to classes"
        parts.append(f"{kind} {subject.name}: {len(labels.look.names)} clusters{matched}")
    return " · ".join(parts)


def _list_panels(artefacts: Artefacts, image: Image, exhibit: Exhibit, crf: str) -> Iterator[Panel]:
    """Caption what there is, and lay the final labels over the photograph."""
    cover = artefacts.cover(image)
    left, top, right, bottom = cover.box
    whole = (right - left, bottom - top) == cover.resized
    what = "features" if artefacts.features == artefacts.run.features else "codes of the head"
    captions = {
        "image": f"photograph{'' if whole else ', the part that the windows cover'}",
        "features": f"{what}: the first three principal components as colours, of this image alone",
        "proposals": "",
        "label": "labels",
        "label_crf": f"labels after the CRF ({crf})",
        "over": "final labels over the photograph",
        "truth": "ground truth",
        "errors": "errors: red is wrong, light green is right, grey is not judged",
    }
    drawn = draw_exhibit(exhibit, fit_feature_colours(exhibit.features))
    if exhibit.proposals is not None:
        ids = join_proposals(exhibit.proposals, exhibit.boxes, exhibit.frame.shape)
        captions["proposals"] = f"{len(np.unique(ids[ids > 0]))} proposals; dark grey: none"
    if (labels := exhibit.labels) is not None:
        if labels.refined is not None:
            same = labels.plain_look.classes == labels.look.classes
            own = "" if same else ", matched to classes on their own"
            captions["label"] = f"labels before the CRF{own}"
        final = colour_labels(labels.look.index[labels.final], labels.look.palette)
        drawn["over"] = ((exhibit.frame.astype(np.uint16) + final) // 2).astype(np.uint8)
    for key, caption in captions.items():
        if key in drawn:
            yield Panel(caption, drawn[key], smooth=key in ("image", "over"))


def _list_figures(exhibit: Exhibit, scores: Mapping[str, float]) -> list[tuple[str, str]]:
    figures = [*describe_scores(scores)]
    if exhibit.truth is not None:
        share = 100 * float((exhibit.truth != IGNORE).mean())
        figures.append(("pixels with ground truth", format_percent(share)))
    return figures


def _list_legend(artefacts: Artefacts, exhibit: Exhibit) -> list[Legend]:
    """List the clusters that occur, the largest share first, then classes that have none there."""
    legend = []

    def add(colour: Sequence[int], name: str, *figures: float | None) -> None:
        red, green, blue = colour
        legend.append(Legend((red, green, blue), name, tuple(map(format_percent, figures))))

    truth: dict[int, float] = {}
    if exhibit.truth is not None:
        truth = {part.cluster: part.share for part in list_parts(exhibit.truth, None, None)}
    matching = None if exhibit.labels is None else exhibit.labels.look.classes
    found = set()
    if (labels := exhibit.labels) is not None:
        for part in list_parts(labels.look.first[labels.final], exhibit.truth, matching):
            index = None if matching is None else matching[part.cluster]
            found.add(index)
            name, number = labels.look.names[part.cluster], f"cluster {part.cluster}"
            add(
                labels.look.colours[part.cluster],
                name if name == number else f"{name} ({number})",
                part.share,
                None if index is None else truth.get(index),
                part.iou,
            )
    names = artefacts.dataset.class_names(artefacts.manifest.labels)
    for index, share in truth.items():
        if index not in found:
            name = names[index] if index < len(names) else f"class {index}"
            colour = exhibit.palette[index].tolist()
            add(colour, f"{name} (ground truth)", None, share, None if matching is None else 0.0)
    return legend


# --- the sheet -----------------------------------------------------------------------------------


def draw_sheet(
    *,
    title: str,
    line: str,
    panels: Sequence[Panel],
    notes: Sequence[str] = (),
    figures: Sequence[tuple[str, str]] = (),
    legend: Sequence[Legend] = (),
    columns: Sequence[str] = (),
) -> NDArray[np.uint8]:
    """Draw a sheet, uint8 [y, x, rgb]; ``columns`` are the heads of the legend."""
    if not panels:
        raise ValueError("a sheet without a picture")
    with warnings.catch_warnings():
        # a letter that the font lacks is drawn as a box
        warnings.simplefilter("ignore", UserWarning)
        page = _Page()
        page.write_lines([title], _TITLE, weight="bold")
        page.write_lines([line], _TEXT, color=_MUTED)
        page.write_lines(notes, _TEXT)
        page.draw_panels(panels)
        page.list_figures(figures)
        page.list_legend(legend, columns)
        return page.finish()


def wrap_text(
    text: str, width: float, size: int, *, weight: str = "normal", lines: int = 0
) -> list[str]:
    """Break a text into lines that fit a width, between words where that is possible."""

    def fits(line: str) -> bool:
        return _measure(line, size, weight) <= width

    wrapped = [""]
    for word in text.split():
        joined = f"{wrapped[-1]} {word}".lstrip()
        if fits(joined):
            wrapped[-1] = joined
            continue
        wrapped.append("")
        for character in word:
            if wrapped[-1] and not fits(wrapped[-1] + character):
                wrapped.append("")
            wrapped[-1] += character
    wrapped = [line for line in wrapped if line] or [""]
    if lines and len(wrapped) > lines:
        last = wrapped[lines - 1]
        while last and not fits(f"{last}…"):
            last = last[:-1]
        wrapped = [*wrapped[: lines - 1], f"{last}…"]
    return wrapped


def _measure(text: str, size: int, weight: str = "normal") -> float:
    font = FontProperties(size=size * _POINT, weight=weight)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(width) / _POINT


def _line_height(size: int) -> int:
    return round(_LINE * size)


class _Page:
    """One figure whose coordinates are pixels from its upper left; it grows row by row."""

    def __init__(self) -> None:
        self.figure = Figure(facecolor="white", dpi=100)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self.top = _MARGIN

    def finish(self) -> NDArray[np.uint8]:
        height = self.top - _GAP + _MARGIN
        self.figure.set_size_inches(_WIDTH / 100, height / 100)
        self.axes.set(xlim=(0, _WIDTH), ylim=(height, 0), aspect="auto")
        canvas = FigureCanvasAgg(self.figure)
        canvas.draw()
        return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])

    def write(self, left: float, top: float, text: str, size: int, **style: Any) -> None:
        style = {"color": _INK, "size": size * _POINT, "parse_math": False, **style}
        self.axes.text(left, top + _ASCENT * size, text, **style)

    def write_lines(
        self, texts: Sequence[str], size: int, weight: str = "normal", **style: Any
    ) -> None:
        for text in texts:
            for line in wrap_text(text, _INNER, size, weight=weight):
                self.write(_MARGIN, self.top, line, size, weight=weight, **style)
                self.top += _line_height(size)
        self.top += _GAP if texts else 0

    def draw_panels(self, panels: Sequence[Panel]) -> None:
        columns = _count_columns(panels)
        place = (_INNER - _GAP * (columns - 1)) // columns
        for start in range(0, len(panels), columns):
            row = panels[start : start + columns]
            captions = [wrap_text(panel.caption, place, _TEXT, lines=3) for panel in row]
            tallest = max(_fit(panel, place)[1] for panel in row)
            for number, (panel, lines) in enumerate(zip(row, captions, strict=True)):
                left = _MARGIN + number * (place + _GAP)
                width, height = _fit(panel, place)
                self.axes.imshow(
                    panel.pixels,
                    extent=(left, left + width, self.top + height, self.top),
                    interpolation="lanczos" if panel.smooth else "nearest",
                )
                for n, line in enumerate(lines):
                    below = self.top + tallest + 6 + n * _line_height(_TEXT)
                    self.write(left, below, line, _TEXT, color=_MUTED)
            self.top += tallest + 6 + max(map(len, captions)) * _line_height(_TEXT) + _GAP

    def list_figures(self, figures: Sequence[tuple[str, str]]) -> None:
        """Write name over value, from left to right, in as many rows as it takes."""
        left, height = 0, _line_height(_SMALL) + _line_height(_TEXT) + 8
        for name, value in figures:
            width = round(max(_measure(name, _SMALL), _measure(value, _TEXT, "bold")))
            if left and left + width > _INNER:
                left, self.top = 0, self.top + height
            self.write(_MARGIN + left, self.top, name, _SMALL, color=_MUTED)
            under = self.top + _line_height(_SMALL)
            self.write(_MARGIN + left, under, value, _TEXT, weight="bold")
            left += width + 2 * _GAP
        self.top += height + _GAP if figures else 0

    def list_legend(self, legend: Sequence[Legend], columns: Sequence[str]) -> None:
        """Write the legend as a table, broken into as many parts as stand side by side."""
        if not legend:
            return
        place = (_INNER - 2 * _GAP * (_BESIDE - 1)) // _BESIDE
        length = -(-len(legend) // _BESIDE)
        height = _line_height(_TEXT) + 4
        for part in range(-(-len(legend) // length)):
            left = _MARGIN + part * (place + 2 * _GAP)
            self.write(left, self.top, "".join(columns[:1]), _SMALL, color=_MUTED)
            self._write_figures(left + place, self.top, columns[1:], _SMALL, _MUTED)
            rule = self.top + height - 3
            self.axes.hlines(rule, left, left + place, colors=_RULE, linewidth=_POINT)
            for number, row in enumerate(legend[part * length : (part + 1) * length], start=1):
                top = self.top + number * height
                colour = [channel / 255 for channel in row.colour]
                swatch = Rectangle((left, top + 2), 17, 17, fc=colour, ec=_RULE, lw=_POINT)
                self.axes.add_patch(swatch)
                room = place - 28 - _FIGURE * len(row.figures)
                name = wrap_text(row.name, room, _TEXT, lines=1)[0]
                self.write(left + 28, top, name, _TEXT)
                self._write_figures(left + place, top, row.figures, _TEXT, _INK)
        self.top += height * (length + 1) + _GAP

    def _write_figures(
        self, right: float, top: float, texts: Sequence[str], size: int, color: str
    ) -> None:
        for i, text in enumerate(reversed(texts)):
            self.write(right - _FIGURE * i, top, text, size, color=color, ha="right")


def _count_columns(panels: Sequence[Panel]) -> int:
    """Choose how many pictures stand side by side: four, or fewer where they are wide."""
    height, width = panels[0].pixels.shape[:2]
    most = 4 if width <= 1.7 * height else 3 if width <= 2.2 * height else 2
    return min(len(panels), most if width <= 4 * height else 1)


def _fit(panel: Panel, place: int) -> tuple[int, int]:
    """Return the width and height in which a picture is drawn."""
    height, width = panel.pixels.shape[:2]
    return scale_size(width, height, min(place / width, _TALLEST / height))
