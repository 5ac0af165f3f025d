"""A photograph, or the reason why not."""
