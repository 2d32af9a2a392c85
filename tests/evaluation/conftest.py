"""Fixtures for the tests of metrics: a small subject."""

import pytest

from lit_transfusion.evaluation.metric import Subject
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.settings import Sampling
from lit_transfusion.latents import Pixels
from lit_transfusion.model import Bidirectional, LinearPatcher, TransformerConfig, Transfusion
from lit_transfusion.shapes.source import Shapes


@pytest.fixture
def make_subject(make_pipeline):
    """Makes a subject with an untrained model and pictures of shapes with 16 × 16 pixels.

    What is `given` of the subject's pictures, texts and so on is not made.
    """

    def make_subject(num_examples=4, **given):
        small = make_pipeline()
        size = TransformerConfig(dim=32, n_layers=1, n_heads=2)
        net = Transfusion(small.tokenizer.vocab_size, size, LinearPatcher(dim=32, patch_size=8), Bidirectional())
        pipeline = Pipeline(net.eval(), small.noise, Pixels(), small.tokenizer, image_size=16)
        source = Shapes(image_size=16, num_val_examples=num_examples)
        sampling = Sampling(num_inference_steps=2, max_new_tokens=8)
        subject = Subject(pipeline, source, num_examples, sampling, batch_size=3)
        vars(subject).update(given)  # sets cached properties
        return subject

    return make_subject
