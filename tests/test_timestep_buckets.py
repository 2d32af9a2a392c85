"""Buckets of timesteps: their names are their first and last timestep, also if T is not a multiple of eight."""

import pytest
import torch

from lit_transfusion.timestep_buckets import TIMESTEP_BUCKETS, bucket_names, bucket_of


@pytest.mark.parametrize("num_timesteps", [8, 20, 1000])
def test_names_are_the_first_and_last_timestep(num_timesteps):
    timesteps = torch.arange(num_timesteps)
    buckets = bucket_of(timesteps, num_timesteps)
    members = [timesteps[buckets == bucket] for bucket in range(TIMESTEP_BUCKETS)]
    assert bucket_names(num_timesteps) == [f"{int(of[0]):03d}-{int(of[-1]):03d}" for of in members]
