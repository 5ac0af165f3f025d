"""How things are computed: the run directory, the store, the ledger, the scheduler, the datasets.

Knows no stage by name.
"""
