"""Prototypes -> label PNGs and metrics."""
