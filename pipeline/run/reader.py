"""The results of a run in Python: ``from pipeline import Run``.

>>> run = Run("runs/mine")
>>> features = run.features("train")  # float16 [window, row, column, channel]
>>> labels = run.labels("street/0001")  # uint8 [y, x], cluster of every pixel, 255 = ignore

Nothing is written. What has not been computed, or was made from something in the run that has
changed since, is refused with the command that makes it; ``primaps-pipe status`` also looks at what
lies outside the run.
"""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.datasets.base import Dataset
from pipeline.errors import DatasetError, ImageError, RunError, UsageError, did_you_mean
from pipeline.images.windows import Window
from pipeline.run.directory import DEFAULT_NAME, RunDirectory, choose_subject
from pipeline.run.evaluation import (
    Evaluation,
    find_evaluation,
    read_confidence,
    read_labels,
    tabulate_colours,
    tabulate_matching,
)
from pipeline.run.frames import read_frame, read_truth
from pipeline.run.ledger import (
    Ledger,
    StageRecord,
    find_staleness,
    list_sources,
    read_record,
    require_fresh,
)
from pipeline.run.manifest import Image, Manifest, read_manifest
from pipeline.storage.arrays import (
    Place,
    import_xarray,
    label_file,
    label_rows,
    list_nodes,
    read_group,
    read_stored,
)
from pipeline.storage.files import Stamp, decode_table, stamp
from pipeline.storage.places import is_remote, map_requests, parse_place

As = Literal["numpy", "xarray"]
_PROTOTYPES = {
    "momentum": "momentum_prototypes",
    "running": "prototypes",
    "initial": "initial_prototypes",
}
_MOST_LISTED = 8


