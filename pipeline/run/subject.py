"""What is evaluated: a fit of prototypes, or the cluster probe of a head.

What the clusters of a fit are called: by the user, by their classes, or by their numbers.

How clusters look: in the colour of their class, and under its name or the user's.

Name and colour of every cluster, as the report shows them: for whoever shows clusters, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.datasets import IGNORE
from pipeline.datasets.base import Colour, png_palette
from pipeline.errors import RunError, UsageError
from pipeline.run.directory import DEFAULT_NAME, RunDirectory
from pipeline.run.ledger import StageRecord, inspect_stage, require_fresh
from pipeline.run.manifest import read_manifest
from pipeline.settings import did_you_mean
from pipeline.storage.files import read_json


@dataclass(frozen=True)
class Subject:
    """One fit, or one head."""

    kind: Literal["em", "head"]
    name: str

    @property
    def key(self) -> str:
        """Ledger key of the stage that made it."""
        return f"{self.kind}/{self.name}"

    @property
    def title(self) -> str:
        """Name of the folders that are written: ``labels-<title>``, ``report-<title>``."""
        return self.name if self.kind == "em" else f"head-{self.name}"

    @property
    def options(self) -> str:
        """The command-line options that name it, with a space in front, or nothing."""
        default = self == Subject("em", DEFAULT_NAME)
        return "" if default else f" --{self.kind} {self.name}"

    @property
    def inputs(self) -> list[str]:
        """Keys of the stages that an evaluation reads."""
        codes = [f"encode/{self.name}"] if self.kind == "head" else []
        return ["extract", self.key, *codes]


def name_subject(em: str | None, head: str | None) -> Subject:
    """Return what settings name that :func:`choose_subject` has completed."""
    if head is not None:
        return Subject("head", head)
    assert em is not None
    return Subject("em", em)


def choose_subject(run: RunDirectory, em: str | None, head: str | None) -> Subject:
    """Find what two options mean: the head, the fit, or the one fit that there is."""
    if em is not None and head is not None:
        raise UsageError(f"--em {em} and --head {head}: give one of them.")
    heads = run.names("head")
    if head is None:
        fit = Subject("em", _choose_fit(run, em))
        if fit.title in [Subject("head", name).title for name in heads]:
            raise _clash(run, "em", fit)
        return fit
    if head not in heads:
        raise UsageError(
            f"--head {head!r}: the run has {', '.join(heads) or 'no head yet'}"
            f"{did_you_mean(head, heads)}; "
            f"train one with `primaps-pipe head {run.quoted} --method stego`."
        )
    subject = Subject("head", head)
    if subject.title in run.names("em"):
        raise _clash(run, "head", subject)
    return subject


def require_evaluated(
    run: RunDirectory, em: str | None, head: str | None, versions: Mapping[str, int]
) -> tuple[Subject, StageRecord]:
    """Return the fit or head that is meant, and the record of its evaluation, which is fresh."""
    subject = choose_subject(run.require(), em, head)
    key = f"evaluate/{subject.title}"
    if inspect_stage(run, key).record is None:
        raise RunError(
            f"{subject.key} in {run.path} has not been evaluated; "
            f"run `primaps-pipe evaluate {run.quoted}{subject.options}` first."
        )
    return subject, require_fresh(run, key, versions)


def _clash(run: RunDirectory, option: str, subject: Subject) -> UsageError:
    return UsageError(
        f"--{option} {subject.name}: a fit and a head of the run would both write to "
        f"{run.labels(subject.title).name}; give one of them another --name."
    )


def _choose_fit(run: RunDirectory, name: str | None) -> str:
    names = run.names("em")
    if name is not None:
        if name not in names:
            raise UsageError(
                f"--em {name!r}: the run has {', '.join(names) or 'no fit yet'}"
                f"{did_you_mean(name, names)}; "
                f"fit it with `primaps-pipe em {run.quoted} --classes K --name {name}`."
            )
        return name
    if not names:
        raise RunError(
            f"{run.path} has no fit yet; run `primaps-pipe em {run.quoted} --classes K` first."
        )
    if DEFAULT_NAME in names or len(names) == 1:
        return DEFAULT_NAME if DEFAULT_NAME in names else names[0]
    raise UsageError(f"the run has several fits ({', '.join(names)}); choose one with --em NAME.")


LONGEST = 100
_EXAMPLE = "write one line for each cluster, such as `7: road`"


def name_clusters(
    clusters: int,
    assignment: Sequence[int | None] | None,
    class_names: Sequence[str],
    given: Mapping[int, str],
) -> tuple[str, ...]:
    """Name every cluster: as the user does, else after its class, else by its number."""
    names = {k: f"cluster {k}" for k in range(clusters)}
    names |= {k: class_names[c] for k, c in enumerate(assignment or ()) if c is not None}
    names |= given
    return tuple(names[k] for k in range(clusters))


def parse_names(text: bytes, file: object) -> dict[int, str]:
    """Parse ``names.yaml``: a YAML mapping of cluster numbers to names.

    Names are the words as they are written: ``no``, ``on`` and ``1.0`` are names like any other.
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
    """Read the names that the user has given to the clusters of a fit or head."""
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
    """Read which cluster is which class from ``metrics.json``."""
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


