"""Names belong to a fit: those of an earlier one go to the clusters that took the place of its own.

An evaluation binds ``names.yaml`` to the fit that it labels. The next one of another fit compares
the label maps that it is about to write with those that lie there, image by image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.datasets.definition import IGNORE
from pipeline.errors import ImageError
from pipeline.images.decoding import read_label
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory, Subject
from pipeline.run.evaluation import read_given_names
from pipeline.run.ledger import Ledger
from pipeline.storage.files import fingerprint, read_json, remove_tree, write_bytes, write_json
from stages.scores import pair_clusters


def find_owner(run: RunDirectory, subject: Subject) -> str | None:
    """Return the fingerprint of the fit whose clusters ``names.yaml`` names, as far as is known."""
    if not run.names_file(subject.title).is_file():
        return None
    bound = read_json(_folder(run, subject) / "names.json")
    if bound is not None:
        return str(bound["fit"])
    record = Ledger(_folder(run, subject)).read_stage()
    return None if record is None else record.inputs.get(subject.key)


def bind_names(run: RunDirectory, subject: Subject, fit: str | None) -> None:
    """Bind the names to the fit that was evaluated last."""
    if fit is not None:
        write_json(_folder(run, subject) / "names.json", {"fit": fit})


class Agreement:
    """How many pixels of a shard each old cluster shares with each new one; while it is labelled.

    A shard that was killed when its maps were written has lost the old ones: it is counted once.
    """

    def __init__(self, run: RunDirectory, subject: Subject, fit: str, shard: int) -> None:
        owner = find_owner(run, subject)
        self._fits = [owner, fit]
        self._file = _folder(run, subject) / "agreement" / f"{shard:06d}.json"
        self.wanted = owner not in (None, fit) and _read(self._file, self._fits) is None
        self._pixels = np.zeros(2**16, np.int64)

    def count(self, file: Path, labels: NDArray[np.uint8]) -> NDArray[np.int64] | None:
        """Compare labels with the map that they will replace; None where there is none."""
        if not self.wanted:
            return None
        try:
            old = read_label(file)
        except ImageError:
            return None
        if old.shape != labels.shape:
            return None
        valid = (old < IGNORE) & (labels < IGNORE)
        pairs = old[valid].astype(np.int64) * 2**8 + labels[valid]
        return np.bincount(pairs, minlength=2**16)

    def add(self, counted: NDArray[np.int64] | None) -> None:
        """Add what one image gave."""
        if counted is not None:
            self._pixels += counted

    def write(self) -> None:
        """Write what was counted, before the old maps go."""
        if self.wanted:
            pairs = np.flatnonzero(self._pixels)
            rows = [[int(p) >> 8, int(p) & 255, int(self._pixels[p])] for p in pairs]
            write_json(self._file, {"fits": self._fits, "pixels": rows}, noted=False)


def carry_names(run: RunDirectory, subject: Subject, fit: str, screen: Screen) -> None:
    """Give the names to the clusters of the fit that was evaluated; keep the file as it was."""
    owner, file = find_owner(run, subject), run.names_file(subject.title)
    folder = _folder(run, subject) / "agreement"
    if owner not in (None, fit):
        given = read_given_names(run, subject.title)
        agreement = np.zeros((2**8, 2**8), np.int64)
        for each in folder.glob("*.json"):
            for old, new, pixels in _read(each, [owner, fit]) or ():
                agreement[old, new] += pixels
        pairs = pair_clusters(agreement)
        names = {pairs[old]: name for old, name in sorted(given.items()) if old in pairs}
        lost = {old: name for old, name in sorted(given.items()) if old not in pairs}
        if names != given:
            text = file.read_bytes()
            kept = file.with_name(f"{file.name}.{fingerprint(text.decode('latin-1'))[:8]}")
            write_bytes(kept, text, noted=False)
            write_bytes(file, _write_yaml(names, lost, agreement, kept.name), noted=False)
            screen.note(f"evaluate: {file.name} as it was is kept as {kept}")
        moved = [f"{name} ({old} -> {pairs[old]})" for old, name in given.items() if old in pairs]
        if moved:
            screen.note(
                f"evaluate: names carried over to the new {subject.key}: {', '.join(moved)}"
            )
        if lost:
            doubt = ", ".join(f"{name} ({old})" for old, name in lost.items())
            screen.warn(
                f"evaluate: names in doubt, for no cluster of the new {subject.key} is clearly the "
                f"old one: {doubt}; look at the report, and write them into {file} again."
            )
    bind_names(run, subject, fit)
    remove_tree(folder)


def _write_yaml(
    names: dict[int, str], lost: dict[int, str], agreement: NDArray[np.int64], kept: str
) -> bytes:
    lines = [f"# carried over from an earlier fit, whose names are in {kept}"]
    for old, name in lost.items():
        total, new = int(agreement[old].sum()), int(agreement[old].argmax())
        share = 100 * agreement[old, new] / max(total, 1)
        where = f"; {share:.0f} % of it is in cluster {new} now" if total else ""
        lines.append(f"# in doubt: {name}, which was cluster {old}{where}")
    text = yaml.safe_dump(names, allow_unicode=True, width=1000) if names else ""
    return ("\n".join(lines) + "\n" + text).encode()


def _read(file: Path, fits: list[str | None]) -> Any:
    content = read_json(file)
    return content["pixels"] if content is not None and content["fits"] == fits else None


def _folder(run: RunDirectory, subject: Subject) -> Path:
    return run.state(f"evaluate/{subject.title}")
