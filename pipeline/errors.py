"""The typed errors: each message is one sentence of what is wrong, where, and what to do.

Words that such sentences share: a close name, a list, a number with its unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class PipelineError(Exception):
    """Something the user can act on; the command line prints its message alone and exits with 1."""


class UsageError(PipelineError):
    """The command itself is wrong (an unknown name, an impossible value); exits with 2."""


class DatasetError(PipelineError):
    """The input folder does not hold what the named dataset's layout asks for."""


class ImageError(PipelineError):
    """One image or label map cannot be read; the message is the reason kept in the manifest."""


class AccessError(ImageError):
    """The file cannot be had at the moment, which says nothing of its content: worth a new try."""


class WeightsError(PipelineError):
    """No source holds the weights of a backbone, or the weights do not fit it."""


class RunError(PipelineError):
    """The run directory is missing, is not one, or lacks what a stage reads."""


class StaleError(RunError):
    """What a stage reads was made from something that has changed since."""


class ShardError(PipelineError):
    """Some shards of a stage could not be computed; the others are on disk."""


class DamageError(RunError):
    """The bytes on disk are not those that were written."""


class WorkerLostError(PipelineError):
    """The process that computed a shard was killed, by the kernel or others, more than once."""


class MemoryShortError(PipelineError):
    """Memory is short even for the smallest piece of work."""


def did_you_mean(name: str, known: Iterable[object]) -> str:
    """Return `` (did you mean 'X'?)`` when a known name is close, else nothing."""
    from difflib import get_close_matches

    close = get_close_matches(name, [str(item) for item in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def list_some(items: Sequence[object], most: int = 8) -> str:
    """List some of a few or many things."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more


def count_of(number: int, unit: str) -> str:
    """Return a number with its unit, which is given in the plural: ``1 shard``, ``2 shards``."""
    return f"{number} {unit.removesuffix('s') if number == 1 else unit}"
