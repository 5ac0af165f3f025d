"""Parts of clusters: the halves that a cluster was merged from, and the halves of these.

A part is named by its cluster and the halves on the way to it: (12, 0, 1) is the smaller half of
the larger half of cluster 12.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.run.evaluation import Part


class Tree:
    """How units were merged to clusters.

    Parameters
    ----------
    merges
        int [merge, 2], of units, numbered from 0, and of earlier merges, numbered from the number
        of units, as SciPy's ``linkage`` has them.
    clusters
        int [unit]: cluster of every unit, which some of the merges make.
    """

    def __init__(self, merges: NDArray[np.integer], clusters: NDArray[np.integer]) -> None:
        self.units = len(clusters)
        self.clusters = np.asarray(clusters)
        self._merges = np.asarray(merges).tolist()
        self._size = [1] * self.units
        node_cluster = self.clusters.tolist()
        self._root = {k: unit for unit, k in enumerate(node_cluster)}
        for node, (first, second) in enumerate(self._merges, self.units):
            same = node_cluster[first] == node_cluster[second]
            node_cluster.append(node_cluster[first] if same else -1)
            self._size.append(self._size[first] + self._size[second])
            if same and node_cluster[-1] >= 0:
                self._root[node_cluster[-1]] = node

    def find_units(self, part: Part) -> NDArray[np.int64]:
        """Find the units of a part, int64 [unit], ascending; ``KeyError``: there is none.

        A cluster may have none, which no proposal was found to be of.
        """
        if len(part) == 1 and part[0] not in self._root:
            return np.empty(0, np.int64)
        return np.array(sorted(self._list_leaves(self._find_node(part))), np.int64)

    def measure(self, part: Part) -> int:
        """Return the number of units of a part."""
        return len(self.find_units(part))

    def _find_node(self, part: Part) -> int:
        node = self._root.get(part[0], -1)
        for half in part[1:]:
            if node < self.units or half not in (0, 1):
                raise KeyError(part)
            node = self._list_halves(node)[half]
        return node

    def _list_halves(self, node: int) -> list[int]:
        """List the halves of a merge, the larger first, or that of the smaller number."""
        halves = self._merges[node - self.units]
        return sorted(halves, key=lambda half: (-self._size[half], half))

    def _list_leaves(self, node: int) -> list[int]:
        nodes, leaves = [node], []
        while nodes:
            node = nodes.pop()
            if node < self.units:
                leaves.append(node)
            else:
                nodes += self._merges[node - self.units]
        return leaves

    def name_units(
        self, names: Mapping[Part, int], clicked: Mapping[int, int], nothing: int
    ) -> NDArray[np.int64]:
        """Give every unit the number of its name, int64 [unit]; ``nothing`` where it has none.

        It is that of the smallest part that is named; what is ``clicked``, by unit, has its own.
        The other units of a cluster without any name follow, each, the unit that was clicked and
        that it is merged with first.
        """
        numbers = np.full(self.units, nothing, np.int64)
        for part in sorted(names, key=len):
            numbers[self.find_units(part)] = names[part]
        bare = {int(self.clusters[unit]) for unit in clicked if numbers[unit] == nothing}
        numbers[[*clicked]] = [*clicked.values()]
        # from the leaves to the roots: what a merge says goes to those of its units without a name
        said = numbers.tolist()
        for first, second in self._merges:
            larger = max((first, second), key=lambda half: (self._size[half], -half))
            other = second if larger == first else first
            said.append(said[other] if said[larger] == nothing else said[larger])
            if (said[first] == nothing) != (said[second] == nothing):
                silent = first if said[first] == nothing else second
                for leaf in self._list_leaves(silent):
                    if int(self.clusters[leaf]) in bare:
                        numbers[leaf] = said[-1]
        return numbers