class Run:
    """The results of one run, read-only.

    Parameters
    ----------
    path
        The run directory, or a prefix of an object store (``s3://bucket/prefix``).

    Raises
    ------
    UsageError
        There is no split, image, view, fit or head of a name that is given, or it is ambiguous.
    RunError
        It is no run directory; or a stage that an answer comes from is unfinished or stale, or a
        photograph has changed since it was extracted.
    DatasetError, ImageError
        There is no ground truth; an image was rejected, or a label map cannot be read.

    Notes
    -----
    Arrays come as NumPy by default, read at once: ``features`` of N windows of DINOv2 ViT-S/14 at
    322 pixels take N x 0.4 MB. With ``as_="xarray"`` they are labelled, backed by dask, and read
    when they are computed, shard by shard.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.directory = RunDirectory(parse_place(path)).require()
        self._checked: dict[str, tuple[StageRecord, dict[str, Stamp | None]]] = {}
        self._evaluations: dict[str, Evaluation] = {}
        self._listed: tuple[StageRecord, Manifest] | None = None

    # --- what there is ----------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    @property
    def images(self) -> Sequence[Image]:
        """One record per image: ``id``, ``split``, ``width``, ``height``, ``ok`` and others."""
        return self._manifest.images

    def table(self) -> pa.Table:
        """Return the images as a table with the columns of ``manifest.parquet``.

        ``run.table().to_pandas()`` makes a data frame of it.
        """
        self._require("extract")
        content = self.directory.manifest_file.read_bytes()
        return decode_table(content).replace_schema_metadata(None)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have images."""
        return self._manifest.splits

    def windows(self, split: str | None = None, *, image: str | None = None) -> tuple[Window, ...]:
        """Return the windows of a split, of an image, or all, in the order of the arrays' rows.

        Parameters
        ----------
        split
            Name of a split; all of them when None.
        image
            Id of one image, to have its windows alone.
        """
        if image is not None:
            return tuple(self._manifest.windows_of(self.find_image(image, split)))
        if split is not None:
            self._check_split(split)
        return tuple(self._manifest.usable_windows(splits=None if split is None else (split,)))

    @property
    def views(self) -> tuple[str, ...]:
        """What :meth:`features` takes as ``view``: ``clean``, ``mirror``, and further ones."""
        self._require("extract")
        return tuple(sorted(list_nodes(self.directory.features)))

    @property
    def fits(self) -> tuple[str, ...]:
        """Names of the fits (``em``), finished or not."""
        return tuple(self.directory.names("em"))

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads, finished or not."""
        return tuple(self.directory.names("head"))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the dataset's classes, by class; empty where nobody has named them."""
        return self._manifest.open_dataset().class_names(self._manifest.labels)

    @property
    def palette(self) -> NDArray[np.uint8]:
        """Colours of the classes, uint8 [256, rgb]: ``run.palette[classes]`` is a picture."""
        return tabulate_colours(self._manifest.open_dataset().palette[: len(self.class_names)])

    def find_image(self, id: str, split: str | None = None) -> Image:
        """Find the record of an image that the stages used.

        Parameters
        ----------
        id
            As in ``run.images``; or split/id, the photograph's path, or the last part of one.
        split
            Its split, needed where several have an image of that id.
        """
        if split is not None:
            self._check_split(split)
        # by its column: asked for every label map that a training loop reads
        images = self._manifest.images
        found = [i for i in images.choose(images.among("id", [id])) if split in (None, i.split)]
        if len(found) == 1 and found[0].ok:
            return found[0]
        return find_image(self.directory, self._manifest, id, split)

    # --- arrays over windows ---------------------------------------------------------------------

    def features(
        self,
        split: str | None = None,
        *,
        view: str = "clean",
        image: str | None = None,
        as_: As = "numpy",
    ) -> Any:
        """Read features: what the frozen backbone says of every position of every window.

        Parameters
        ----------
        split, image
            As in :meth:`windows`, whose order the rows have.
        view
            One of :attr:`views`.
        as_
            ``numpy``, read now, or ``xarray``, lazy.

        Returns
        -------
        numpy.ndarray or xarray.DataArray
            float16 [window, row, column, channel].
        """
        if view not in self.views:
            raise UsageError(
                f"no view {view!r}; the run has {', '.join(self.views)}"
                f"{did_you_mean(view, self.views)}."
            )
        keys = [f"views/{name}" for name in self.directory.names("views")]
        owners = {a: key for key in keys for a in read_record(self.directory, key).facts["arrays"]}
        record = self._require(owners.get(view, "extract"))
        return self._give_rows((self.directory.features, view), record, split, image, as_)

    def codes(
        self,
        head: str | None = None,
        split: str | None = None,
        *,
        view: str = "clean",
        image: str | None = None,
        as_: As = "numpy",
    ) -> Any:
        """Read the codes that a head makes of the features, float16 [window, row, column, channel].

        Parameters
        ----------
        head
            Its name; the only one there is when None.
        split, view, image, as_
            As in :meth:`features`.
        """
        if head is None and len(self.heads) > 1:
            raise UsageError(f"the run has several heads ({', '.join(self.heads)}); give head=.")
        if head is None and not self.heads:
            raise RunError(
                f"{self.path} has no head yet; train one with "
                f"`primaps-pipe head {self.directory.quoted} --method stego`."
            )
        head = head or self.heads[0]
        subject = choose_subject(self.directory, None, head)
        record = self._require(f"encode/{subject.name}")
        if view not in record.facts["views"]:
            raise UsageError(
                f"no view {view!r}; the codes have {', '.join(record.facts['views'])}."
            )
        return self._give_rows((self.directory.codes(head), view), record, split, image, as_)

    def proposals(
        self, split: str | None = None, *, image: str | None = None, as_: As = "numpy"
    ) -> Any:
        """Read the mask proposals: uint8 [window, y, x], number of the proposal, 0 = none.

        Parameters are those of :meth:`features`. A window of 322 pixels takes 0.1 MB.
        """
        record = self._require("masks")
        return self._give_rows((self.directory.masks, "proposals"), record, split, image, as_)

    def pooled(
        self, split: str | None = None, *, image: str | None = None, as_: As = "numpy"
    ) -> Any:
        """Read the mean unit feature of every proposal: float16 [window, proposal, channel].

        Row j of a window is proposal j + 1; rows of proposals that a window does not have are 0.
        Parameters are those of :meth:`features`.
        """
        record = self._require("masks")
        return self._give_rows((self.directory.masks, "pooled"), record, split, image, as_)

    # --- one image -------------------------------------------------------------------------------

    def photograph(self, id: str, split: str | None = None, *, as_: As = "numpy") -> Any:
        """Read a photograph upright, uint8 [y, x, rgb]."""
        image = self.find_image(id, split)
        read = partial(read_frame, self._manifest.root, image, image.width, image.height)
        return _give_file(read, image, "photograph", as_, "rgb")

    def labels(
        self,
        id: str,
        split: str | None = None,
        *,
        em: str | None = None,
        head: str | None = None,
        as_: As = "numpy",
    ) -> Any:
        """Read the pseudo-labels of an image.

        Parameters
        ----------
        id, split
            The image; the split is needed where several have one of that id.
        em, head
            Name of the fit (``default``, or the only one, when None), or of the head instead.
        as_
            ``numpy`` or ``xarray``.

        Returns
        -------
        numpy.ndarray or xarray.DataArray
            uint8 [y, x] of the image's own size: cluster 0 … K-1, 255 = ignore. :meth:`matching`
            makes classes of clusters.
        """
        evaluation, image = self._find_labelled(id, split, em, head)
        subject, clusters = evaluation.subject, evaluation.clusters
        read = partial(read_labels, self.directory, subject, image, clusters)
        return _give_file(read, image, "labels", as_)

    def confidence(
        self,
        id: str,
        split: str | None = None,
        *,
        em: str | None = None,
        head: str | None = None,
        as_: As = "numpy",
    ) -> Any:
        """Read how sure the pseudo-labels of an image are, uint8 [y, x]: 255 x probability.

        Parameters as of :meth:`labels`; of an evaluation with ``--confidence``.
        """
        evaluation, image = self._find_labelled(id, split, em, head)
        if not evaluation.record.settings.get("confidence"):
            raise UsageError(
                f"{evaluation.subject.key} was evaluated without confidence; run "
                f"{evaluation.command[:-1]} --confidence`."
            )
        read = partial(read_confidence, self.directory, evaluation.subject, image)
        return _give_file(read, image, "confidence", as_)

    def _find_labelled(
        self, id: str, split: str | None, em: str | None, head: str | None
    ) -> tuple[Evaluation, Image]:
        evaluation = self._evaluation(em, head)
        image = self.find_image(id, split)
        splits = evaluation.record.settings["splits"]
        if image.split not in splits:
            options = "".join(f" --split {name}" for name in (*splits, image.split))
            raise UsageError(
                f"evaluate labelled {', '.join(splits)}, not {image.split}; "
                f"run {evaluation.command[:-1]}{options}`."
            )
        return evaluation, image

    def ground_truth(self, id: str, split: str | None = None, *, as_: As = "numpy") -> Any:
        """Read the dataset's own label map of an image, uint8 [y, x]: class, 255 = ignore."""
        image = self.find_image(id, split)
        path = self._manifest.label_path(image)
        if path is None:
            raise DatasetError(
                f"image {id!r} has no label map; a folder of one's own gets them by "
                f"`primaps-pipe extract {self.directory.quoted} --labels DIR`."
            )
        read = partial(_read_truth, self._manifest.open_dataset(), path, image)
        return _give_file(read, image, "ground_truth", as_)

    # --- what was learned ------------------------------------------------------------------------

    def prototypes(
        self,
        em: str | None = None,
        *,
        head: str | None = None,
        kind: Literal["momentum", "running", "initial"] = "momentum",
        as_: As = "numpy",
    ) -> Any:
        """Read the class prototypes of a fit, or the cluster probe of a head.

        Parameters
        ----------
        em, head
            As in :meth:`labels`.
        kind
            ``momentum``, which make the labels; ``running``; ``initial``. A head has one probe.
        as_
            ``numpy`` or ``xarray``; they are small and read at once either way.

        Returns
        -------
        numpy.ndarray or xarray.DataArray
            float32 [class, channel].
        """
        subject = choose_subject(self.directory, em, head)
        self._require(subject.key)
        store = self.directory.em if subject.kind == "em" else self.directory.heads
        arrays, attributes = read_group(store, subject.name)
        _check_form(as_)
        if kind not in _PROTOTYPES:
            raise UsageError(f"kind={kind!r}: give {', '.join(map(repr, _PROTOTYPES))}.")
        name = "probe" if subject.kind == "head" else _PROTOTYPES[kind]
        if name not in arrays:
            method = attributes.get("method", "this method")
            raise UsageError(f"a fit by {method} has no {kind} prototypes; leave kind= out.")
        if as_ == "numpy":
            return arrays[name]
        dims = ("class", "channel")
        return import_xarray().DataArray(arrays[name], dims=dims, attrs=attributes, name=name)

    def metrics(self, em: str | None = None, *, head: str | None = None) -> dict[str, Any]:
        """Return the figures of an evaluation, as ``metrics.json`` has them; shares in per cent."""
        return dict(self._evaluation(em, head).metrics)

    def matching(
        self, split: str | None = None, *, em: str | None = None, head: str | None = None
    ) -> NDArray[np.uint8]:
        """Return which class every cluster was matched to, as a table to look labels up in.

        ``run.matching("train")[run.labels(id)]`` are classes. The matching is that of the
        evaluation: Hungarian, one to one, over the ground truth of a split.

        Parameters
        ----------
        split
            Whose matching; that of the figures at the top of ``metrics.json`` when None.
        em, head
            As in :meth:`labels`.

        Returns
        -------
        numpy.ndarray
            uint8 [256]: class of cluster k; 255 for 255, and for a cluster without a class.
        """
        assignment, _ = self._evaluation(em, head).match(split)
        if assignment is None:
            raise DatasetError(
                f"{split or 'no split'} of {self.path} has ground truth to match clusters to; "
                "look at run.cluster_names() instead."
            )
        return tabulate_matching(assignment)

    def cluster_names(
        self, em: str | None = None, *, head: str | None = None, split: str | None = None
    ) -> tuple[str, ...]:
        """Return the name of every cluster: that of ``names.yaml``, its class's, or its number.

        Parameters are those of :meth:`matching`.
        """
        return self._evaluation(em, head).name_clusters(split)

    # --- how it stands ---------------------------------------------------------------------------

    def __repr__(self) -> str:
        facts = "\n".join(f"  {name:<10} {text}" for name, text in self._describe())
        return f"Run({str(self.path)!r})\n{facts}"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in self._describe()
        )
        return f"<table><caption>Run {html.escape(str(self.path))}</caption>{rows}</table>"

    def _describe(self) -> list[tuple[str, str]]:
        """Describe the run in rows of a name and a text, whatever state it is in."""
        keys = self.directory.keys()
        records = {key: read_record(self.directory, key) for key in keys}
        rows = []
        extract = records.get("extract")
        if extract is not None and extract.finished:
            images = read_manifest(self.directory).images
            splits = dict.fromkeys(image.split for image in images)
            counts = [f"{split} {sum(i.split == split for i in images)}" for split in splits]
            rejected = sum(not image.ok for image in images)
            facts, words = extract.facts, f" ({rejected} rejected)" if rejected else ""
            grid = " x ".join(map(str, facts["grid"]))
            rows += [
                ("images", ", ".join(counts) + words),
                ("features", f"{facts['backbone']}, {facts['channels']} channels"),
                ("windows", f"{facts['size']} pixels, a grid of {grid}"),
            ]
        states = {}
        for key, record in records.items():
            done = "finished" if record.finished else "unfinished"
            states[key] = "stale" if find_staleness(self.directory, record) else done
        for state in ("finished", "stale", "unfinished"):
            names = [k.removesuffix(f"/{DEFAULT_NAME}") for k in keys if states[k] == state]
            rows += [(state, ", ".join(names))] if names else []
        return rows or [("empty", f"start with `primaps-pipe extract {self.directory.quoted}`")]

    def _require(self, key: str) -> StageRecord:
        """Return the record of a stage whose artefacts may be read.

        Asked for every label map that a training loop reads, so what the ledger says is kept as
        long as the plans that say it are the same files.
        """
        record, stamps = self._checked.get(key, (None, {}))
        if record is not None and self._stamp(stamps) == stamps:
            return record
        # before the ledger is read: what changes meanwhile is then noticed the next time
        stamps = self._stamp([key, *list_sources(self.directory, key)])
        record = require_fresh(self.directory, key)
        self._checked[key] = record, stamps
        return record

    def _stamp(self, keys: Iterable[str]) -> dict[str, Stamp | None]:
        files = {key: Ledger(self.directory.state(key)).file(None) for key in keys}
        return dict(zip(files, map_requests(self.path, stamp, files.values()), strict=True))

    @property
    def _manifest(self) -> Manifest:
        record = self._require("extract")
        if self._listed is None or self._listed[0] is not record:
            self._listed = record, read_manifest(self.directory)
        return self._listed[1]

    def _check_split(self, split: str) -> None:
        splits = self.splits
        if split not in splits:
            raise UsageError(
                f"no split {split!r}; the run has {', '.join(splits)}{did_you_mean(split, splits)}."
            )

    def _evaluation(self, em: str | None, head: str | None) -> Evaluation:
        """Find what was evaluated; what was read of it is kept as long as its plan is the same."""
        subject = choose_subject(self.directory, em, head)
        record = self._require(find_evaluation(self.directory, subject))
        known = self._evaluations.get(subject.title)
        if known is None or known.record is not record:
            known = Evaluation(self.directory, subject, record)
            self._evaluations[subject.title] = known
        return known

    def _give_rows(
        self,
        place: Place,
        record: StageRecord,
        split: str | None,
        image: str | None,
        as_: As,
    ) -> Any:
        """Give the rows of an array that belong to a split or an image."""
        _check_form(as_)
        windows = self.windows(split, image=image)
        numbers = np.array([window.index for window in windows], np.int64)
        if as_ == "numpy":
            return read_stored(place, numbers)
        images = [self._manifest.images[window.image] for window in windows]
        coordinates: dict[str, list[Any]] = {
            "image": [image.id for image in images],
            "split": [image.split for image in images],
            "left": [window.left for window in windows],
            "top": [window.top for window in windows],
        }
        return label_rows(place, numbers, record.digest, coordinates)


