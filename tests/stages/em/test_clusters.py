"""Units of clusters, merged by hand."""

from __future__ import annotations

import numpy as np
import torch

from stages.em.clusters import link_clusters
from stages.parts import Tree


def test_units_are_merged_within_their_clusters() -> None:
    angles = torch.tensor([0.0, 90.0, 1.0, 95.0, 10.0, 45.0], dtype=torch.float64).deg2rad()
    # lengths say nothing
    points = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.arange(1, 7)[:, None]
    labels = np.array([2, 0, 2, 0, 2, 5])
    merges = link_clusters(points, labels)
    # 6 = {1, 3}; 7 = {0, 2}, 8 = {4, 7}; a cluster of one has nothing to merge
    assert [sorted(pair) for pair in merges.tolist()] == [[1, 3], [0, 2], [4, 7]]
    tree = Tree(merges, labels)
    assert tree.find_units((2,)).tolist() == [0, 2, 4]
    assert tree.find_units((2, 0)).tolist() == [0, 2]
    assert tree.find_units((5,)).tolist() == [5]
    # nobody is of cluster 1, which may be named nevertheless
    assert tree.find_units((1,)).tolist() == []
    assert tree.name_units({(1,): 0, (2, 1): 1}, {}, -1).tolist() == [-1, -1, -1, -1, 1, -1]
