"""Several evaluations side by side, on one page."""
