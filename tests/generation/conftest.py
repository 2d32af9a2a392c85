"""What the tests of the generation room share: checkpoints as a run writes them, and what a pipeline makes."""

import pytest
import torch
import torch.distributed.checkpoint as dcp

from lit_transfusion.generation.checkpoint import KEY
from lit_transfusion.generation.sampler import Sampling, draw, write


@pytest.fixture(scope="session")
def assert_same_outputs():
    """Bit for bit."""

    def outputs(pipeline):
        sampling = Sampling(num_inference_steps=2, max_new_tokens=4)
        pictures = torch.zeros(1, 3, pipeline.image_size, pipeline.image_size)
        return draw(pipeline, ["a red circle"], sampling), write(pipeline, pictures, sampling)

    def assert_same_outputs(pipeline, other):
        (ours, our_words), (theirs, their_words) = outputs(pipeline), outputs(other)
        assert torch.equal(ours, theirs)
        assert our_words == their_words

    return assert_same_outputs


@pytest.fixture(scope="session")
def save_checkpoint():
    """Writes a file, or shards in the form of Lightning's ModelParallelStrategy, which keeps all that is no weight and
    no optimiser in meta.pt. `averages` are added to the weights to give the averaged ones."""

    def save_checkpoint(path, pipeline, averages=None, sharded=False, **changes):
        weights = pipeline.net.state_dict()
        state = {f"net.{name}": weight for name, weight in weights.items()}
        if averages is not None:
            state |= {f"ema.{name}": weight + averages for name, weight in weights.items()}
        rest = {KEY: pipeline.describe(), "global_step": 3} | changes
        if sharded:
            moments = {"exp_avg": {"net.head.weight": weights["head.weight"]}, "param_groups": [{"lr": 1.0}]}
            dcp.save({"state_dict": state, "optimizer_0": moments}, checkpoint_id=path, no_dist=True)
            torch.save(rest, path / "meta.pt")
        else:
            torch.save({"state_dict": state, "optimizer_states": [{"lr": 1.0}]} | rest, path)
        return path

    return save_checkpoint
