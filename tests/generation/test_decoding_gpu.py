"""Tests that need a GPU: decoding there, and forward passes recorded and replayed as CUDA graphs."""

import pytest
import torch

from lit_transfusion.diffusion import DDPM
from lit_transfusion.generation.cuda_graph import RARE, Graphed
from lit_transfusion.generation.decoder import Decoder
from lit_transfusion.generation.engine import Images, generate
from lit_transfusion.generation.prompts import prompt_document
from lit_transfusion.generation.settings import Sampling

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    pytest.mark.filterwarnings("ignore"),
]
SAMPLING = Sampling(num_inference_steps=20, guidance_scale=2.5, max_new_tokens=30)


@pytest.fixture
def make_gpu_pipeline(make_pipeline):
    def make_gpu_pipeline(patcher):
        pipeline = make_pipeline(patcher, noise=DDPM(prediction_type="sample"))
        pipeline.net.cuda()
        return pipeline

    return make_gpu_pipeline


def samples(pipeline):
    prompts = [prompt_document(pipeline, text) for text in ("a red circle", "two")]
    generated = generate(pipeline, prompts, SAMPLING, images=Images.FORCED)
    return [(sample.token_ids, torch.stack([image.latents for image in sample.images]).cpu()) for sample in generated]


def assert_same(samples, others):
    for (tokens, latents), (other_tokens, other_latents) in zip(samples, others, strict=True):
        assert tokens == other_tokens
        torch.testing.assert_close(latents, other_latents, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("patcher", ["linear", "unet"])
def test_decoding_equals_that_on_the_cpu_compiled_or_not(make_pipeline, make_gpu_pipeline, patcher):
    expected = samples(make_pipeline(patcher, noise=DDPM(prediction_type="sample")))
    pipeline = make_gpu_pipeline(patcher)
    assert_same(samples(pipeline), expected)
    pipeline.compile()
    assert_same(samples(pipeline), expected)
    assert_same(samples(pipeline), expected)


def test_a_recording_is_replayed_with_new_values():
    calls = []

    def square(a):
        calls.append(a.data_ptr())
        return (a * a,)

    graphed = Graphed(square)
    for value in range(RARE + 4):
        [output] = graphed(torch.full((4,), float(value), device="cuda"))
        assert output.tolist() == [value**2] * 4
    assert len(calls) == RARE + 2  # one for warm-up, one for recording, none for replays


@pytest.mark.parametrize("patcher", ["linear", "unet"])
@torch.inference_mode()
def test_a_replay_writes_into_the_cache(make_gpu_pipeline, patcher):
    """Each token is added to the cache, although Python code runs only for the first ones."""
    pipeline = make_gpu_pipeline(patcher)
    decoders = []
    for pipeline.cuda_graphs in (False, True):
        decoder = Decoder(pipeline, 2, 40)
        for token in range(30):
            decoder.read_tokens([5 + token, 6 + token])
        decoders.append(decoder)
    torch.testing.assert_close(decoders[1].logits, decoders[0].logits, atol=1e-4, rtol=1e-4)
    images = torch.randn(2, 3, 4, 4, device="cuda")
    for timestep in (900, 100):
        predictions = [decoder.predict_images(images, timestep) for decoder in decoders]
        torch.testing.assert_close(*predictions, atol=1e-4, rtol=1e-4)
