"""Images as tokens: decoding with a cache, against reading the whole document again for each code."""

import pytest
import torch
from sign_codec import Signs

from lit_transfusion.data.types import ImageSegment
from lit_transfusion.diffusion import NextToken
from lit_transfusion.generation.engine import Images, draw, generate
from lit_transfusion.generation.next_token import pick
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.prompts import interleaved, prompt_document
from lit_transfusion.generation.settings import Sampling
from lit_transfusion.model import Bidirectional, NoPatcher, TransformerConfig, Transfusion

P = 4  # codes of an image


@pytest.fixture
def pipeline(tokenizer):
    """An untrained net that begins and ends images and texts often, and whose mask must not matter."""
    torch.manual_seed(0)
    size = TransformerConfig(dim=32, n_layers=2, n_heads=2, multiple_of=16)
    net = Transfusion(tokenizer.vocab_size + 8, size, NoPatcher(dim=32), Bidirectional()).eval()

    def speak(net, args, output):
        logits = output.logits.clone()
        logits[:, tokenizer.boi] += 4.5
        logits[:, tokenizer.eos] += 2.5
        return output._replace(logits=logits)

    net.register_forward_hook(speak)
    return Pipeline(net, NextToken(), Signs(), tokenizer, image_size=4)


def tokens_of(pipeline, segments):
    """The token ids of a document, with codes after the vocabulary of the text."""
    tokens = []
    for segment in segments:
        if isinstance(segment, ImageSegment):
            codes = [code + pipeline.tokenizer.vocab_size for code in segment.value.flatten().tolist()]
            tokens += [pipeline.tokenizer.boi, *codes, pipeline.tokenizer.eoi]
        else:
            tokens += segment.token_ids
    return tokens


def logits_after(pipeline, tokens):
    """The logits after the last token, from one pass over all."""
    ids = torch.tensor([tokens])
    nothing = torch.full_like(ids, -1)
    positions, last = torch.arange(len(tokens))[None], torch.tensor([len(tokens) - 1])
    return pipeline.net(ids, positions, torch.zeros_like(ids), nothing, [], last).logits


@torch.no_grad()
def slowly(pipeline, prompt, sampling, seed, images):
    """Continue a prompt without a cache: the token ids that follow it, without EOS."""
    tokenizer, generator = pipeline.tokenizer, torch.Generator().manual_seed(seed)
    tokens, given = tokens_of(pipeline, prompt.segments), [s for s in prompt.segments if isinstance(s, ImageSegment)]
    start, written, drawn = len(tokens), 0, 0
    null = [tokenizer.bos, *tokens_of(pipeline, given)]
    forced = images is Images.FORCED
    for_codes = Sampling(temperature=sampling.image_temperature, top_k=sampling.image_top_k)
    while True:
        token = tokenizer.boi
        if not forced:
            logits = logits_after(pipeline, tokens)[:, : tokenizer.vocab_size]
            logits[:, [tokenizer.bos, tokenizer.eoi]] = -torch.inf
            token = pick(logits, [generator], sampling)[0]
        forced = False
        if token == tokenizer.eos or (token == tokenizer.boi and drawn == sampling.max_images):
            return tokens[start:]
        tokens.append(token)
        if token == tokenizer.boi:
            null.append(token)
            for _ in range(P):
                prompted, unprompted = (
                    logits_after(pipeline, read)[:, tokenizer.vocab_size :] for read in (tokens, null)
                )
                guided = unprompted + sampling.guidance_scale * (prompted - unprompted)
                code = pick(guided, [generator], for_codes)[0] + tokenizer.vocab_size
                tokens.append(code)
                null.append(code)
            tokens.append(tokenizer.eoi)
            null.append(tokenizer.eoi)
            drawn += 1
        else:
            written += 1
        if written == sampling.max_new_tokens:
            return tokens[start:]


def prompts_of(pipeline):
    picture = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    return [
        prompt_document(pipeline, "a red circle and"),
        prompt_document(pipeline),
        prompt_document(pipeline, "two", picture),
        interleaved(pipeline, ["on white", picture, "a", -picture]),
    ]


@pytest.mark.parametrize("images", [Images.CHOSEN, Images.FORCED])
@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scale": 1.0},
        {"guidance_scale": 2.5},
        {"guidance_scale": 2.5, "image_temperature": 0.0},
        {"temperature": 1.0, "image_temperature": 0.7, "image_top_k": 3},
    ],
)
def test_equals_reading_everything_again(pipeline, images, options):
    sampling = Sampling(max_new_tokens=6, max_images=2, **options)
    prompts = prompts_of(pipeline)
    generated = generate(pipeline, prompts, sampling, images=images)
    results = [tokens_of(pipeline, sample.added) for sample in generated]
    assert results == [slowly(pipeline, prompt, sampling, seed, images) for seed, prompt in enumerate(prompts)]
    counts = [len(sample.images) for sample in generated]
    assert sum(counts) >= len(prompts) // 2  # the test has images to compare


def test_pictures_are_those_of_the_codes(pipeline):
    sampling = Sampling(max_new_tokens=0)
    (sample,) = generate(pipeline, [prompt_document(pipeline, "two")], sampling, images=Images.FORCED)
    (picture,) = draw(pipeline, ["two"], sampling)
    codes = sample.images[0].value
    assert codes.shape == (1, 2, 2) and codes.dtype == torch.int64
    torch.testing.assert_close(picture, Signs().decode(codes[None])[0])
    torch.testing.assert_close(Signs().encode(picture[None])[0], codes)


def test_captions_contain_no_codes(pipeline):
    prompt, sampling = (
        prompt_document(pipeline, picture=torch.ones(3, 4, 4)),
        Sampling(temperature=9, max_new_tokens=64),
    )
    samples = generate(pipeline, [prompt] * 8, sampling, images=Images.NEVER)
    written = [token for sample in samples for token in sample.token_ids]
    assert len(written) > 64 and max(written) < pipeline.first_code


def test_progress_ends_with_the_last_step(pipeline):
    steps = []
    draw(pipeline, ["two"], Sampling(num_inference_steps=50), on_step=lambda step, _: steps.append(step))
    assert steps[-1] == 49 and steps == sorted(steps)


def test_sizes_may_differ(pipeline):
    (wide,) = draw(pipeline, ["two"], Sampling(size="8x4"))
    assert wide.shape == (3, 4, 8)
