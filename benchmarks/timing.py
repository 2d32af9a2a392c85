"""Timing of variants: several rounds in alternating order, the median and the minimum.

With one CPU thread, the clock is the processor time of this process, which other processes disturb least. With more
threads or on a GPU, it is wall time. Variants run in alternating order (A B C, C B A, …), so that a machine that gets
slower or faster affects all of them.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch


class Timing(NamedTuple):
    median: float  # seconds
    minimum: float

    def __str__(self) -> str:
        return f"{show(1e3 * self.median)} [{show(1e3 * self.minimum)}]"


def interleave(
    variants: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu", warmup: int = 1
) -> dict[str, Timing]:
    """Time each variant once per round, after `warmup` calls that are not counted."""
    for variant in variants.values():
        for _ in range(warmup):
            variant()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for i in range(rounds):
        for name in list(variants) if i % 2 == 0 else reversed(variants):
            start = clock(device)
            variants[name]()
            seconds[name].append(clock(device) - start)
    return {name: Timing(statistics.median(values), min(values)) for name, values in seconds.items()}


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def gemm_rate(device: str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """The highest rate of some matrix products on this machine, in floating-point operations per second."""
    shapes = [(8192, 8192, 8192)] if device == "cuda" else [(2048, 256, 1408), (1024, 512, 2816), (2048, 1024, 2048)]
    best = 0.0
    for m, k, n in shapes:
        a, b = torch.randn(m, k, device=device, dtype=dtype), torch.randn(k, n, device=device, dtype=dtype)
        timing = interleave({"gemm": lambda a=a, b=b: a @ b}, rounds=10, device=device)["gemm"]
        best = max(best, 2 * m * k * n / timing.minimum)
    return best


def show(number: float) -> str:
    """Format a number with three significant digits."""
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"
