"""Label maps are what people correct: none that a person has changed is written over or removed.

A map that is ours has a checksum that a record of the ledger names or, while a stage is at work, a
note beside it, which is written before the map. Other bytes are a person's where they are a whole
image: no fault of a disk makes one.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from pipeline.errors import ImageError, RunError
from pipeline.progress import Screen
from pipeline.run.confidence import is_map
from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import Ledger, StageRecord
from pipeline.storage.files import (
    checksum,
    read_checked_json,
    remove_tree,
    write_bytes,
    write_checked_json,
)
from pipeline.storage.places import find_files

T = TypeVar("T")
BY_HAND = "was changed by hand"
_OTHERS = "others"
# Names of maps, relative to the run -> the checksums that are ours.
Sums = dict[str, list[str]]


def find_by_hand(run: RunDirectory, record: StageRecord | None, names: Iterable[str]) -> list[str]:
    """Return those of files not as a stage wrote them that are a person's, not gone or cut."""
    return [name for name in names if is_by_hand(_read(run.path / name), name, record)]


def is_by_hand(content: bytes | None, name: str, record: StageRecord | None) -> bool:
    """Whether other bytes than a stage wrote, under the name of a file of a run, are a person's."""
    # help pages, which need the runner, do without Pillow
    from pipeline.images.decoding import is_whole_image

    return is_map(name, record) and content is not None and is_whole_image(content)


def make_refusal(run: RunDirectory, key: str, names: Collection[str]) -> RunError:
    """Say which maps a person has changed, and what to do."""
    record = Ledger(run.state(key)).recall_stage()
    verb, options = ("evaluate", "") if record is None else (record.command, record.options)
    it = "it" if len(names) == 1 else "them"
    return RunError(
        f"{_name_some(names)} was changed by hand since {verb} wrote {it}; to keep {it}, run "
        f"`{name_keeping(run, names)}`; to drop {it}, "
        f"run `primaps-pipe {verb} {run.quoted}{options} --force`."
    )


def name_keeping(run: RunDirectory, names: Collection[str]) -> str:
    """Return the command that keeps the maps that a person has changed."""
    folder = shlex.quote(str(run.path / min(names).partition("/")[0]))
    return f"primaps-pipe correct {run.quoted} --from {folder}"


def _name_some(names: Collection[str]) -> str:
    return min(names) + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def guard_maps(
    run: RunDirectory,
    key: str,
    folder: Path,
    shards: Mapping[int, Iterable[Path]],
    pending: Collection[int],
    *,
    force: bool,
    screen: Screen,
) -> None:
    """Refuse to go on where a person has changed a map; note what else lies there as ours.

    ``shards`` names the maps of every shard, of which some are ``pending``; ``force`` gives up what
    was changed.
    """
    known, found = _list_known(run, key), _list_found(run, folder, ())
    changed = _find_changed(run, key, known, found)
    if changed and not force:
        raise make_refusal(run, key, changed)
    if changed:
        screen.warn(f"{key}: {_name_some(changed)} {BY_HAND}, and is dropped: --force.")
    notes: dict[str, Sums] = {}
    for shard, files in shards.items():
        names = {run.name_file(file) for file in files} & found.keys()
        ours = {name for name in names if force or name in known}
        sums = {name: [found.pop(name)] for name in ours}
        if shard in pending:
            notes[f"{shard:06d}"] = sums
    notes[_OTHERS] = {name: [total] for name, total in found.items() if name in known}
    for name, sums in notes.items():
        write_checked_json(_notes(run, key) / f"{name}.json", sums)


def find_changed_maps(run: RunDirectory, key: str, folder: Path) -> list[str]:
    """Return the names of the maps in a folder that a stage wrote and a person has changed."""
    return _find_changed(run, key, _list_known(run, key), _list_found(run, folder, ()))


def _find_changed(
    run: RunDirectory, key: str, known: Mapping[str, Collection[str]], found: Mapping[str, str]
) -> list[str]:
    other = (n for n, total in found.items() if n in known and total not in known[n])
    return find_by_hand(run, Ledger(run.state(key)).recall_stage(), other)


def note_maps(run: RunDirectory, key: str, shard: int, sums: Mapping[str, str]) -> Sums:
    """Note checksums of a shard's maps as ours, beside those that were; return all of them."""
    file = _notes(run, key) / f"{shard:06d}.json"
    ours: Sums = read_checked_json(file) or {}
    ours |= {name: [*ours.get(name, ()), total] for name, total in sums.items()}
    write_checked_json(file, ours)
    return ours


def write_maps(run: RunDirectory, key: str, shard: int, maps: Mapping[Path, bytes]) -> None:
    """Write the maps of a shard; one that a person has changed meanwhile is left, and said so."""
    new = {run.name_file(path): checksum(content) for path, content in maps.items()}
    ours = note_maps(run, key, shard, new)
    record = Ledger(run.state(key)).recall_stage()

    def look(path: Path) -> tuple[str, bool]:
        name, old = run.name_file(path), _read(path)
        mine = old is None or checksum(old) in ours[name] or _strip(old) == _strip(maps[path])
        return name, mine or not is_by_hand(old, name, record)

    changed = [name for name, mine in _map(look, maps) if not mine]
    if changed:
        raise make_refusal(run, key, changed)
    list(_map(lambda path: write_bytes(path, maps[path]), maps))


def _strip(content: bytes) -> bytes:
    """Take the palette out of a map: it is painted when all of them are matched."""
    from pipeline.images.decoding import repaint_png

    try:
        return repaint_png(content, bytes(768))
    except ImageError:
        return content


def remove_other_maps(
    run: RunDirectory, key: str, folder: Path, keep: Collection[Path]
) -> tuple[list[str], list[str]]:
    """Remove the maps of an earlier evaluation, which would be taken for those of this one.

    Returns what was removed, and what lies there that no evaluation has written.
    """
    from pipeline.images.decoding import remove_files

    ours = read_checked_json(_notes(run, key) / f"{_OTHERS}.json") or {}
    found = _list_found(run, folder, keep)
    mine = {name for name, total in found.items() if total in ours.get(name, ())}
    remove_files(folder, (run.path / name for name in mine))
    return sorted(mine), sorted(found.keys() - mine)


def forget_notes(run: RunDirectory, key: str) -> None:
    """Forget the notes of a stage that is finished: its records say it all."""
    remove_tree(_notes(run, key))


def _notes(run: RunDirectory, key: str) -> Path:
    return run.state(key) / "maps"


def _list_known(run: RunDirectory, key: str) -> dict[str, set[str]]:
    known: dict[str, set[str]] = {}
    for record in Ledger(run.state(key)).read_shards().values():
        for name, (_, total) in record.files.items():
            known.setdefault(name, set()).add(total)
    for file in _notes(run, key).glob("*.json"):
        for name, sums in (read_checked_json(file) or {}).items():
            known.setdefault(name, set()).update(sums)
    return known


def _list_found(run: RunDirectory, folder: Path, keep: Collection[Path]) -> dict[str, str]:
    """Return the checksums of the maps below a folder, but for some; those are not read."""
    kept = {run.name_file(file) for file in keep}
    found = (file for file in find_files(folder) if file.suffix == ".png")
    files = (file for file in found if run.name_file(file) not in kept)
    read = _map(lambda file: (file, _read(file)), files)
    return {run.name_file(file): checksum(content) for file, content in read if content is not None}


def _map(function: Callable[[Path], T], files: Iterable[Path]) -> Iterator[T]:
    from pipeline.run.frames import count_threads, map_ahead

    return map_ahead(function, files, count_threads(), count_threads())


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
