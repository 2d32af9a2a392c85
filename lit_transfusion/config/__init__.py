"""From YAML files and words on a command line to the parts of a run."""
