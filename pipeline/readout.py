"""How arrays of a run are given to its users: as NumPy, read now, or as xarray, lazy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.catalogue import Catalogue
from pipeline.datasets import Dataset
from pipeline.errors import AccessError, DamageError, ImageError, RunError, UsageError
from pipeline.images import read_label
from pipeline.ledger import StageRecord
from pipeline.manifest import Image

As = Literal["numpy", "xarray"]


def check_form(as_: str) -> None:
    """Refuse what is neither ``numpy`` nor ``xarray``."""
    if as_ not in ("numpy", "xarray"):
        raise UsageError(f"as_={as_!r}: give 'numpy' or 'xarray'.")


def give_rows(
    catalogue: Catalogue,
    array: tuple[Path, str],
    record: StageRecord,
    which: tuple[str | None, str | None],
    as_: As,
) -> Any:
    """Give the rows of an array that belong to a split or an image.

    Parameters
    ----------
    catalogue
        Of the run.
    array
        The store, and the name of the array in it.
    record
        Of the stage that wrote it.
    which
        Split and image, as :meth:`pipeline.catalogue.Catalogue.select_windows` takes them.
    as_
        The form.

    Returns
    -------
    numpy.ndarray or xarray.DataArray
        [window, ...], in the type of the array.
    """
    from pipeline.lazy import StoredRows, label_rows

    check_form(as_)
    windows = catalogue.select_windows(*which)
    numbers = np.array([window.index for window in windows], np.int64)
    stored = StoredRows(*array, numbers, record.digest)
    if as_ == "numpy":
        return stored.read()
    images = [catalogue.manifest.images[window.image] for window in windows]
    coordinates: dict[str, list[Any]] = {
        "image": [image.id for image in images],
        "split": [image.split for image in images],
        "left": [window.left for window in windows],
        "top": [window.top for window in windows],
    }
    return label_rows(stored, coordinates)


def give_file(
    read: Callable[[], NDArray[np.uint8]], image: Image, name: str, as_: As, *inner: str
) -> Any:
    """Give what a file of an image holds, uint8 [y, x] and further axes of length 3."""
    check_form(as_)
    if as_ == "numpy":
        return read()
    from pipeline.lazy import label_file

    shape = (image.height, image.width, *(3 for _ in inner))
    facts = {"image": image.id, "split": image.split}
    return label_file(read, shape, ("y", "x", *inner), name, facts)


def read_png(file: Path, command: str) -> NDArray[np.uint8]:
    """Read a label map that ``evaluate`` wrote; ``command`` makes it again."""
    try:
        return read_label(file).astype(np.uint8)
    except AccessError as error:
        raise RunError(f"{file} cannot be read ({error}); run {command} again.") from error
    except ImageError as error:
        raise DamageError(f"{file} is damaged ({error}); run {command} again.") from error


def read_truth(dataset: Dataset, path: Path, image: Image) -> NDArray[np.uint8]:
    """Read the dataset's label map of an image as classes, uint8 [y, x]."""
    try:
        truth = dataset.read_label(path)
    except ImageError as error:
        raise ImageError(f"the label map {path} cannot be read: {error}.") from error
    if truth.shape != (image.height, image.width):
        raise ImageError(
            f"the label map {path} is {truth.shape[1]} x {truth.shape[0]}, "
            f"its image {image.width} x {image.height}."
        )
    return truth
