"""How things are computed: the run directory, the store, the ledger, the scheduler, the datasets.

Knows no stage by name. ``from pipeline import Run`` opens the results of a run in Python.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.run.reader import Run

__all__ = ["Run"]

if not TYPE_CHECKING:
    # every command imports this package, and few of them read arrays
    def __getattr__(name):
        if name != "Run":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from pipeline.run.reader import Run

        return Run
