"""Registries: variants by name, ours and those that other packages bring as entry points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from pipeline.errors import UsageError, did_you_mean

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """The variants of one kind (backbones, methods, formats), each imported when it is asked for.

    Another package adds one in its own ``pyproject.toml``, and nothing here is touched::

        [project.entry-points."primaps_pipe.methods"]
        mine = "my_package.my_module:MyMethod"

    Parameters
    ----------
    kind
        What one of them is called in sentences, such as ``method``.
    group
        Group of the entry points, such as ``primaps_pipe.methods``.
    ours
        Name -> ``module:attribute``, or a module, of those that come with the install.
    """

    def __init__(self, kind: str, group: str, ours: Mapping[str, str]) -> None:
        self.kind = kind
        self.group = group
        self._ours = {name: EntryPoint(name, place, group) for name, place in ours.items()}

    @cached_property
    def _entries(self) -> dict[str, list[EntryPoint]]:
        """Ours, and then those of other packages that have none of our names, by their names."""
        found = {name: [entry] for name, entry in self._ours.items()}
        for entry in sorted(entry_points(group=self.group), key=lambda entry: entry.name):
            if entry.name not in self._ours:
                found.setdefault(entry.name, []).append(entry)
        return found

    def add(self, name: str, place: str) -> None:
        """Add a variant, ``module:attribute``, for this process alone."""
        self._ours[name] = EntryPoint(name, place, self.group)
        self.__dict__.pop("_entries", None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    @property
    def brought(self) -> list[str]:
        """The names of the variants that other packages bring."""
        return [name for name in self._entries if name not in self._ours]

    def brings(self, name: str) -> bool:
        """Whether another package has the variant of a name."""
        return name in self.brought

    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise UsageError(
                f"unknown {self.kind} {name!r}{did_you_mean(name, list(self))}: "
                f"choose from {', '.join(self)}"
            )
        entry, *others = self._entries[name]
        if name in self._ours:
            return entry.load()  # type: ignore[no-any-return]
        if others:
            places = " and ".join(sorted(each.value for each in self._entries[name]))
            raise UsageError(
                f"{self.kind} {name!r} is brought by more than one package ({places}): "
                "uninstall all but one of them."
            )
        try:
            return entry.load()  # type: ignore[no-any-return]
        except Exception as error:
            raise UsageError(
                f"{self.kind} {name!r} of another package ({entry.value}) cannot be "
                f"imported: {type(error).__name__}: {error}"
            ) from error
