"""Fixtures for the tests of generation: nets that write more, recorded forward passes."""

import pytest
import torch
from single_shape import given

from lit_transfusion.generation.engine import draw, write
from lit_transfusion.generation.settings import Sampling


@pytest.fixture
def talkative():
    """Makes an untrained net sometimes begin images and end its text."""

    def talkative(pipeline):
        def speak(net, args, output):
            logits = output.logits.clone()
            logits[:, pipeline.tokenizer.boi] += 4.5
            logits[:, pipeline.tokenizer.eos] += 3.5
            return output._replace(logits=logits)

        pipeline.net.register_forward_hook(speak)
        return pipeline

    return talkative


class Recorder:
    """Records the inputs of a net's forward passes: tokens of each row, with -1 at patches; images; timesteps."""

    def __init__(self, net):
        self.tokens, self.positions, self.images, self.timesteps = [], [], [], []
        self.handle = net.register_forward_pre_hook(self)

    def __call__(self, net, args):
        tokens, positions, _, image_ids = args[:4]
        images, timesteps = given(args)
        self.tokens.append(torch.where(image_ids < 0, tokens, -1).tolist())
        self.positions.append(positions.tolist())
        self.images.append(images.clone())
        self.timesteps.append(timesteps.tolist())


@pytest.fixture
def record():
    return Recorder


@pytest.fixture(scope="session")
def assert_same_outputs():
    """Asserts that two pipelines have the same outputs, bit for bit."""

    def outputs(pipeline):
        sampling = Sampling(num_inference_steps=2, max_new_tokens=4)
        pictures = torch.zeros(1, 3, pipeline.image_size, pipeline.image_size)
        return draw(pipeline, ["a red circle"], sampling), write(pipeline, pictures, sampling)

    def assert_same_outputs(pipeline, other):
        (ours, our_words), (theirs, their_words) = outputs(pipeline), outputs(other)
        assert all(map(torch.equal, ours, theirs))
        assert our_words == their_words

    return assert_same_outputs
