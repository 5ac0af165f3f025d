"""The verbs of the command line: each parses, calls a workflow or a stage, and prints."""
