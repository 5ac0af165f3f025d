"""The sweeps of the mean field as Triton kernels: one read and one write of each row.

What each computes is said in `stages.crf.cuda.lattice`, whose torch functions are their oracle.
Rows are addressed by 64-bit numbers, so that no batch is too large for them.
"""

# A kernel's pointers and numbers have no Python type.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from stages.crf.cuda.lattice import CROWD, Lattice, Message, Passes
from stages.crf.definition import NEGLIGIBLE

# Values that one program holds: four to each of its 128 threads, a 16-byte read.
TILE = 512
# A vertex has four to thirteen entries as a rule: four at a time keep many rows in flight, and few
# lanes idle.
ENTRIES, CROWDED_ENTRIES = 4, 64


@triton.jit(do_not_specialize=["count", "size", "pixels"])
def _splat_kernel(
    source,
    entries,
    shares,
    starts,
    names,
    values,
    count,
    size,
    pixels,
    labels: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    chunk: tl.constexpr,
    most: tl.constexpr,
    listed: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    lanes = tl.arange(0, width)
    turns = tl.program_id(0) * block + tl.arange(0, block)
    mine = turns < count
    vertices = tl.load(names + turns, mask=mine, other=0) if listed else turns
    first = tl.load(starts + vertices, mask=mine, other=0)
    last = tl.load(starts + vertices + 1, mask=mine, other=0)
    if not listed:
        mine = mine & (last - first <= most)
        last = tl.where(mine, last, first)
    sums = tl.zeros((block, width), tl.float32)
    for start in range(0, tl.max(last - first), chunk):
        places = first[:, None] + start + tl.arange(0, chunk)[None, :]
        real = places < last[:, None]
        rows = image * pixels + tl.load(entries + places, mask=real, other=0)
        weights = tl.load(shares + places, mask=real, other=0.0)
        terms = tl.load(
            source + rows[:, :, None] * labels + lanes[None, None, :],
            mask=real[:, :, None] & (lanes < labels)[None, None, :],
            other=0.0,
        )
        sums += tl.sum(weights[:, :, None] * terms, axis=1)
    targets = (image * (size + 1) + vertices)[:, None] * labels + lanes[None, :]
    tl.store(values + targets, sums, mask=mine[:, None] & (lanes < labels)[None, :])


@triton.jit(do_not_specialize=["size"])
def _blur_kernel(
    values,
    following,
    preceding,
    blurred,
    size,
    labels: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
):
    first = tl.program_id(1).to(tl.int64) * (size + 1)
    lanes = tl.arange(0, width)[None, :]
    vertices = tl.program_id(0) * block + tl.arange(0, block)
    mine = vertices < size
    after = tl.load(following + vertices, mask=mine, other=size)
    before = tl.load(preceding + vertices, mask=mine, other=size)
    inside = lanes < labels
    own = (first + vertices)[:, None] * labels + lanes
    # Rows that are not there are not read: up to half of all neighbours.
    around = tl.load(
        values + (first + after)[:, None] * labels + lanes,
        mask=(after < size)[:, None] & inside,
        other=0.0,
    ) + tl.load(
        values + (first + before)[:, None] * labels + lanes,
        mask=(before < size)[:, None] & inside,
        other=0.0,
    )
    kept = mine[:, None] & inside
    tl.store(blurred + own, tl.load(values + own, mask=kept, other=0.0) + 0.5 * around, mask=kept)


@triton.jit
def _slice(
    logits,
    places,
    mine,
    lanes,
    first,
    vertices,
    weights,
    values,
    factor,
    labels: tl.constexpr,
    corners: tl.constexpr,
):
    """Add a message to the logits: pixels at `places` of the lattice, values from row `first`."""
    for corner in tl.static_range(corners):
        vertex = tl.load(vertices + places * corners + corner, mask=mine, other=0)
        weight = tl.load(weights + places * corners + corner, mask=mine, other=0.0) * factor
        rows = tl.load(
            values + (first + vertex)[:, None] * labels + lanes,
            mask=mine[:, None] & (lanes < labels),
            other=0.0,
        )
        logits += weight[:, None] * rows
    return logits


@triton.jit(do_not_specialize=["near_pixels", "near_rows", "alike_pixels", "alike_rows", "pixels"])
def _update_kernel(
    energies,
    near_vertices,
    near_weights,
    near_values,
    near_factor,
    near_pixels,
    near_rows,
    alike_vertices,
    alike_weights,
    alike_values,
    alike_factor,
    alike_pixels,
    alike_rows,
    posterior,
    pixels,
    labels: tl.constexpr,
    width: tl.constexpr,
    near_corners: tl.constexpr,
    alike_corners: tl.constexpr,
    least: tl.constexpr,
    block: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    lanes = tl.arange(0, width)[None, :]
    own = tl.program_id(0) * block + tl.arange(0, block)
    mine = own < pixels
    targets = (image * pixels + own)[:, None] * labels + lanes
    inside = mine[:, None] & (lanes < labels)
    logits = -tl.load(energies + targets, mask=inside, other=1e30)
    logits = _slice(
        logits,
        image * near_pixels + own,
        mine,
        lanes,
        image * near_rows,
        near_vertices,
        near_weights,
        near_values,
        near_factor,
        labels,
        near_corners,
    )
    logits = _slice(
        logits,
        image * alike_pixels + own,
        mine,
        lanes,
        image * alike_rows,
        alike_vertices,
        alike_weights,
        alike_values,
        alike_factor,
        labels,
        alike_corners,
    )
    logits -= tl.max(logits, axis=1)[:, None]
    powers = tl.where(logits > least, tl.exp(logits), 0.0)
    tl.store(posterior + targets, powers / tl.sum(powers, axis=1)[:, None], mask=inside)


def _count_rows(labels: int) -> int:
    """Return how many rows of labels one program takes, a power of 2."""
    return min(64, max(1, TILE // triton.next_power_of_2(labels)))


def _splat(lattice: Lattice, source: Tensor, values: Tensor) -> None:
    images, pixels, labels = source.shape
    sides = (
        (lattice.size, _count_rows(2 * labels), ENTRIES, False),
        (len(lattice.crowded), 1, CROWDED_ENTRIES, True),
    )
    for count, vertices, entries, listed in sides:
        if count:
            _splat_kernel[triton.cdiv(count, vertices), images](
                source,
                lattice.entries,
                lattice.shares,
                lattice.starts,
                lattice.crowded,
                values,
                count,
                lattice.size,
                pixels,
                labels=labels,
                width=triton.next_power_of_2(labels),
                block=vertices,
                chunk=entries,
                most=CROWD,
                listed=listed,
                enable_fp_fusion=True,
            )


def _blur(lattice: Lattice, axis: int, values: Tensor, blurred: Tensor) -> None:
    images, _, labels = values.shape
    rows = _count_rows(labels)
    _blur_kernel[triton.cdiv(lattice.size, rows), images](
        values,
        lattice.neighbours[axis, 0],
        lattice.neighbours[axis, 1],
        blurred,
        lattice.size,
        labels=labels,
        width=triton.next_power_of_2(labels),
        block=rows,
        enable_fp_fusion=True,
    )


def _update(energies: Tensor, near: Message, alike: Message, posterior: Tensor) -> None:
    images, pixels, labels = energies.shape
    rows = _count_rows(labels)
    _update_kernel[triton.cdiv(pixels, rows), images](
        energies,
        *_unpack(near, pixels),
        *_unpack(alike, pixels),
        posterior,
        pixels,
        labels=labels,
        width=triton.next_power_of_2(labels),
        near_corners=near.lattice.vertices.shape[1],
        alike_corners=alike.lattice.vertices.shape[1],
        least=NEGLIGIBLE,
        block=rows,
        enable_fp_fusion=True,
    )


def _unpack(message: Message, pixels: int) -> tuple[Tensor, Tensor, Tensor, float, int, int]:
    """Return a message's arrays, its factor, and by how much the next image's begin later."""
    lattice = message.lattice
    shared = len(lattice.vertices) == pixels
    steps = (0, lattice.size + 1) if shared else (pixels, 0)
    return lattice.vertices, lattice.weights, message.values, message.factor, *steps


TRITON_PASSES = Passes(_splat, _blur, _update)
