"""Arrays of a run as xarray shows them: labelled, and read when they are computed.

Every chunk is one shard or one file, read by the functions that check what they read; zarr itself
would take a shard that is gone for one of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.storage.arrays import open_arrays, read_rows, take_rows
from pipeline.storage.files import fingerprint

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Some rows of a stored array; indexing it reads them."""

    store: Path
    name: str
    numbers: NDArray[np.int64]
    made: str

    def describe(self) -> tuple[tuple[int, ...], np.dtype[Any], tuple[str, ...], dict[str, Any]]:
        """Return shape, type, names of the axes and attributes, without reading a row."""
        array = open_arrays(self.store, [self.name])[self.name]
        metadata: Any = array.metadata
        attributes = {k: v for k, v in array.attrs.asdict().items() if k != "checksum"}
        shape = (len(self.numbers), *array.shape[1:])
        return shape, array.dtype.newbyteorder("="), tuple(metadata.dimension_names), attributes

    def count_by_shard(self) -> tuple[int, ...]:
        """Count the rows that lie in each shard."""
        shards = open_arrays(self.store, [self.name])[self.name].shards
        rows = len(self.numbers) if shards is None else shards[0]
        _, counts = np.unique(self.numbers // max(rows, 1), return_counts=True)
        return tuple(counts.tolist()) or (0,)

    def read(self, numbers: NDArray[np.int64] | None = None) -> NDArray[Any]:
        """Read the rows, or those of some of their numbers."""
        numbers = self.numbers if numbers is None else numbers
        array = open_arrays(self.store, [self.name])[self.name]
        out = np.empty((len(numbers), *array.shape[1:]), array.dtype.newbyteorder("="))
        if not len(numbers):
            return out
        start, stop = int(numbers[0]), int(numbers[-1]) + 1
        if stop - start == len(numbers):
            return read_rows(array, start, stop, out)
        take_rows(array, numbers, out)
        return out

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Read what an index selects: a slice or a number of every axis, as dask asks for it."""
        first, *others = index if isinstance(index, tuple) else (index,)
        rows = self.read(np.atleast_1d(self.numbers[first]))
        # one row that was asked for by its number has lost its axis
        return rows[(0 if np.ndim(self.numbers[first]) == 0 else slice(None), *others)]


def label_rows(rows: StoredRows, coordinates: Mapping[str, Sequence[Any]]) -> xarray.DataArray:
    """Show rows of a stored array as a lazy, labelled array; a chunk is what one shard holds."""
    xarray = import_xarray()
    import dask.array

    shape, dtype, dims, attributes = rows.describe()
    name = f"{rows.name}-{fingerprint(str(rows.store), rows.made, rows.numbers.tolist())}"
    values = dask.array.from_array(
        _Shaped(rows, shape, dtype),
        chunks=(rows.count_by_shard(), *((length,) for length in shape[1:])),
        name=name,
        asarray=False,
        fancy=False,
        meta=np.empty((0,) * len(shape), dtype),
    )
    labels = {dims[0]: rows.numbers} | {
        key: (dims[0], np.asarray(values)) for key, values in coordinates.items()
    }
    return xarray.DataArray(values, dims=dims, coords=labels, attrs=attributes, name=rows.name)


@dataclass(frozen=True, eq=False)
class _Shaped:
    """Rows with the shape and type that dask asks an array for."""

    rows: StoredRows
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        return self.rows[index]


def label_file(
    read: Callable[[], NDArray[np.uint8]],
    shape: tuple[int, ...],
    dims: tuple[str, ...],
    name: str,
    attributes: Mapping[str, Any],
) -> xarray.DataArray:
    """Show what a file holds as a lazy, labelled array of one chunk."""
    xarray = import_xarray()
    import dask.array
    from dask.delayed import delayed

    values = dask.array.from_delayed(delayed(read, pure=False)(), shape, dtype=np.uint8)
    return xarray.DataArray(values, dims=dims, attrs=dict(attributes), name=name)


def import_xarray() -> Any:
    """Import xarray, which an install may do without."""
    try:
        import xarray
    except ImportError as error:
        raise UsageError(
            "as_='xarray' needs xarray, which is not installed: pip install 'primaps-pipe[xarray]'."
        ) from error
    return xarray
