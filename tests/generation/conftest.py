"""Nets that say what a test wants them to say, and what is seen of them."""

import pytest
import torch

from lit_transfusion.generation import sampler


@pytest.fixture
def talkative():
    """Makes an untrained net begin images and end its text every now and then."""

    def talkative(pipeline):
        def speak(net, args, output):
            logits = output.logits.clone()
            logits[:, pipeline.tokenizer.boi] += 4.5
            logits[:, pipeline.tokenizer.eos] += 3.5
            return output._replace(logits=logits)

        pipeline.net.register_forward_hook(speak)
        return pipeline

    return talkative


@pytest.fixture
def script(monkeypatch):
    """Takes what the sample of seed 0, 1, 2, … writes out of the net's hands: tokens, and word 50 after them."""

    def script(*plans):
        plans = [list(plan) for plan in plans]

        def pick(logits, generators, sampling):
            rows = [generator.initial_seed() for generator in generators]
            return [plans[row].pop(0) if plans[row] else 50 for row in rows]

        monkeypatch.setattr(sampler, "pick", pick)

    return script


class Recorder:
    """What a net's forward passes read: in each, the tokens of each row, with -1 at patches, images and timesteps."""

    def __init__(self, net):
        self.tokens, self.positions, self.images, self.timesteps = [], [], [], []
        self.handle = net.register_forward_pre_hook(self)

    def __call__(self, net, args):
        tokens, positions, _, image_ids, images, timesteps = args[:6]
        self.tokens.append(torch.where(image_ids < 0, tokens, -1).tolist())
        self.positions.append(positions.tolist())
        self.images.append(images.clone())
        self.timesteps.append(timesteps.tolist())


@pytest.fixture
def record():
    return Recorder
