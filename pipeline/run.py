"""The results of a run in Python: ``from pipeline import Run``.

>>> run = Run("runs/mine")
>>> features = run.features("train")  # float16 [window, row, column, channel]
>>> labels = run.labels("street/0001")  # uint8 [y, x], cluster of every pixel, 255 = ignore

Nothing is written. What has not been computed, or was made from something in the run that has
changed since, is refused with the command that makes it; ``primaps-pipe status`` also looks at what
lies outside the run.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.cluster_names import read_cluster_names, read_matching
from pipeline.contents import Contents
from pipeline.datasets import IGNORE
from pipeline.errors import DatasetError, RunError, UsageError
from pipeline.files import read_json
from pipeline.frames import read_frame
from pipeline.ledger import StageRecord
from pipeline.readout import As, check_form, give_file, give_rows, read_png, read_truth
from pipeline.settings import did_you_mean
from pipeline.subject import choose_subject

_PROTOTYPES = {
    "momentum": "momentum_prototypes",
    "running": "prototypes",
    "initial": "initial_prototypes",
}


class Run(Contents):
    """The results of one run, read-only.

    Parameters
    ----------
    path
        The run directory, or a prefix of an object store (``s3://bucket/prefix``).

    Raises
    ------
    RunError
        It is no run directory.

    Notes
    -----
    Arrays come as NumPy by default, read at once: ``features`` of N windows of DINOv2 ViT-S/14 at
    322 pixels take N x 0.4 MB. With ``as_="xarray"`` they are labelled, backed by dask, and read
    when they are computed, shard by shard.
    """

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

        Raises
        ------
        UsageError
            There is no such view, split or image.
        RunError
            ``extract`` is unfinished or stale.
        """
        if view not in self.views:
            raise UsageError(
                f"no view {view!r}; the run has {', '.join(self.views)}"
                f"{did_you_mean(view, self.views)}."
            )
        record = self._catalogue.require("extract" if view in ("clean", "mirror") else "views")
        return self._give_rows(self.directory.features, view, record, split, image, as_)

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
        record = self._catalogue.require(f"encode/{subject.name}")
        if view not in record.facts["views"]:
            raise UsageError(
                f"no view {view!r}; the codes have {', '.join(record.facts['views'])}."
            )
        return self._give_rows(self.directory.codes(head), view, record, split, image, as_)

    def proposals(
        self, split: str | None = None, *, image: str | None = None, as_: As = "numpy"
    ) -> Any:
        """Read the mask proposals: uint8 [window, y, x], number of the proposal, 0 = none.

        Parameters are those of :meth:`features`. A window of 322 pixels takes 0.1 MB.
        """
        record = self._catalogue.require("masks")
        return self._give_rows(self.directory.masks, "proposals", record, split, image, as_)

    def pooled(
        self, split: str | None = None, *, image: str | None = None, as_: As = "numpy"
    ) -> Any:
        """Read the mean unit feature of every proposal: float16 [window, proposal, channel].

        Row j of a window is proposal j + 1; rows of proposals that a window does not have are 0.
        Parameters are those of :meth:`features`.
        """
        record = self._catalogue.require("masks")
        return self._give_rows(self.directory.masks, "pooled", record, split, image, as_)

    # --- one image -------------------------------------------------------------------------------

    def photograph(self, id: str, split: str | None = None, *, as_: As = "numpy") -> Any:
        """Read a photograph upright, uint8 [y, x, rgb].

        Raises
        ------
        UsageError
            There is no such image.
        StaleError
            The file is gone or has changed since it was extracted.
        """
        image = self.find_image(id, split)
        read = partial(read_frame, self._manifest.root, image, image.width, image.height)
        return give_file(read, image, "photograph", as_, "rgb")

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

        Raises
        ------
        UsageError
            There is no such image, fit or head, or its split was not evaluated.
        RunError
            ``evaluate`` is unfinished or stale.
        """
        subject, record = self._catalogue.require_labels(em, head)
        image = self.find_image(id, split)
        command = f"`primaps-pipe evaluate {self.directory.quoted}{subject.options}`"
        splits = record.settings["splits"]
        if image.split not in splits:
            options = "".join(f" --split {name}" for name in (*splits, image.split))
            raise UsageError(
                f"evaluate labelled {', '.join(splits)}, not {image.split}; "
                f"run {command[:-1]}{options}`."
            )
        file = self.directory.labels(subject.title) / image.split / f"{image.id}.png"
        return give_file(partial(read_png, file, command), image, "labels", as_)

    def ground_truth(self, id: str, split: str | None = None, *, as_: As = "numpy") -> Any:
        """Read the dataset's own label map of an image, uint8 [y, x]: class, 255 = ignore.

        Raises
        ------
        UsageError
            There is no such image.
        DatasetError
            It has no label map.
        ImageError
            The label map cannot be read.
        """
        image = self.find_image(id, split)
        path = self._manifest.label_path(image)
        if path is None:
            raise DatasetError(
                f"image {id!r} has no label map; a folder of one's own gets them by "
                f"`primaps-pipe extract {self.directory.quoted} --labels DIR`."
            )
        read = partial(read_truth, self._dataset, path, image)
        return give_file(read, image, "ground_truth", as_)

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

        Raises
        ------
        UsageError
            There is no such fit, head or kind.
        RunError
            It is unfinished or stale.
        """
        from pipeline.store import read_group

        subject = choose_subject(self.directory, em, head)
        self._catalogue.require(subject.key)
        store = self.directory.em if subject.kind == "em" else self.directory.heads
        arrays, attributes = read_group(store, subject.name)
        check_form(as_)
        if kind not in _PROTOTYPES:
            raise UsageError(f"kind={kind!r}: give {', '.join(map(repr, _PROTOTYPES))}.")
        name = "probe" if subject.kind == "head" else _PROTOTYPES[kind]
        if name not in arrays:
            method = attributes.get("method", "this method")
            raise UsageError(f"a fit by {method} has no {kind} prototypes; leave kind= out.")
        if as_ == "numpy":
            return arrays[name]
        from pipeline.lazy import import_xarray

        dims = ("class", "channel")
        return import_xarray().DataArray(arrays[name], dims=dims, attrs=attributes, name=name)

    def metrics(self, em: str | None = None, *, head: str | None = None) -> dict[str, Any]:
        """Return the figures of an evaluation, as ``metrics.json`` has them; shares in per cent.

        Raises
        ------
        RunError
            ``evaluate`` is unfinished or stale.
        """
        subject, _ = self._catalogue.require_labels(em, head)
        file = self.directory.report(subject.title) / "metrics.json"
        metrics = read_json(file)
        if metrics is None:
            raise RunError(
                f"{file} is gone; run `primaps-pipe evaluate "
                f"{self.directory.quoted}{subject.options}` again."
            )
        return dict(metrics)

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

        Raises
        ------
        DatasetError
            The split has no ground truth.
        UsageError
            The split was not evaluated.
        """
        subject, _ = self._catalogue.require_labels(em, head)
        _, assignment, _ = read_matching(self.directory, subject.title, split)
        if assignment is None:
            raise DatasetError(
                f"{split or 'no split'} of {self.path} has ground truth to match clusters to; "
                "look at run.cluster_names() instead."
            )
        table = np.full(IGNORE + 1, IGNORE, np.uint8)
        for cluster, matched in enumerate(assignment):
            table[cluster] = IGNORE if matched is None else matched
        return table

    def cluster_names(
        self, em: str | None = None, *, head: str | None = None, split: str | None = None
    ) -> tuple[str, ...]:
        """Return the name of every cluster: that of ``names.yaml``, its class's, or its number.

        Parameters are those of :meth:`matching`.
        """
        subject, _ = self._catalogue.require_labels(em, head)
        return read_cluster_names(self.directory, subject.title, split)

    def _give_rows(
        self,
        store: Path,
        name: str,
        record: StageRecord,
        split: str | None,
        image: str | None,
        as_: As,
    ) -> Any:
        return give_rows(self._catalogue, (store, name), record, (split, image), as_)
