"""Runs on an S3 server on loopback, sound or failing."""
