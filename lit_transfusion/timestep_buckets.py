"""Buckets of timesteps. A mean over all timesteps hides what is learned: large t is layout, small t is detail."""

from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TIMESTEP_BUCKETS = 8


def bucket_of(timesteps: "Tensor", num_timesteps: int) -> "Tensor":
    """Return the index of the bucket of each timestep in [0, num_timesteps], int64."""
    return (timesteps * TIMESTEP_BUCKETS // num_timesteps).long().clamp(max=TIMESTEP_BUCKETS - 1)


def bucket_names(num_timesteps: int) -> list[str]:
    """Return the names of the buckets, which are their first and last timestep: 000-124, 125-249, …"""
    starts = [-(-b * num_timesteps // TIMESTEP_BUCKETS) for b in range(TIMESTEP_BUCKETS + 1)]  # rounded up
    return [f"{start:03d}-{stop - 1:03d}" for start, stop in pairwise(starts)]
