"""One run: its layout, manifest, ledger, stages, runner, verification, and its reader."""
