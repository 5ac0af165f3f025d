"""The journal of a review: every change with its inverse, one line of JSON each, for undo.

A change is in the journal before it is in any file. A process that is killed between the two leaves
the last line to be done; one that is killed while it writes the line has told nobody that the
change was saved, and the line is cut off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.errors import RunError
from pipeline.storage.files import make_folder, sync_folder

Entry = dict[str, Any]


class Journal:
    """The changes in ``corrections/journal.jsonl``; of each only its place in the file is kept.

    ``undoable`` has the numbers of those that can be taken back, the last one at the end.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.undoable: list[int] = []
        self._ends: list[int] = []
        end = 0
        if file.exists():
            with file.open("rb") as lines:
                for line in lines:
                    entry = _parse(line)
                    if entry is None:
                        break
                    end += len(line)
                    self._note(entry, end)
                rest = os.fstat(lines.fileno()).st_size - end
            self._cut(end, rest)

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def last(self) -> Entry | None:
        """The last change, which may not be in the files yet."""
        return self.read(len(self) - 1) if len(self) else None

    def read(self, number: int) -> Entry:
        """Read a change by its number."""
        start = self._ends[number - 1] if number else 0
        with self.file.open("rb") as lines:
            lines.seek(start)
            entry = _parse(lines.read(self._ends[number] - start))
        if entry is None:
            raise RunError(f"{self.file} was changed by others; start the review again.")
        return entry

    def append(self, change: Mapping[str, Any]) -> Entry:
        """Write a change down; once this returns no crash loses it."""
        entry = {"change": len(self), "at": datetime.now(UTC).isoformat("T", "seconds"), **change}
        line = (json.dumps(entry, ensure_ascii=False) + "\n").encode()
        end = self._ends[-1] if self._ends else 0
        try:
            if not self.file.exists():
                make_folder(self.file.parent)
            with self.file.open("ab") as lines:
                lines.write(line)
                lines.flush()
                os.fsync(lines.fileno())
            if not end:
                sync_folder(self.file.parent)
        except OSError as error:
            raise RunError(
                f"cannot write {self.file}: {error.strerror or error}; nothing was changed; free "
                "some space and try again."
            ) from error
        self._note(entry, end + len(line))
        return entry

    def withdraw(self) -> None:
        """Take the last line back, of a change that could not be made."""
        entry = self.read(len(self) - 1)
        self._ends.pop()
        if "undoes" in entry:
            self.undoable.append(entry["undoes"])
        else:
            self.undoable.pop()
        end = self._ends[-1] if self._ends else 0
        with self.file.open("r+b") as lines:
            lines.truncate(end)
            os.fsync(lines.fileno())

    def _note(self, entry: Entry, end: int) -> None:
        if "undoes" not in entry:
            self.undoable.append(len(self._ends))
        elif entry["undoes"] in self.undoable:
            self.undoable.remove(entry["undoes"])
        self._ends.append(end)

    def _cut(self, end: int, rest: int) -> None:
        """Cut a line off that was not written to its end."""
        if not rest:
            return
        with self.file.open("r+b") as lines:
            lines.seek(end)
            left = lines.read()
            if b"\n" in left[:-1]:
                raise RunError(
                    f"{self.file} cannot be read after change {len(self._ends)}; correct that line "
                    "or move the file away: only undo needs it."
                )
            lines.truncate(end)
            os.fsync(lines.fileno())


def _parse(line: bytes) -> Entry | None:
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "change" in entry else None
