"""Room extract: images become features, cached window by window."""
