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

# A store, and the name of an array in it.
Place = tuple[Path, str]


def read_stored(place: Place, numbers: NDArray[np.int64]) -> NDArray[Any]:
    """Read some rows of a stored array."""
    array = open_arrays(place[0], [place[1]])[place[1]]
    out = np.empty((len(numbers), *array.shape[1:]), array.dtype.newbyteorder("="))
    if not len(numbers):
        return out
    start, stop = int(numbers[0]), int(numbers[-1]) + 1
    if stop - start == len(numbers):
        return read_rows(array, start, stop, out)
    take_rows(array, numbers, out)
    return out


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of a stored array as dask asks an array for them: indexing it reads."""

    place: Place
    numbers: NDArray[np.int64]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Read what an index selects: a slice or a number of every axis."""
        first, *others = index if isinstance(index, tuple) else (index,)
        rows = read_stored(self.place, np.atleast_1d(self.numbers[first]))
        # one row that was asked for by its number has lost its axis
        return rows[(0 if np.ndim(self.numbers[first]) == 0 else slice(None), *others)]


def label_rows(
    place: Place,
    numbers: NDArray[np.int64],
    made: str,
    coordinates: Mapping[str, Sequence[Any]],
) -> xarray.DataArray:
    """Show rows of an array as a lazy, labelled one; a chunk is what one shard holds of them.

    ``made`` is the fingerprint of what was stored, ``coordinates`` say more of every row.
    """
    xarray = import_xarray()
    import dask.array

    store, name = place
    array = open_arrays(store, [name])[name]
    metadata: Any = array.metadata
    attributes = {k: v for k, v in array.attrs.asdict().items() if k != "checksum"}
    shape, dtype = (len(numbers), *array.shape[1:]), array.dtype.newbyteorder("=")
    shard = len(numbers) if array.shards is None else array.shards[0]
    _, counts = np.unique(numbers // max(shard, 1), return_counts=True)
    values = dask.array.from_array(
        _Rows(place, numbers, shape, dtype),
        chunks=(tuple(counts.tolist()) or (0,), *((length,) for length in shape[1:])),
        name=f"{name}-{fingerprint(str(store), made, numbers.tolist())}",
        asarray=False,
        fancy=False,
        meta=np.empty((0,) * len(shape), dtype),
    )
    dims = tuple(metadata.dimension_names)
    labels = {dims[0]: numbers} | {k: (dims[0], np.asarray(v)) for k, v in coordinates.items()}
    return xarray.DataArray(values, dims=dims, coords=labels, attrs=attributes, name=name)


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
