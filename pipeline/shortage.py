"""What is said where memory is short and the work cannot be cut smaller: a batch makes its result.

Where it can be, see :func:`pipeline.memory.compute_halving`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import MemoryShortError
from pipeline.memory import is_memory_short

# numpy, torch on the processor and torch on CUDA agree on these words
_ASKED = re.compile(r"allocate (\d[\d.]* ?(?:[KMGT]i?B|bytes))")


@contextmanager
def explain_shortage(what: str) -> Iterator[None]:
    """Say in one sentence that memory was short, and what to do; usable as a decorator, too.

    Parameters
    ----------
    what
        What was computed, for the message.

    Raises
    ------
    MemoryShortError
        An allocation has failed.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_memory_short(error):
            raise
        found = _ASKED.search(str(error))
        asked = f" ({found[1]} were asked for)" if found else ""
        raise MemoryShortError(
            f"{what}: memory is short{asked}; run the command again on a machine or device with "
            "more, or extract with a smaller --size; a smaller --batch-size needs less, too, but "
            "changes the result."
        ) from error
