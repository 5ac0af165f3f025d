"""What a folder of predictions holds: ``predictions.jsonl``, a line for every image.

Lines are appended block by block, after the label maps that they speak of; a later line about an
image counts, and one that was cut off does not. When all is done the file is written anew, in the
order of the images.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.datasets.palettes import distinct_colours
from pipeline.errors import RunError
from pipeline.files import make_folder, remove_file, write_changed
from pipeline.manifest import Image
from pipeline.places import resolve_inside
from workflows.export.prototypes import PrototypeFacts

INDEX = "predictions.jsonl"
_HEAD = {"format": "primaps-pipe predictions", "version": 1}


class Predictions:
    """The label maps of a folder, and what each was made from.

    Parameters
    ----------
    folder
        Where they lie.
    entries
        Id of the image -> its line.
    """

    def __init__(self, folder: Path, entries: dict[str, dict[str, Any]]) -> None:
        self.folder = folder
        self._entries = entries
        self._new: list[dict[str, Any]] = []

    def has(self, image: Image, made: str) -> bool:
        """Whether the label map of an image is there, and of these very bytes and prototypes.

        Parameters
        ----------
        image
            Row of the listing.
        made
            Fingerprint of the prototypes and the CRF.
        """
        entry = self._entries.get(image.id, {})
        same = (entry.get("image"), entry.get("made")) == (image.digest, made)
        return same and self._file(image.id).is_file()

    def add(self, image: Image, made: str) -> None:
        """Note a label map that was written."""
        entry = {"id": image.id, "image": image.digest, "made": made}
        self._entries[image.id] = entry
        self._new.append(entry)

    def flush(self) -> None:
        """Append what is new to the file: a stopped prediction goes on behind it."""
        file = self.folder / INDEX
        try:
            with file.open("ab") as stream:
                stream.write(b"".join(_line(entry) for entry in self._new))
        except OSError as error:
            raise RunError(f"cannot write {file}: {error.strerror or error}.") from error
        self._new.clear()

    def close(self, images: Sequence[Image]) -> int:
        """Write the file anew, and remove the label maps of images that cannot be read any more.

        Parameters
        ----------
        images
            All that were listed; those that were rejected have a reason.

        Returns
        -------
        int
            Label maps that are there of images that were not listed.
        """
        lines = []
        for image in images:
            entry = self._entries.pop(image.id, None)
            if image.ok:
                lines.append(entry or {})
                continue
            if entry is not None and "made" in entry:
                remove_file(self._file(image.id))
            lines.append({"id": image.id, "path": image.path, "skipped": image.reason})
        gone = [
            entry
            for _, entry in sorted(self._entries.items())
            if "made" in entry and self._file(entry["id"]).is_file()
        ]
        content = b"".join(_line(entry) for entry in [_HEAD, *lines, *gone])
        write_changed(self.folder / INDEX, content)
        return len(gone)

    def _file(self, name: str) -> Path:
        return resolve_inside(self.folder, f"{name}.png")


def open_predictions(folder: Path) -> Predictions:
    """Open a folder of predictions, new or old.

    Raises
    ------
    RunError
        It holds something else.
    """
    file = folder / INDEX
    make_folder(folder)
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise RunError(
                f"{folder} is not empty and holds no predictions; give a new folder with --out."
            ) from None
        write_changed(file, _line(_HEAD))
        return Predictions(folder, {})
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror or error}.") from error
    head, *lines = text.split(b"\n")
    if _parse(head) != _HEAD:
        raise RunError(f"{file} is not an index of predictions; give a new folder with --out.")
    if lines and lines[-1]:
        # cut off by a kill: what is appended must not become a part of it
        write_changed(file, b"\n".join([head, *lines[:-1]]) + b"\n")
    entries = {}
    for line in lines[:-1]:
        entry = _parse(line)
        if entry is not None and isinstance(entry.get("id"), str):
            entries[entry["id"]] = entry
    return Predictions(folder, entries)


def describe_classes(facts: PrototypeFacts) -> bytes:
    """Describe what the numbers in the label maps stand for, as JSON.

    The colours are those of the label maps' palette; those of the report, which are the classes'
    where clusters were matched, are beside them.
    """
    palette = distinct_colours(len(facts.clusters))
    classes = [
        {
            "id": number,
            "name": each.name,
            "colour": list(palette[number]),
            "report_colour": list(each.colour),
        }
        for number, each in enumerate(facts.clusters)
    ]
    content = {"ids": "clusters", "ignore": 255, "made_by": facts.made_by, "classes": classes}
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"
