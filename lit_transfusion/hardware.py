"""Name and capabilities of this machine's processor."""

import platform
from pathlib import Path

import torch


def cpu_name() -> str:
    """Return the name of the processor, or of its architecture if Linux does not report it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than float32 on a device. On a CPU without bf16 instructions it is many times slower."""
    if device.type == "cpu":
        return torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_avx512_bf16_supported()
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
