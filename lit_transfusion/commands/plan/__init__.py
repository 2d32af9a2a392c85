"""The `plan` command: parameters, memory, operations and time of a run, without data, devices or memory for the net."""
