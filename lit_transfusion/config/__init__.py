"""Reads YAML files and the command line, and creates the parts of a run."""
