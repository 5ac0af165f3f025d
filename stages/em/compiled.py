"""How a batch goes through the compiled loops: which, in what layout, in how many threads."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, float32

from pipeline.frames import count_threads, map_ahead

# Far under every logit, and yet differences between two of them are finite.
NEVER = np.float32(-1e30)


def runs_compiled(logits: Tensor) -> bool:
    """Whether the compiled loops take these logits: float32 in the processor's memory."""
    return logits.device.type == "cpu" and logits.dtype == float32


def pad_classes(logits: Tensor) -> NDArray[np.float32]:
    """Copy logits to an even number of classes, the last of which never wins.

    Parameters
    ----------
    logits
        float32 [window, class, row, column], any strides.

    Returns
    -------
    float32 [window, class, row, column]
        C-contiguous.
    """
    windows, classes, *grid = logits.shape
    padded = np.full((windows, classes + classes % 2, *grid), NEVER, np.float32)
    padded[:, :classes] = logits.detach().numpy()
    return padded


def map_windows(function: Callable[[slice], None], windows: int) -> None:
    """Apply a function to runs of windows, a thread to each; it writes every window's own rows.

    What it writes therefore does not depend on the number of threads.
    """
    threads = max(1, min(count_threads(), windows))
    if threads == 1:
        function(slice(0, windows))
        return
    ends = [windows * thread // threads for thread in range(threads + 1)]
    runs = [slice(low, high) for low, high in pairwise(ends)]
    for _ in map_ahead(function, runs, threads, ahead=threads):
        pass
