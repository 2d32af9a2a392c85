"""Decoding: language-model mode writes text until BOI, diffusion mode draws the image (paper, 3.4)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from lit_transfusion.data.document import Document, ImageSegment, TextSegment
from lit_transfusion.data.packing import FlatDocument, flatten
from lit_transfusion.data.recipe import null_prompt
from lit_transfusion.errors import InputError
from lit_transfusion.generation.decoder import Decoder
from lit_transfusion.generation.pipeline import Pipeline

OnStep = Callable[[int, Tensor], None]  # called with the denoising step just done and the latents (B, C, H, W) so far


@dataclass(frozen=True)
class Sampling:
    """How images and text are sampled.

    Args:
        sampler: ddpm (ancestral, the paper's), ddim or dpm++.
        num_inference_steps: Denoising steps (paper: 250).
        guidance_scale: Weight of the prompt against no prompt; 1 is none (paper: 3 in ablations).
        temperature: Of text; 0 takes the likeliest token each time.
        max_new_tokens: Text tokens written at most.
        max_images: Images drawn at most, where the model decides.
        seed: Of noise and text. Row i of a batch depends on seed + i and on nothing else of the batch.
    """

    sampler: str = "ddim"
    num_inference_steps: int = 50
    guidance_scale: float = 3.0
    temperature: float = 0.0
    max_new_tokens: int = 64
    max_images: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise InputError(f"temperature {self.temperature} is negative")
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens {self.max_new_tokens} is less than 1")


class StopReason(Enum):
    END_OF_TEXT = "end of text"
    TOKEN_LIMIT = "token limit"
    IMAGE_LIMIT = "image limit"


class Generated(NamedTuple):
    document: Document  # the prompt and what was added to it
    stop_reason: StopReason


@torch.inference_mode()
def draw(
    pipeline: Pipeline, prompts: Sequence[str], sampling: Sampling = Sampling(), on_step: OnStep | None = None
) -> Tensor:
    """One picture for each prompt: BOI is put after it, whatever the model would write. (B, 3, S, S) in [-1, 1]."""
    tokenizer = pipeline.tokenizer
    documents = [Document((TextSegment((tokenizer.bos, *tokenizer.encode(prompt))),)) for prompt in prompts]
    if sampling.guidance_scale != 1:
        documents += [Document((null_prompt(tokenizer),))] * len(prompts)
    pieces = [
        _with_boi(flatten(document, tokenizer, pipeline.patches_per_image), tokenizer.boi) for document in documents
    ]
    capacity = max(len(piece.tokens) for piece in pieces) + pipeline.patches_per_image
    decoder = Decoder(pipeline, len(pieces), capacity)
    decoder.read(pieces)
    return pipeline.codec.decode(_denoise(decoder, len(prompts), sampling, on_step))


@torch.inference_mode()
def write(pipeline: Pipeline, images: Tensor, sampling: Sampling = Sampling()) -> list[str]:
    """One caption for each picture (B, 3, S, S) in [-1, 1]: text until EOS; another image is not begun."""
    tokenizer = pipeline.tokenizer
    latents = pipeline.codec.encode(images.to(pipeline.net.head.weight.device), torch.Generator().manual_seed(0))
    documents = [Document((null_prompt(tokenizer), ImageSegment(image))) for image in latents]
    pieces = [flatten(document, tokenizer, pipeline.patches_per_image) for document in documents]
    decoder = Decoder(pipeline, len(pieces), len(pieces[0].tokens) + sampling.max_new_tokens)
    logits = decoder.read(pieces)
    generators = _generators(sampling.seed, len(pieces))
    active = torch.ones(len(pieces), dtype=torch.bool, device=logits.device)
    captions: list[list[int]] = [[] for _ in pieces]
    for _ in range(sampling.max_new_tokens):
        logits[:, [tokenizer.bos, tokenizer.boi, tokenizer.eoi]] = -torch.inf
        token_ids = _pick(logits, sampling.temperature, generators)  # (B,)
        active &= token_ids != tokenizer.eos
        if not active.any():
            break
        for caption, token_id, going_on in zip(captions, token_ids.tolist(), active.tolist(), strict=True):
            caption += [token_id] if going_on else []
        logits = decoder.read_tokens(token_ids, active)
    return [tokenizer.decode(caption) for caption in captions]


@torch.inference_mode()
def interleave(
    pipeline: Pipeline, prompt: Document, sampling: Sampling = Sampling(), on_step: OnStep | None = None
) -> Generated:
    """Go on from a prompt: the model writes, and draws an image wherever it writes BOI.

    The prompt's images are latents, as those of the result. A second row reads nothing but BOS and the image that is
    being drawn: it is the other half of guidance.
    """
    tokenizer = pipeline.tokenizer
    guided = sampling.guidance_scale != 1
    prompts = [prompt, Document((null_prompt(tokenizer),))][: 1 + guided]
    pieces = [flatten(document, tokenizer, pipeline.patches_per_image) for document in prompts]
    per_image = pipeline.patches_per_image + 2
    capacity = len(pieces[0].tokens) + sampling.max_new_tokens + sampling.max_images * per_image
    decoder = Decoder(pipeline, len(pieces), capacity)
    first = torch.arange(len(pieces), device=decoder.device) == 0
    both = torch.ones_like(first)
    logits = decoder.read(pieces)[0]
    generators = _generators(sampling.seed, 1)

    segments, text, images = list(prompt.segments), [], 0
    stop = StopReason.TOKEN_LIMIT
    for _ in range(sampling.max_new_tokens):
        logits[tokenizer.eoi] = -torch.inf  # the decoder appends it, the model never writes it
        token_id = int(_pick(logits[None], sampling.temperature, generators))
        if token_id == tokenizer.eos:
            stop = StopReason.END_OF_TEXT
            break
        if token_id != tokenizer.boi:
            text.append(token_id)
            logits = decoder.read_tokens(torch.full_like(decoder.lengths, token_id), active=first)[0]
            continue
        if images == sampling.max_images:
            stop = StopReason.IMAGE_LIMIT
            break
        null_lengths = decoder.lengths[1:].clone()
        decoder.read_tokens(torch.full_like(decoder.lengths, tokenizer.boi), active=both)
        latents = _denoise(decoder, 1, replace(sampling, seed=sampling.seed + images), on_step)
        decoder.read_image(latents.expand(len(pieces), -1, -1, -1), active=first)
        decoder.rewind(torch.cat([decoder.lengths[:1], null_lengths]))
        logits = decoder.read_tokens(torch.full_like(decoder.lengths, tokenizer.eoi), active=first)[0]
        segments += [TextSegment(tuple(text))] if text else []
        segments.append(ImageSegment(latents[0]))
        text, images = [], images + 1
    segments += [TextSegment(tuple(text))] if text else []
    return Generated(Document(tuple(segments)), stop)


def prompt_document(pipeline: Pipeline, prompt: str | None = None, picture: Tensor | None = None) -> Document:
    """BOS [picture] prompt, of which either may be missing; a picture is (1, 3, S, S) in [-1, 1]."""
    tokenizer = pipeline.tokenizer
    words = tokenizer.encode(prompt) if prompt else ()
    if picture is None:
        return Document((TextSegment((tokenizer.bos, *words)),))
    latents = pipeline.codec.encode(picture, torch.Generator().manual_seed(0))[0]
    return Document((TextSegment((tokenizer.bos,)), ImageSegment(latents), TextSegment(words)))


def _denoise(decoder: Decoder, count: int, sampling: Sampling, on_step: OnStep | None) -> Tensor:
    """From noise to clean latents (count, C, H, W) at the end of the decoder's rows.

    Rows from `count` on, if there are any, hold no prompt; then ε = ε_null + w · (ε_prompt - ε_null).
    """
    pipeline = decoder.pipeline
    generators = _generators(sampling.seed, count)
    latents = torch.stack([torch.randn(pipeline.latent_shape, generator=g) for g in generators]).to(decoder.device)
    scheduler = pipeline.noise.sampler(sampling.sampler, sampling.num_inference_steps)
    latents = latents * scheduler.init_noise_sigma
    guided = len(decoder.lengths) > count
    for step, timestep in enumerate(scheduler.timesteps.tolist()):
        prediction = decoder.predict_image(latents.repeat(1 + guided, 1, 1, 1), timestep)
        if guided:
            prompted, null = prediction.chunk(2)
            prediction = null + sampling.guidance_scale * (prompted - null)
        latents = scheduler.step(prediction, timestep, latents, generator=generators).prev_sample
        if on_step is not None:
            on_step(step, latents)
    return latents


def _with_boi(piece: FlatDocument, boi: int) -> FlatDocument:
    return piece._replace(tokens=[*piece.tokens, boi], image_ids=[*piece.image_ids, -1])


def _generators(seed: int, count: int) -> list[torch.Generator]:
    """One for each row, on the CPU, so that a row's numbers depend neither on the others nor on the device."""
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def _pick(logits: Tensor, temperature: float, generators: Sequence[torch.Generator]) -> Tensor:
    """(B, V) logits → (B,) token ids."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits.float() / temperature).softmax(-1).cpu()
    picks = [torch.multinomial(p, 1, generator=g) for p, g in zip(probabilities, generators, strict=True)]
    return torch.cat(picks).to(logits.device)
