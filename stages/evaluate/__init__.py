"""Prototypes -> label PNGs, metrics, report."""