def _check_form(as_: str) -> None:
    if as_ not in ("numpy", "xarray"):
        raise UsageError(f"as_={as_!r}: give 'numpy' or 'xarray'.")


def _give_file(
    read: Callable[[], NDArray[np.uint8]], image: Image, name: str, as_: As, *inner: str
) -> Any:
    """Give what a file of an image holds, uint8 [y, x] and further axes of length 3."""
    _check_form(as_)
    if as_ == "numpy":
        return read()
    shape = (image.height, image.width, *(3 for _ in inner))
    facts = {"image": image.id, "split": image.split}
    return label_file(read, shape, ("y", "x", *inner), name, facts)


def _read_truth(dataset: Dataset, path: Path, image: Image) -> NDArray[np.uint8]:
    try:
        return read_truth(dataset, path, image)
    except ImageError as error:
        raise ImageError(f"the label map {path} cannot be read: {error}.") from error


def find_image(run: RunDirectory, manifest: Manifest, text: str, split: str | None = None) -> Image:
    """Find the image that a text means: split/id, its id, its path, or the last part of one."""
    images = [image for image in manifest.images if split in (None, image.split)]
    if not images:
        raise UsageError(f"no image {text!r} in {run.path}: it has no images at all.")
    matches = ([image for image in images if way(manifest, image, text)] for way in _WAYS)
    found = next(filter(None, matches), [])
    if not found:
        names = [n for i in images for n in (i.id, f"{i.split}/{i.id}", _last_part(i.path))]
        raise UsageError(
            f"no image {text!r} in {f'{split} of ' if split else ''}{run.path}"
            f"{did_you_mean(text, list(dict.fromkeys(names)))}; give an id such as "
            f"{images[0].id!r}, split/id, or the photograph's path."
        )
    if len(found) > 1:
        choices = ", ".join(f"{image.split}/{image.id}" for image in found[:_MOST_LISTED])
        more = f" and {len(found) - _MOST_LISTED} more" if len(found) > _MOST_LISTED else ""
        raise UsageError(f"{text!r} may be any of {choices}{more}: give one of these.")
    (image,) = found
    if not image.ok:
        raise ImageError(
            f"image {image.id!r} was rejected by extract: {image.reason}; "
            f"mend {image.path} and run `primaps-pipe extract {run.quoted}` again."
        )
    return image


def _is_file(manifest: Manifest, image: Image, text: str) -> bool:
    """Whether the text leads to the photograph, by another way perhaps."""
    if _last_part(text) != _last_part(image.path):
        return False
    place = manifest.root / image.path
    if is_remote(manifest.root):
        return text == str(place)
    return Path(text).expanduser().resolve() == place.resolve()


def _last_part(name: str) -> str:
    return name.rpartition("/")[2]


# What a text may be to an image, the first that any image has it to.
_WAYS: tuple[Callable[[Manifest, Image, str], bool], ...] = (
    lambda _, image, text: text == f"{image.split}/{image.id}",
    lambda _, image, text: text == image.id,
    lambda _, image, text: text == image.path,
    _is_file,
    lambda _, image, text: text in (_last_part(image.id), _last_part(image.path)),
)
