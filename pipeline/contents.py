"""What there is in a run: images, splits, windows, fits and heads."""

from __future__ import annotations

import html
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.catalogue import Catalogue
from pipeline.datasets import Dataset
from pipeline.datasets.palettes import png_palette
from pipeline.manifest import Image, Manifest
from pipeline.metadata import list_nodes
from pipeline.places import parse_place
from pipeline.run_directory import RunDirectory
from pipeline.tables import decode_table
from pipeline.windows import Window


class Contents:
    """What there is in a run; :class:`pipeline.run.Run` reads it.

    Parameters
    ----------
    path
        The run directory, or a prefix of an object store (``s3://bucket/prefix``).

    Raises
    ------
    RunError
        It is no run directory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.directory = RunDirectory(parse_place(path)).require()
        self._catalogue = Catalogue(self.directory)

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    @property
    def images(self) -> tuple[Image, ...]:
        """One record per image: ``id``, ``split``, ``width``, ``height``, ``ok`` and others."""
        return self._manifest.images

    def table(self) -> pa.Table:
        """Return the images as a table with the columns of ``manifest.parquet``.

        ``run.table().to_pandas()`` makes a data frame of it.
        """
        self._catalogue.require("extract")
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

        Raises
        ------
        UsageError
            There is no such split or image.
        """
        return self._catalogue.select_windows(split, image)

    @property
    def views(self) -> tuple[str, ...]:
        """What :meth:`features` takes as ``view``: ``clean``, ``mirror``, and further ones."""
        self._catalogue.require("extract")
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
        return self._dataset.class_names(self._manifest.labels)

    @property
    def palette(self) -> NDArray[np.uint8]:
        """Colours of the classes, uint8 [256, rgb]: ``run.palette[classes]`` is a picture."""
        colours = png_palette(self._dataset.palette[: len(self.class_names)])
        return np.frombuffer(colours, np.uint8).reshape(-1, 3)

    def find_image(self, id: str, split: str | None = None) -> Image:
        """Find the record of an image that the stages used.

        Parameters
        ----------
        id
            As in ``run.images``.
        split
            Its split, needed where several have an image of that id.

        Raises
        ------
        UsageError
            There is none, or more than one.
        ImageError
            It was rejected.
        """
        return self._catalogue.find_image(id, split)

    def __repr__(self) -> str:
        facts = "\n".join(f"  {name:<10} {text}" for name, text in self._catalogue.describe())
        return f"Run({str(self.path)!r})\n{facts}"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in self._catalogue.describe()
        )
        return f"<table><caption>Run {html.escape(str(self.path))}</caption>{rows}</table>"

    @property
    def _manifest(self) -> Manifest:
        return self._catalogue.manifest

    @property
    def _dataset(self) -> Dataset:
        return self._manifest.open_dataset()