@dataclass(frozen=True)
class ClusterLook:
    """How clusters are shown."""

    index: NDArray[np.uint8]
    palette: NDArray[np.uint8]
    names: tuple[str, ...]
    classes: tuple[int | None, ...] | None = None

    @property
    def colours(self) -> tuple[Colour, ...]:
        """Colour of every cluster."""
        rows = self.palette[self.index[: len(self.names)]].tolist()
        return tuple((red, green, blue) for red, green, blue in rows)


def choose_block(metrics: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Return the figures of a split whose matching says how its clusters look.

    A split without ground truth has no matching; its clusters look as in the main split, so that
    one cluster has one colour wherever no other matching says otherwise.
    """
    block = metrics["splits"][split]
    chosen = metrics if block["assignment"] is None else block
    # a cluster without a class takes the first colour that is no class's in any split
    names = max((each["class_names"] for each in metrics["splits"].values()), key=len)
    return {**chosen, "class_names": names}


def choose_look(
    clusters: int,
    assignment: Sequence[int | None] | None,
    class_names: Sequence[str],
    class_colours: Sequence[Colour],
    given: Mapping[int, str] | None = None,
) -> ClusterLook:
    """Choose name and colour of every cluster."""
    names = name_clusters(clusters, assignment, class_names, given or {})
    if assignment is None:
        palette = np.frombuffer(png_palette(()), np.uint8).reshape(256, 3)
        return ClusterLook(np.arange(256, dtype=np.uint8), palette, names)
    colours = class_colours[: len(class_names)]
    palette = np.frombuffer(png_palette(colours), np.uint8).reshape(256, 3)
    index = np.full(256, IGNORE, np.uint8)
    spare = len(class_names)
    for cluster, label in enumerate(assignment):
        if label is None:
            index[cluster] = min(spare, IGNORE - 1)
            spare += 1
        else:
            index[cluster] = label
    return ClusterLook(index, palette, names, tuple(assignment))


@dataclass(frozen=True)
class ClusterName:
    """What a cluster is called and how it is coloured."""

    name: str
    colour: Colour
    class_index: int | None


def describe_clusters(
    run: RunDirectory, subject: Subject, split: str | None = None
) -> tuple[ClusterName, ...]:
    """Describe every cluster of a fit or head that was evaluated."""
    clusters, assignment, class_names = read_matching(run, subject.title, split)
    given = read_given_names(run, subject.title, clusters)
    palette = read_manifest(run).open_dataset().palette
    look = choose_look(clusters, assignment, class_names, palette, given)
    matched = assignment or [None] * clusters
    return tuple(map(ClusterName, look.names, look.colours, matched))
