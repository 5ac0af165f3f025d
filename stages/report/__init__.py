"""The report: one page that shows an evaluation; gathered from a run, then rendered."""
