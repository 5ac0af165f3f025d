"""What the clusters of a fit are called: by the user, by their classes, or by their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from pipeline.errors import RunError
from pipeline.files import read_json
from pipeline.run_directory import RunDirectory

LONGEST = 100
_EXAMPLE = "write one line for each cluster, such as `7: road`"


def name_clusters(
    clusters: int,
    assignment: Sequence[int | None] | None,
    class_names: Sequence[str],
    given: Mapping[int, str],
) -> tuple[str, ...]:
    """Name every cluster: as the user does, else after its class, else by its number.

    Parameters
    ----------
    clusters
        Number of clusters.
    assignment
        Class of every cluster (None: unmatched), or None where there are no labels.
    class_names
        Of the dataset.
    given
        Cluster -> name, as :func:`parse_names` gives it.
    """
    names = {k: f"cluster {k}" for k in range(clusters)}
    names |= {k: class_names[c] for k, c in enumerate(assignment or ()) if c is not None}
    names |= given
    return tuple(names[k] for k in range(clusters))


def parse_names(text: bytes, file: object) -> dict[int, str]:
    """Parse ``names.yaml``: a YAML mapping of cluster numbers to names.

    Names are the words as they are written: ``no``, ``on`` and ``1.0`` are names like any other.

    Parameters
    ----------
    text
        Content of the file; a file of nothing but comments names no cluster.
    file
        What messages call it.

    Raises
    ------
    RunError
        It is not such a mapping.
    """
    try:
        # nodes and not values: nothing is resolved, run, or repeated as often as aliases say
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{file} is not YAML ({reason}); {_EXAMPLE}.") from error
    except RecursionError as error:
        raise RunError(f"{file} is nested too deeply; {_EXAMPLE}.") from error
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise RunError(f"{file} does not map clusters to names; {_EXAMPLE}.")
    names: dict[int, str] = {}
    for line, key, value in _read_pairs(root):
        where = f"{file}, line {line}"
        if key is None or not (key.isascii() and key.isdigit() and len(key) < 10):
            raise RunError(f"{where}: {_show(key)} is not the number of a cluster; {_EXAMPLE}.")
        name = None if value is None else value.strip()
        if not name or not name.isprintable() or len(name) > LONGEST:
            raise RunError(
                f"{where}: cluster {int(key)} needs a name of one line, at most {LONGEST} "
                f"characters, and not {_show(value)}; {_EXAMPLE}."
            )
        if int(key) in names:
            raise RunError(f"{where}: cluster {int(key)} is named twice; leave one of the names.")
        names[int(key)] = name
    return names


def _read_pairs(root: yaml.MappingNode) -> Iterator[tuple[int, str | None, str | None]]:
    """Yield line, key and value as they are written; None for what is not one scalar."""
    for pair in root.value:
        key, value = (n.value if isinstance(n, yaml.ScalarNode) else None for n in pair)
        yield pair[0].start_mark.line + 1, key, value


def _show(text: str | None) -> str:
    if text is None:
        return "a list or mapping"
    return repr(text if len(text) <= LONGEST else f"{text[:LONGEST]}…")


def read_given_names(run: RunDirectory, title: str, clusters: int | None = None) -> dict[int, str]:
    """Read the names that the user has given to the clusters of a fit or head.

    Parameters
    ----------
    run
        The run.
    title
        Of the fit or head, as :attr:`pipeline.subject.Subject.title` gives it.
    clusters
        Number of clusters, where known: a name of another one is refused.

    Returns
    -------
    dict
        Cluster -> name; nothing where there is no ``names.yaml``.

    Raises
    ------
    RunError
        The file cannot be read, or is not as :func:`parse_names` takes it.
    """
    file = run.names_file(title)
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror or error}.") from error
    names = parse_names(text, file)
    for cluster in names:
        if clusters is not None and cluster >= clusters:
            raise RunError(
                f"{file} names cluster {cluster}, but there are {clusters} clusters, numbered "
                f"from 0 to {clusters - 1}; correct the number or remove the line."
            )
    return names


def read_matching(
    run: RunDirectory, title: str, split: str | None = None
) -> tuple[int, list[int | None] | None, list[str]]:
    """Read which cluster is which class from ``metrics.json``.

    Parameters
    ----------
    run, title
        As in :func:`read_given_names`.
    split
        The split whose matching is meant; the one that ``metrics.json`` puts on top when None.

    Returns
    -------
    clusters, assignment, class_names
        As :func:`name_clusters` takes them; the matching is that of the final labels.

    Raises
    ------
    RunError
        The fit or head was not evaluated, or not on that split.
    """
    file = run.report(title) / "metrics.json"
    metrics: Any = read_json(file)
    if metrics is None:
        raise RunError(
            f"{run.path} has no {file.relative_to(run.path)}; "
            f"run `primaps-pipe evaluate {run.quoted}` first."
        )
    try:
        if split is not None and split not in metrics["splits"]:
            raise RunError(
                f"{file} says nothing of split {split!r}, only of {', '.join(metrics['splits'])}."
            )
        block = metrics if split is None else metrics["splits"][split]
        final = block["assignment_crf"]
        assignment = block["assignment"] if final is None else final
        return int(block["classes"]), assignment, list(block["class_names"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{file} was not written by this version ({error}); "
            f"run `primaps-pipe evaluate {run.quoted}` again."
        ) from error


def read_cluster_names(run: RunDirectory, title: str, split: str | None = None) -> tuple[str, ...]:
    """Read the name of every cluster; parameters and errors as in :func:`read_matching`."""
    clusters, assignment, class_names = read_matching(run, title, split)
    return name_clusters(clusters, assignment, class_names, read_given_names(run, title, clusters))
