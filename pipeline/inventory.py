"""The inventory: what was written below a run, as the ledger's records name it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from pipeline.files import Stored, note_file
from pipeline.ledger import Files
from pipeline.places import is_remote, map_requests
from pipeline.run_directory import RunDirectory


def list_files(run: RunDirectory, written: Sequence[Stored]) -> Files:
    """Name the files below the run, as they were written last."""
    inside = (stored for stored in written if stored.path.is_relative_to(run.path))
    return {
        stored.path.relative_to(run.path).as_posix(): (stored.bytes, stored.checksum)
        for stored in inside
    }


def note_files(run: RunDirectory, files: Files) -> None:
    """Note files that are right already as written (see :func:`pipeline.files.note_writes`)."""
    for name, (size, checksum) in files.items():
        note_file(Stored(run.path / name, size, checksum))


def list_sizes(run: RunDirectory) -> Mapping[str, int] | None:
    """List the bytes of all objects below a run, by their relative names; None on a file system.

    A store answers for a thousand objects as fast as for one.
    """
    if not is_remote(run.path):
        return None
    from pipeline.objects import find_objects

    return {name: status.st_size for name, status in find_objects(run.path)}


def find_lost(run: RunDirectory, files: Files, sizes: Mapping[str, int] | None = None) -> list[str]:
    """Return those of some files, relative to the run, that are gone or of another size.

    Parameters
    ----------
    run
        The run.
    files
        As a record names them.
    sizes
        What :func:`list_sizes` found; every file is asked for alone when None.
    """
    if sizes is None:
        found = map_requests(run.path, partial(_measure, run), files)
    else:
        found = [sizes.get(name) for name in files]
    sought = zip(files.items(), found, strict=True)
    return [name for (name, (size, _)), other in sought if other != size]


def _measure(run: RunDirectory, name: str) -> int | None:
    try:
        return (run.path / name).stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None
