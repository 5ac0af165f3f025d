"""A fit or head that was evaluated: its scores, its settings and its label maps, read for reuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import list_sources
from pipeline.settings import field_extra
from stages import SETTINGS


def list_settings(run: RunDirectory, key: str) -> dict[str, Any]:
    """List every setting that has a part in what a stage wrote, those of all before it included."""
    return {
        f"{record.stage}.{name}": value
        for record in list_sources(run, key).values()
        for name, value in record.settings.items()
        if name not in _list_execution(record.stage)
    }


def _list_execution(stage: str) -> frozenset[str]:
    """List the options of a stage that change nothing in what it writes."""
    known = SETTINGS[stage]
    return frozenset(n for n in known.model_fields if not field_extra(known, n, "affects_output"))


def find_differences(settings: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Find the settings in which some differ."""
    names = dict.fromkeys(name for mapping in settings for name in mapping)
    rows = {name: tuple(mapping.get(name) for mapping in settings) for name in names}
    return {name: row for name, row in rows.items() if any(value != row[0] for value in row)}


def name_columns(places: Sequence[tuple[Path, str]]) -> list[str]:
    """Name what is compared as shortly as tells them apart."""
    runs = list(dict.fromkeys(path for path, _ in places))
    short = dict(zip(runs, _shorten_paths(runs), strict=True))
    if len(runs) == 1:
        return [title for _, title in places]
    if len(runs) == len(places) and len({title for _, title in places}) == 1:
        return [short[path] for path, _ in places]
    return [f"{short[path]} · {title}" for path, title in places]


def _shorten_paths(paths: Sequence[PurePath]) -> list[str]:
    """Give each path by as few of its last parts as tell it from the others."""
    for length in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if max(Counter(names).values(), default=1) == 1:
            return names
    return [str(path) for path in paths]
