"""What this machine is called, for the records of what was measured on it."""

import platform
from pathlib import Path


def cpu_name() -> str:
    """The processor's name where Linux tells it, else that of its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
