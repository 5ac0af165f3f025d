"""Names belong to a fit: those of an earlier one go to the clusters that took the place of its own.

An evaluation binds ``names.yaml`` to the fit that it labels, and keeps its clusters. The next one
of another fit compares, over a sample of the windows, what both say of every position.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory, Subject
from pipeline.run.ledger import Ledger
from pipeline.storage.arrays import open_arrays, take_rows
from pipeline.storage.files import fingerprint, read_json, remove_file, write_bytes, write_json
from stages.artefacts import Artefacts, read_classifier, write_classifier
from stages.labelling import MAIN, Classifier, classify_windows
from stages.scores import pair_clusters

# Windows that two fits are compared on, about, and how many are in memory.
_SAMPLE = 512
_BLOCK = 64


def find_owner(run: RunDirectory, subject: Subject) -> str | None:
    """Return the fingerprint of the fit whose clusters ``names.yaml`` names, as far as is known."""
    if not run.names_file(subject.title).is_file():
        return None
    bound = read_json(_folder(run, subject) / "names.json")
    if bound is not None:
        return str(bound["fit"])
    record = Ledger(_folder(run, subject)).read_stage()
    return None if record is None else record.inputs.get(subject.key)


def bind_names(run: RunDirectory, subject: Subject, fit: str, clusters: Classifier | None) -> None:
    """Bind the names to a fit, and keep its clusters: the next fit takes the place of them."""
    record, file = _folder(run, subject) / "names.json", _clusters_file(run, subject, fit)
    if clusters is not None:
        write_classifier(file, fit, clusters, {})
    write_json(record, {"fit": fit})
    for other in set(file.parent.glob("names-*.npz")) - {file}:
        remove_file(other)


def _clusters_file(run: RunDirectory, subject: Subject, fit: str | None) -> Path:
    return _folder(run, subject) / f"names-{str(fit)[:16]}.npz"


class Carried(NamedTuple):
    """Names of an earlier fit at the clusters of another, as far as it is clear which are which.

    ``agreement`` is int64 [old, new], the positions that each cluster shares with each.
    """

    given: dict[int, str]
    names: dict[int, str]
    pairs: dict[int, int]
    agreement: NDArray[np.int64]


def carry_names(artefacts: Artefacts, given: Mapping[int, str]) -> Carried:
    """Find the clusters of a fit that took the place of those whose names are given."""
    owner = find_owner(artefacts.run, artefacts.subject)
    found = read_classifier(_clusters_file(artefacts.run, artefacts.subject, owner), owner)
    agreement = np.zeros((2**8, 2**8), np.int64)
    if found is not None:
        agreement = _compare(artefacts, found[0])
    pairs = pair_clusters(agreement)
    names = {pairs[old]: name for old, name in sorted(given.items()) if old in pairs}
    return Carried(dict(given), names, pairs, agreement)


def _compare(artefacts: Artefacts, old: Classifier) -> NDArray[np.int64]:
    """Count the positions of a sample of windows that clusters of two fits share."""
    agreement = np.zeros((2**8, 2**8), np.int64)
    views = open_arrays(artefacts.features, ["clean", "mirror"])
    both = {"old": old, "new": artefacts.classifiers[MAIN]}
    if old.prototypes.shape[1] != views["clean"].shape[-1]:
        return agreement
    windows = [window.index for window in artefacts.manifest.usable_windows()]
    chosen = windows[:: max(1, len(windows) // _SAMPLE)]
    for start in range(0, len(chosen), _BLOCK):
        rows = np.array(chosen[start : start + _BLOCK])
        read = {n: np.empty((len(rows), *a.shape[1:]), np.float16) for n, a in views.items()}
        for name, array in views.items():
            take_rows(array, rows, read[name])
        logits = classify_windows(
            lambda view, low, high, read=read: read[view][low:high],  # type: ignore[misc]
            range(len(rows)),
            both,
            values=math.prod(views["clean"].shape[1:]),
            device=torch.device("cpu"),
        )
        pair = [logits[name].argmax(dim=1).flatten().numpy() for name in both]
        agreement += np.bincount(pair[0] * 2**8 + pair[1], minlength=2**16).reshape(2**8, 2**8)
    return agreement


def write_carried(artefacts: Artefacts, carried: Carried, screen: Screen) -> None:
    """Write the names that were carried over; keep the file as it was, and say what is in doubt."""
    run, subject = artefacts.run, artefacts.subject
    given, file = carried.given, run.names_file(subject.title)
    lost = {old: name for old, name in sorted(given.items()) if old not in carried.pairs}
    if carried.names != given:
        text = file.read_bytes()
        kept = file.with_name(f"{file.name}.{fingerprint(text.decode('latin-1'))[:8]}")
        write_bytes(kept, text, noted=False)
        content = _write_yaml(carried.names, lost, carried.agreement, kept.name)
        write_bytes(file, content, noted=False)
        screen.note(f"evaluate: {file.name} as it was is kept as {kept}")
    pairs = carried.pairs
    moved = [f"{name} ({old} -> {pairs[old]})" for old, name in given.items() if old in pairs]
    if moved:
        screen.note(f"evaluate: names carried over to the new {subject.key}: {', '.join(moved)}")
    if lost:
        doubt = ", ".join(f"{name} ({old})" for old, name in lost.items())
        screen.warn(
            f"evaluate: names in doubt, for no cluster of the new {subject.key} is clearly the "
            f"old one: {doubt}; look at the report, and write them into {file} again."
        )


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


def _folder(run: RunDirectory, subject: Subject) -> Path:
    return run.state(f"evaluate/{subject.title}")
