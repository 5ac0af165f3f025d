"""Registries: variants by name, ours and those that other packages bring as entry points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pkgutil import resolve_name
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
        self._ours = dict(ours)

    @cached_property
    def _theirs(self) -> dict[str, list[EntryPoint]]:
        found: dict[str, list[EntryPoint]] = {}
        for entry in entry_points(group=self.group):
            found.setdefault(entry.name, []).append(entry)
        return found

    def __iter__(self) -> Iterator[str]:
        yield from self._ours
        yield from self.brought

    @property
    def brought(self) -> list[str]:
        """The names of the variants that other packages bring."""
        return sorted(self._theirs.keys() - self._ours.keys())

    def brings(self, name: str) -> bool:
        """Whether another package has the variant of a name."""
        return name not in self._ours and name in self._theirs

    def __len__(self) -> int:
        return len(self._ours.keys() | self._theirs.keys())

    def __contains__(self, name: object) -> bool:
        return name in self._ours or name in self._theirs

    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise UsageError(
                f"unknown {self.kind} {name!r}{did_you_mean(name, list(self))}: "
                f"choose from {', '.join(self)}"
            )
        if name in self._ours:
            return resolve_name(self._ours[name])  # type: ignore[no-any-return]
        theirs = self._theirs[name]
        if len(theirs) > 1:
            places = " and ".join(sorted(entry.value for entry in theirs))
            raise UsageError(
                f"{self.kind} {name!r} is brought by more than one package ({places}): "
                "uninstall all but one of them."
            )
        try:
            return theirs[0].load()
        except Exception as error:
            raise UsageError(
                f"{self.kind} {name!r} of another package ({theirs[0].value}) cannot be "
                f"imported: {type(error).__name__}: {error}"
            ) from error
