"""The sweeps of the mean field between pixels and vertices, in plain torch for any device.

Rows of labels lie together, so that one read fetches a pixel's or a vertex's whole row. Every sum
is a gather in a fixed order: nothing is added to by two threads, and the same batch, or an image of
it alone, gives the same bytes every time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from stages.crf.definition import NEGLIGIBLE

# A vertex of more entries than this is summed by a program of its own.
CROWD = 32


@dataclass(frozen=True)
class Lattice:
    """Vertices and pixels, tied to each other both ways.

    Parameters
    ----------
    vertices : int32 [pixel, corner]
        The vertices of the simplex that encloses each pixel.
    weights : float32 [pixel, corner]
        Barycentric weights, times the pixel's kernel normalisation.
    entries : int32 [entry]
        The pixels around each vertex, ascending, vertex by vertex.
    shares : float32 [entry]
        The weights of `entries`.
    starts : int32 [vertex + 1]
        Where the entries of each vertex begin.
    crowded : int32 [place]
        The vertices of more than `CROWD` entries.
    neighbours : int32 [axis, 2, vertex]
        The next and the previous vertex along each axis; `size` where there is none.
    """

    vertices: Tensor
    weights: Tensor
    entries: Tensor
    shares: Tensor
    starts: Tensor
    crowded: Tensor
    neighbours: Tensor

    @property
    def size(self) -> int:
        """Number of vertices."""
        return len(self.starts) - 1

    @property
    def axes(self) -> int:
        """Number of axes to blur along."""
        return len(self.neighbours)

    def allocate_values(self, images: int, labels: int) -> Tensor:
        """Allocate values, float32 [image, vertex + 1, label], all 0; the last row stays so."""
        return self.weights.new_zeros(images, self.size + 1, labels)

    def weigh(self, weights: Tensor, shares: Tensor) -> Lattice:
        """Return this lattice with other weights."""
        return replace(self, weights=weights, shares=shares)


@dataclass(frozen=True)
class Message:
    """What a kernel says to the pixels: blurred values, to be sliced with a factor.

    Parameters
    ----------
    lattice : Lattice
        Of as many pixels as all the images, or of one image, which all of them then share.
    values : float32 [image, vertex + 1, label]
        Blurred values; one "image" for a lattice of all images.
    factor : float
        Weight of the kernel.
    """

    lattice: Lattice
    values: Tensor
    factor: float


@dataclass(frozen=True)
class Passes:
    """The three sweeps, as one kind of device computes them.

    Parameters
    ----------
    splat : callable
        (lattice, source, values): set the values of every vertex to the weighted sum of the rows
        of the pixels around it; source is float32 [image, pixel, label].
    blur : callable
        (lattice, axis, values, blurred): set `blurred` to v + (n1 + n2) / 2 along one axis.
    update : callable
        (energies, near, alike, posterior): set the posterior to softmax(-energies + both messages),
        probabilities below e^-40 of their pixel's largest being 0. Energies and posterior are
        float32 [image, pixel, label].
    """

    splat: Callable[[Lattice, Tensor, Tensor], None]
    blur: Callable[[Lattice, int, Tensor, Tensor], None]
    update: Callable[[Tensor, Message, Message, Tensor], None]


def filter_values(
    passes: Passes, lattice: Lattice, source: Tensor, buffers: tuple[Tensor, Tensor]
) -> Tensor:
    """Splat and blur, in two buffers in turn.

    `source` is float32 [image, pixel, label]; the buffers are float32 [image, vertex + 1, label],
    their last rows 0. Returns the one that holds the blurred values.
    """
    values, spare = buffers
    passes.splat(lattice, source, values)
    for axis in range(lattice.axes):
        passes.blur(lattice, axis, values, spare)
        values, spare = spare, values
    return values


def _splat(lattice: Lattice, source: Tensor, values: Tensor) -> None:
    for rows, sums in zip(source, values, strict=True):
        sums[:-1] = F.embedding_bag(
            lattice.entries,
            rows,
            lattice.starts,
            mode="sum",
            per_sample_weights=lattice.shares,
            include_last_offset=True,
        )


def _blur(lattice: Lattice, axis: int, values: Tensor, blurred: Tensor) -> None:
    following, preceding = lattice.neighbours[axis]
    around = values.index_select(1, following) + values.index_select(1, preceding)
    torch.add(values[:, :-1], around.mul_(0.5), out=blurred[:, :-1])


def _update(energies: Tensor, near: Message, alike: Message, posterior: Tensor) -> None:
    labels = energies.shape[-1]
    logits = -energies.reshape(-1, labels)
    for message in (near, alike):
        vertices = message.lattice.vertices
        weights = message.lattice.weights * message.factor
        targets = logits.reshape(len(message.values), len(vertices), labels)
        for target, values in zip(targets, message.values, strict=True):
            target += F.embedding_bag(vertices, values, mode="sum", per_sample_weights=weights)
    negligible = logits - logits.amax(dim=1, keepdim=True) <= NEGLIGIBLE
    shares = torch.softmax(logits, dim=1).masked_fill_(negligible, 0.0)
    posterior.copy_(shares.reshape(posterior.shape))


TORCH_PASSES = Passes(_splat, _blur, _update)
