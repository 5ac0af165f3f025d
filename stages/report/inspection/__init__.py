"""One image with all that the stages made of it, as one picture."""
