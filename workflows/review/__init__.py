"""``review``: a local page on which a person names clusters and corrects images."""
