"""Name and colour of every cluster, as the report shows them: for whoever shows clusters, too."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.datasets.palettes import Colour
from pipeline.run.directory import RunDirectory
from pipeline.run.manifest import read_manifest
from pipeline.run.subject import Subject, read_given_names, read_matching
from stages.report.looks import choose_look


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
