"""What the evaluate stage reads of a run, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.condition import inspect_stage, read_record
from pipeline.datasets import Dataset, get_dataset
from pipeline.devices import resolve_device
from pipeline.errors import ImageError
from pipeline.frames import read_frame, resize_labels
from pipeline.manifest import Image, Manifest, read_manifest
from pipeline.run import Run
from pipeline.store import open_arrays, read_group, read_rows
from pipeline.windows import Window, bounding_box
from stages.evaluate.stitching import Box, average_views, classify


@dataclass(frozen=True)
class Cover:
    """The part of a resized image that its windows cover.

    Attributes
    ----------
    windows
        The image's windows.
    box
        The smallest box that holds them all: left, top, right, bottom, pixels.
    resized
        Width and height of the whole resized image, pixels.
    """

    windows: tuple[Window, ...]
    box: Box
    resized: tuple[int, int]

    @property
    def area(self) -> tuple[slice, slice]:
        """The box as an index into [y, x, ...]."""
        left, top, right, bottom = self.box
        return slice(top, bottom), slice(left, right)

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The windows' boxes, counted from the corner of ``box``."""
        left, top = self.box[:2]
        return tuple(
            (x0 - left, y0 - top, x1 - left, y1 - top)
            for x0, y0, x1, y1 in (window.box for window in self.windows)
        )

    @property
    def rows(self) -> slice:
        """The windows' rows in the arrays."""
        return slice(self.windows[0].index, self.windows[-1].index + 1)


@dataclass(frozen=True)
class Artefacts:
    """A run and one of its fits, open for reading.

    Attributes
    ----------
    run, manifest, dataset
        The run, its images, and the dataset they are of.
    fit
        Name of the fit.
    prototypes
        float32 [cluster, channel]: the momentum prototypes.
    logits
        ``inner product`` or ``cosine``.
    size
        Side of a window, pixels.
    has_proposals
        Whether there are proposals of these very features.
    """

    run: Run
    manifest: Manifest
    dataset: Dataset
    fit: str
    prototypes: Tensor
    logits: str
    size: int
    has_proposals: bool

    def cover(self, image: Image) -> Cover:
        """Return what of an image its windows cover."""
        windows = self.manifest.windows_of(image)
        return Cover(tuple(windows), bounding_box(windows), (windows[0].width, windows[0].height))

    def read_logits(
        self, images: Sequence[Image], *, gain: float, device: str
    ) -> dict[int, Tensor]:
        """Classify every position of some images, lying together in the arrays, at once.

        Returns
        -------
        dict
            Row of the image -> float32 [window, cluster, row, column].
        """
        covers = {image.image: self.cover(image) for image in images}
        if not covers:
            return {}
        first = min(cover.rows.start for cover in covers.values())
        last = max(cover.rows.stop for cover in covers.values())
        views = open_arrays(self.run.features, ["clean", "mirror"])
        target = resolve_device(device)
        clean, mirror = (
            torch.from_numpy(read_rows(views[view], first, last)).to(target).float()
            for view in ("clean", "mirror")
        )
        logits = classify(
            average_views(clean, mirror),
            self.prototypes.to(target),
            logits=self.logits,
            gain=gain,
        ).cpu()
        return {
            row: logits[cover.rows.start - first : cover.rows.stop - first]
            for row, cover in covers.items()
        }

    def read_pixels(self, image: Image) -> NDArray[np.uint8]:
        """Read the covered part of the resized image, uint8 [y, x, rgb]."""
        cover = self.cover(image)
        return read_frame(self.manifest.root, image, *cover.resized)[cover.area]

    def read_truth(self, image: Image) -> NDArray[np.uint8] | None:
        """Read the label map of the covered part, uint8 [y, x]; None where there is none.

        Raises
        ------
        ImageError
            It cannot be read, or is not of the image's size.
        """
        path = self.manifest.label_path(image)
        if path is None:
            return None
        truth = self.dataset.read_label(path)
        if truth.shape != (image.height, image.width):
            raise ImageError(
                f"it is {truth.shape[1]} x {truth.shape[0]}, "
                f"the image {image.width} x {image.height}"
            )
        cover = self.cover(image)
        return resize_labels(truth, *cover.resized)[cover.area]

    def read_features(self, image: Image) -> NDArray[np.float32]:
        """Read the features of an image's windows, float32 [window, row, column, channel]."""
        clean = open_arrays(self.run.features, ["clean"])["clean"]
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


def open_artefacts(run: Run, fit: str) -> Artefacts:
    """Open a run and one of its fits."""
    manifest = read_manifest(run)
    arrays, attributes = read_group(run.em, fit)
    return Artefacts(
        run=run,
        manifest=manifest,
        dataset=get_dataset(manifest.dataset),
        fit=fit,
        prototypes=torch.from_numpy(arrays["momentum_prototypes"]),
        logits=attributes["logits"],
        size=read_record(run, "extract").facts["size"],
        has_proposals=inspect_stage(run, "masks").state == "fresh" and run.masks.is_dir(),
    )
