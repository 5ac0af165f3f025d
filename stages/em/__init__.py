"""Features and proposals -> class prototypes."""
