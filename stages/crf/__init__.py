"""The dense CRF that refines proposals and label maps along the edges of the image."""
