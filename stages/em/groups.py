"""Windows one by one, and sums over them in a fixed order.

A fit's result may not depend on how many threads or processes computed it. So on the processor
every window is computed alone, by one thread, wherever the windows beside it are; and what is
summed over windows is summed in groups of ``GROUP``, then group by group, in the order of the
batch. Whoever computes some whole groups of a batch gets their sums to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import add

import torch
from torch import Tensor

from stages.em.compiled import map_windows

GROUP = 8
# Libraries of linear algebra may round differently on memory that begins in mid of a cache line.
_LINE = 64


def apply_windows(
    function: Callable[..., tuple[Tensor, ...]], *batches: Tensor
) -> tuple[Tensor, ...]:
    """Apply a function to every window of a batch, on the processor one by one.

    Parameters
    ----------
    function
        Takes a run of windows of every batch, gives tensors [window, ...].
    *batches
        [window, ...], all of as many windows. On another device the function gets them whole.

    Returns
    -------
    tuple of Tensor
        [window, ...].
    """
    if batches[0].device.type != "cpu":
        return function(*batches)
    parts: list[tuple[Tensor, ...]] = [()] * len(batches[0])

    def apply(run: slice) -> None:
        # a thread that is new to torch starts with as many as the environment says
        torch.set_num_threads(1)
        for window in range(run.start, run.stop):
            parts[window] = function(*(_align(batch[window : window + 1]) for batch in batches))

    with one_thread():
        map_windows(apply, len(parts))
    return tuple(torch.cat(same) for same in zip(*parts, strict=True))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch's own operations use one thread each: with several, their sums round as they do."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _align(tensor: Tensor) -> Tensor:
    return tensor if tensor.data_ptr() % _LINE == 0 else tensor.clone()


def sum_groups(values: Tensor) -> Tensor:
    """Sum every ``GROUP`` windows: [window, ...] to [group, ...]."""
    return torch.stack([add_in_order(list(group)) for group in values.split(GROUP)])


def add_in_order(values: Sequence[Tensor]) -> Tensor:
    """Add tensors of one shape, the first two first."""
    return reduce(add, values)
