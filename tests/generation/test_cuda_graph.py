"""Compiled decoding with passes recorded once for each shape gives the same samples. (CUDA graphs: `-m gpu`.)"""

import functools
import gc
import weakref

import pytest
import torch
from slow_decoder import assert_same, pieces_of

from lit_transfusion.data.types import Document, ImageSegment, TextSegment
from lit_transfusion.diffusion import DDPM
from lit_transfusion.generation import cuda_graph, decoder
from lit_transfusion.generation.cuda_graph import Graphed
from lit_transfusion.generation.decoder import Decoder
from lit_transfusion.generation.engine import Images, generate
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.prompts import prompt_document
from lit_transfusion.generation.settings import Sampling
from lit_transfusion.latents import Pixels
from lit_transfusion.model import Bidirectional, LinearPatcher, TransformerConfig, Transfusion

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # diffusers under NumPy 2
P = 4
SAMPLING = Sampling(
    "ddpm",
    num_inference_steps=3,
    guidance_scale=2.5,
    guidance_interval=(0.3, 0.8),
    temperature=1.0,
    max_new_tokens=9,
    max_images=2,
)


def compile_with(monkeypatch, pipeline, backend):
    """Compile, with small buckets, so that rows need several, and with passes that are recorded soon."""
    monkeypatch.setattr(decoder, "BUCKET", 8)
    monkeypatch.setattr(cuda_graph, "RARE", 1)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    pipeline.compile()


def prompts(pipeline):
    image = ImageSegment(torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0)))
    return [
        prompt_document(pipeline, "a red circle and"),
        prompt_document(pipeline),
        Document((TextSegment((1, 9)), image, TextSegment((7,)), image)),
        prompt_document(pipeline, "a blue square"),
    ]


# The real compiler takes half a minute; with "eager", only the tracer runs, which tests the rest of the code.
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("patcher", ["linear", "unet"])
def test_compiled_decoding_is_decoding(make_pipeline, talkative, monkeypatch, patcher, backend):
    torch._dynamo.reset()
    pipeline = talkative(make_pipeline(patcher, noise=DDPM(prediction_type="sample")))
    documents = prompts(pipeline)
    expected = generate(pipeline, documents, SAMPLING, images=Images.FORCED)
    compile_with(monkeypatch, pipeline, backend)
    for _ in range(2):  # the first records, the second replays
        samples = generate(pipeline, documents, SAMPLING, images=Images.FORCED)
        for sample, expectation in zip(samples, expected, strict=True):
            assert_same(sample, (pieces_of(expectation), expectation.stop_reason.value))
    assert all(sample.images for sample in expected)


@pytest.mark.parametrize(("modality_weights", "captured"), [("none", True), ("ffn", False)])
def test_passes_with_weights_by_modality_are_not_captured(tokenizer, modality_weights, captured):
    """The sizes of the groups of positions are read from the device."""
    config = TransformerConfig(dim=32, n_layers=1, n_heads=2, modality_weights=modality_weights)
    net = Transfusion(tokenizer.vocab_size, config, LinearPatcher(dim=32), Bidirectional())
    pipeline = Pipeline(net, DDPM(), Pixels(), tokenizer, image_size=4)
    pipeline.compile()
    assert pipeline.cuda_graphs == captured


@pytest.mark.slow
def test_longer_rows_compile_nothing_again(make_pipeline, monkeypatch):
    """The compiled code does not depend on the length of the cache."""
    torch._dynamo.reset()
    graphs, pipeline = [], make_pipeline()

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile_with(monkeypatch, pipeline, backend)
    decoder, counts = Decoder(pipeline, 3, 64), []
    with torch.no_grad():
        for length in range(40):
            decoder.read_tokens([5, None if length % 2 else 6, 7])
            decoder.predict_images(torch.zeros(3, 3, 4, 4), 500)
            counts.append(len(graphs))
    assert 0 < counts[0] == counts[-1]
    assert sorted(decoder.graphed) == [8, 16, 24, 32, 40, 48]


def test_each_shape_is_recorded_once_at_fixed_addresses(monkeypatch):
    monkeypatch.setattr(cuda_graph, "RARE", 0)
    places = []

    def double(a, b):
        places.append((a.data_ptr(), b.data_ptr()))
        return 2 * a, 2 * b

    graphed, three = Graphed(double), torch.arange(3.0)
    for _ in range(3):
        inputs = torch.randn(2), torch.randn(5)
        for output, tensor in zip(graphed(*inputs), inputs, strict=True):
            assert torch.equal(output, 2 * tensor)
    assert len(set(places)) == 1
    first = graphed(three, three)
    graphed(-three, -three)
    assert torch.equal(first[0], 2 * three)  # returned tensors are not overwritten
    assert len(set(places)) == 2


def test_rare_shapes_are_not_recorded():
    graphed = Graphed(lambda a: (2 * a,))
    for length in (3, 4):
        for calls in range(1, cuda_graph.RARE + 3):
            assert torch.equal(graphed(torch.full((length,), calls))[0], torch.full((length,), 2 * calls))
            assert (torch.Size([length]),) not in graphed.graphs or calls > cuda_graph.RARE
    assert len(graphed.graphs) == 2


def test_results_are_copies(monkeypatch):
    """Results are copies also if the function returns its input, as the net does with an empty batch of images."""
    monkeypatch.setattr(cuda_graph, "RARE", 0)
    graphed = Graphed(lambda a: (a,))
    first = graphed(torch.ones(2))
    graphed(torch.zeros(2))
    assert torch.equal(first[0], torch.ones(2))


def test_the_cache_is_freed_with_its_decoder(make_pipeline, monkeypatch):
    """It is freed without the garbage collector, since the next decoder on a GPU may need its memory."""
    pipeline = make_pipeline()
    monkeypatch.setattr(pipeline, "cuda_graphs", True)
    gc.disable()
    try:
        decoder = Decoder(pipeline, 2, 10)
        with torch.no_grad():
            decoder.read_tokens([5, 6])
        cache = weakref.ref(decoder.cache)
        assert cache() is not None
        del decoder
        assert cache() is None
    finally:
        gc.enable()
