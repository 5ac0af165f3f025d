"""Name and colour of every cluster, as the report shows them: for whoever shows clusters, too."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.cluster_names import read_given_names, read_matching
from pipeline.datasets.palettes import Colour
from pipeline.manifest import read_manifest
from pipeline.run_directory import RunDirectory
from pipeline.subject import Subject
from stages.evaluate.report.looks import choose_look


@dataclass(frozen=True)
class ClusterName:
    """What a cluster is called and how it is coloured.

    Attributes
    ----------
    name
        The user's in ``names.yaml``, else that of its class, else ``cluster 7``.
    colour
        Red, green, blue, 0..255.
    class_index
        The dataset's class that it is matched to; None without labels or without a match.
    """

    name: str
    colour: Colour
    class_index: int | None


def describe_clusters(
    run: RunDirectory, subject: Subject, split: str | None = None
) -> tuple[ClusterName, ...]:
    """Describe every cluster of a fit or head that was evaluated.

    Parameters
    ----------
    run
        The run.
    subject
        The fit or head.
    split
        The split whose matching is meant; the one that ``metrics.json`` puts on top when None.

    Raises
    ------
    RunError
        It was not evaluated, or ``names.yaml`` is not a mapping of its clusters to names.
    """
    clusters, assignment, class_names = read_matching(run, subject.title, split)
    given = read_given_names(run, subject.title, clusters)
    palette = read_manifest(run).open_dataset().palette
    look = choose_look(clusters, assignment, class_names, palette, given)
    matched = assignment or [None] * clusters
    return tuple(map(ClusterName, look.names, look.colours, matched))
