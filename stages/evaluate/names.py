"""Names belong to a fit: those of an earlier one go to the clusters that took the place of its own.

An evaluation binds ``names.yaml`` to the fit that it labels, and keeps its clusters. The next one
of another fit compares, over a sample of the windows, what both say of every position.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import count_of
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory, Subject
from pipeline.run.evaluation import Part, format_names, format_part
from pipeline.run.ledger import Ledger
from pipeline.storage.arrays import take_rows
from pipeline.storage.files import (
    fingerprint,
    read_json,
    remove_file,
    stamp,
    write_bytes,
    write_json,
)
from stages.artefacts import Artefacts, read_classifier, read_group_of, write_classifier
from stages.labelling import MAIN, Classifier, classify_windows
from stages.scores import pair_clusters

# Windows that two fits are compared on, about, and how many are in memory.
_SAMPLE = 512
_BLOCK = 64
# The last comparison, by run, fit or head, and the two fits' fingerprints.
_compared: dict[tuple[RunDirectory, Subject, str, str], NDArray[np.int64]] = {}
# Share of a cluster's positions that had one name, above which it is clear that it has it now.
_CLEAR = 2 / 3


def find_owner(run: RunDirectory, subject: Subject) -> str | None:
    """Return the fingerprint of the fit whose clusters ``names.yaml`` names, as far as is known.

    It is the one that was evaluated last, but for the first names that are given to a later one.
    """
    if not run.names_file(subject.title).is_file():
        return None
    bound = read_json(_folder(run, subject) / "names.json")
    if bound is None:
        record = Ledger(_folder(run, subject)).read_stage()
        bound = {"fit": None if record is None else record.inputs.get(subject.key)}
    if not bound.get("names", False) and is_younger(run, subject):
        return None
    return bound["fit"] if bound["fit"] is None else str(bound["fit"])


def is_younger(run: RunDirectory, subject: Subject) -> bool:
    """Whether the names were written after the fit or head."""
    made = (run.em if subject.kind == "em" else run.heads) / subject.name / "zarr.json"
    names, fit = (stamp(file) for file in (run.names_file(subject.title), made))
    return names is not None and fit is not None and names[1] > fit[1]


def bind_names(run: RunDirectory, subject: Subject, fit: str, clusters: Classifier | None) -> None:
    """Bind the names to a fit, and keep its clusters: the next fit takes the place of them."""
    record, file = _folder(run, subject) / "names.json", _clusters_file(run, subject, fit)
    if clusters is not None:
        write_classifier(file, fit, clusters, {})
    write_json(record, {"fit": fit, "names": run.names_file(subject.title).is_file()})
    for other in set(file.parent.glob("names-*.npz")) - {file}:
        remove_file(other)


def _clusters_file(run: RunDirectory, subject: Subject, fit: str | None) -> Path:
    return _folder(run, subject) / f"names-{str(fit)[:16]}.npz"


class Carried(NamedTuple):
    """Names of an earlier fit at the clusters of another, as far as it is clear which are which.

    ``moved`` says in words what was carried, ``lost`` has what is in doubt; ``agreement`` is int64
    [old, new], the positions that each cluster shares with each.
    """

    given: dict[Part, str]
    names: dict[Part, str]
    moved: list[str]
    lost: dict[Part, str]
    agreement: NDArray[np.int64]


def carry_names(artefacts: Artefacts, given: Mapping[Part, str], fit: str) -> Carried:
    """Find the clusters of a fit that took the place of those whose names are given."""
    run, subject, new = artefacts.run, artefacts.subject, artefacts.classifiers[MAIN]
    owner, given = find_owner(run, subject), dict(sorted(given.items()))
    found = read_classifier(_clusters_file(run, subject, owner), owner)
    agreement = np.zeros((2**8, 2**8), np.int64)
    if found is not None and _equal(found[0], new):
        # only what is known beside the clusters is other
        return Carried(given, given, [], {}, agreement)
    if found is not None:
        key = (run, subject, str(owner), fit)
        if key not in _compared:
            # what an evaluation is planned by it ends by
            _compared.clear()
            _compared[key] = _compare(artefacts, found[0])
        agreement = _compared[key]
    if "clusters" in read_group_of(run, subject)[1]:
        return _carry_classes(given, agreement)
    pairs = pair_clusters(agreement)
    names: dict[Part, str] = {
        (pairs[old[0]],): name for old, name in given.items() if old[0] in pairs
    }
    moved = [f"{name} ({k} -> {pairs[k]})" for (k, *_), name in given.items() if k in pairs]
    lost = {old: name for old, name in given.items() if old[0] not in pairs}
    return Carried(given, names, moved, lost, agreement)


def _equal(first: Classifier, second: Classifier) -> bool:
    """Whether two fits have the same clusters."""
    pairs = [(first.prototypes, second.prototypes)]
    if first.bias is not None and second.bias is not None:
        pairs.append((first.bias, second.bias))
    return (first.bias is None) == (second.bias is None) and all(torch.equal(*p) for p in pairs)


def _carry_classes(given: Mapping[Part, str], agreement: NDArray[np.int64]) -> Carried:
    """Name every cluster as most of its positions were, where several may have one name.

    A cluster whose parts have names of their own says nothing: which part a position is of is not
    known any more.
    """
    divided = {part[0] for part in given if len(part) > 1}
    whole = {part[0]: name for part, name in given.items() if part[0] not in divided}
    every = list(dict.fromkeys(whole.values()))
    shares = np.zeros((len(every) + 1, 2**8), np.int64)
    for cluster, name in whole.items():
        shares[every.index(name)] += agreement[cluster]
    best, total = shares.argmax(axis=0), agreement.sum(axis=0)
    clear = np.flatnonzero((total > 0) & (shares.max(axis=0) > _CLEAR * total))
    names: dict[Part, str] = {(int(new),): every[best[new]] for new in clear}
    many = Counter(names.values())
    moved = [f"{name} ({count_of(count, 'clusters')})" for name, count in many.items()]
    lost = {part: name for part, name in given.items() if name not in many}
    return Carried(dict(given), names, moved, lost, agreement)


def _compare(artefacts: Artefacts, old: Classifier) -> NDArray[np.int64]:
    """Count the positions of a sample of windows that clusters of two fits share."""
    agreement = np.zeros((2**8, 2**8), np.int64)
    views = artefacts.open_views()
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
    file, lost = run.names_file(subject.title), carried.lost
    if carried.names != carried.given:
        text = file.read_bytes()
        kept = file.with_name(f"{file.name}.{fingerprint(text.decode('latin-1'))[:8]}")
        write_bytes(kept, text, noted=False)
        write_bytes(file, _write_yaml(carried, kept.name), noted=False)
        screen.note(f"evaluate: {file.name} as it was is kept as {kept}")
    if carried.moved:
        moved = ", ".join(carried.moved)
        screen.note(f"evaluate: names carried over to the new {subject.key}: {moved}")
    if lost:
        doubt = ", ".join(f"{name} ({format_part(old)})" for old, name in lost.items())
        screen.warn(
            f"evaluate: names in doubt, for no cluster of the new {subject.key} is clearly the "
            f"old one: {doubt}; look at the report, and write them into {file} again."
        )


def _write_yaml(carried: Carried, kept: str) -> bytes:
    lines = [f"# carried over from an earlier fit, whose names are in {kept}"]
    for old, name in carried.lost.items():
        row = carried.agreement[old[0]]
        total, new = int(row.sum()), int(row.argmax())
        where = f"; {100 * row[new] / total:.0f} % of it is in cluster {new} now" if total else ""
        lines.append(f"# in doubt: {name}, which was cluster {format_part(old)}{where}")
    lines += format_names(carried.names)
    return ("\n".join(lines) + "\n").encode()


def _folder(run: RunDirectory, subject: Subject) -> Path:
    return run.state(f"evaluate/{subject.title}")
