"""Helpers for the tests of likelihoods: a source with given examples, and training of a net."""

import torch

from lit_transfusion.data.packing import collate, flatten
from lit_transfusion.data.sources.base import Source
from lit_transfusion.data.types import Example
from lit_transfusion.evaluation.metric import Subject
from lit_transfusion.training.losses import LossWeights, transfusion_loss
from lit_transfusion.training.objective import run_with_noise

CAPTIONS = ["a red circle", "two green triangles on white", "a blue square", "circle and square and circle", "green"]


class Given(Source):
    def __init__(self, examples):
        self.examples = examples

    def split(self, name):
        return self

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


class Texts(Given):
    images_per_example = 0
    has_texts = True


def random_examples(captions=CAPTIONS):
    """A random picture of 4 × 4 pixels for each caption."""
    generator = torch.Generator().manual_seed(0)
    return [Example(torch.rand(3, 4, 4, generator=generator) * 2 - 1, (caption,)) for caption in captions]


def subject_of(pipeline, examples=None, **options):
    return Subject(pipeline, Given(random_examples() if examples is None else examples), **options)


def train(pipeline, documents, steps):
    """Train the net on the documents with a simple loop."""
    net, tokenizer = pipeline.net, pipeline.tokenizer
    flat = [[flatten(document, tokenizer, pipeline.patches)] for document in documents]
    batch = collate(flat, max(len(row[0].tokens) for row in flat), tokenizer.pad, pipeline.latent_shape)
    optimizer, generator = torch.optim.AdamW(net.parameters(), lr=1e-2), torch.Generator().manual_seed(0)
    for _ in range(steps):
        compared, _ = run_with_noise(net, pipeline.noise, pipeline.codec, batch, generator)
        loss = transfusion_loss(compared, LossWeights(5.0)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return pipeline
