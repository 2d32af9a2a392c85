"""Decoding: language-model mode writes text until BOI, diffusion mode draws the image (paper, 3.4).

    drawn = draw(pipeline, ["a red circle"])            # a picture (3, height, width) for each prompt
    edited = edit(pipeline, pictures, ["make it blue"])  # each picture, changed as its instruction says
    captions = write(pipeline, pictures)                # a text for each picture
    generated = generate(pipeline, prompt_documents)    # text and images, as the model chooses

The samples of a batch alternate between two modes. First all samples in text mode write until each has reached BOI or
its end; then all samples at BOI draw their image (those of one size together), and so on. A forward pass therefore
contains either one token or one image for each of its rows, no row is padded for another, and denoising, which is most
of the work, is done for as many rows together as possible. No row sees another, so the order of the work does not
change the results.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from lit_transfusion.data.grammar import null_prompt
from lit_transfusion.data.packing import FlatDocument, flatten
from lit_transfusion.data.types import TEXT, Document, ImageSegment
from lit_transfusion.errors import InputError
from lit_transfusion.generation.code_writing import write_codes
from lit_transfusion.generation.decoder import Decoder
from lit_transfusion.generation.denoising import OnStep, denoise
from lit_transfusion.generation.next_token import pick
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.prompts import check_lengths, image_length, prompt_document, shape_to_draw
from lit_transfusion.generation.sample_state import Generated, SampleState
from lit_transfusion.generation.settings import Sampling

Rest = ParamSpec("Rest")
Result = TypeVar("Result")
OfPipeline = Callable[Concatenate[Pipeline, Rest], Result]


class Images(Enum):
    """Where images begin."""

    CHOSEN = "where the model writes BOI"
    FORCED = "directly after the prompt, and then where the model writes BOI"
    NEVER = "nowhere: BOI is never written"


def draw(
    pipeline: Pipeline,
    prompts: Sequence[str],
    sampling: Sampling = Sampling(),
    on_step: OnStep | None = None,
    seeds: Sequence[int] | None = None,
    cut: bool = False,
) -> list[Tensor]:
    """Draw one picture for each prompt, with BOI placed directly after it: each (3, height, width) in [-1, 1].

    A prompt that is longer than a row of training allows is an error. With `cut`, for captions from data, it is cut.
    """
    documents = [prompt_document(pipeline, prompt, cut=cut) for prompt in prompts]
    return draw_after(pipeline, documents, sampling, on_step, seeds)


def edit(
    pipeline: Pipeline,
    images: Sequence[Tensor],
    instructions: Sequence[str],
    sampling: Sampling = Sampling(),
    on_step: OnStep | None = None,
    seeds: Sequence[int] | None = None,
    cut: bool = False,
) -> list[Tensor]:
    """Change each picture (3, height, width) in [-1, 1] as its instruction says.

    A result has the size of its picture, unless `sampling.size` is set.

    BOI is placed after each instruction. Guidance strengthens the instruction: the null prompt is the picture without
    an instruction, or with the negative one. `cut` is for instructions from data; see `draw`.
    """
    prompts = [prompt_document(pipeline, text, image, cut) for image, text in zip(images, instructions, strict=True)]
    return draw_after(pipeline, prompts, sampling, on_step, seeds)


def draw_after(
    pipeline: Pipeline,
    documents: Sequence[Document],
    sampling: Sampling,
    on_step: OnStep | None,
    seeds: Sequence[int] | None,
) -> list[Tensor]:
    """Draw one picture after each document, and nothing else: (3, height, width) in [-1, 1]. See `generate`."""
    generated = generate(pipeline, documents, sampling.one_image(), on_step, Images.FORCED, seeds)
    return pipeline.decode_images([image for sample in generated for image in sample.images])


def write(
    pipeline: Pipeline, images: Sequence[Tensor], sampling: Sampling = Sampling(), seeds: Sequence[int] | None = None
) -> list[str]:
    """Write one caption for each picture (3, height, width) in [-1, 1]: text until EOS, without another image."""
    documents = [prompt_document(pipeline, picture=image) for image in images]
    generated = generate(pipeline, documents, sampling, images=Images.NEVER, seeds=seeds)
    return [pipeline.tokenizer.decode(sample.token_ids) for sample in generated]


def without_gradients(function: OfPipeline[Rest, Result]) -> OfPipeline[Rest, Result]:
    """Run a function in inference mode, which is faster for each token on a CPU; but use `no_grad` under FSDP2.

    FSDP2 keeps the buffers into which it gathers weights, and uses them in later training steps, which inference
    tensors would break.
    """

    @functools.wraps(function)
    def run(pipeline: Pipeline, *args: Rest.args, **kwargs: Rest.kwargs) -> Result:
        from torch.distributed.fsdp import FSDPModule  # imported here, since it takes a second

        with torch.no_grad() if isinstance(pipeline.net, FSDPModule) else torch.inference_mode():
            return function(pipeline, *args, **kwargs)

    return run


@without_gradients
def generate(
    pipeline: Pipeline,
    prompts: Sequence[Document],
    sampling: Sampling = Sampling(),
    on_step: OnStep | None = None,
    images: Images = Images.CHOSEN,
    seeds: Sequence[int] | None = None,
) -> list[Generated]:
    """Continue each prompt until its text ends or a limit is reached.

    The null prompt of guidance is the same however an image begins; see `data/grammar.py`.

    Args:
        pipeline: The net and its parts.
        prompts: Text and images in any order. Images are latents, also in the result.
        sampling: How to sample.
        on_step: Called after each denoising step with the latents of the samples that currently draw.
        images: Where images begin.
        seeds: One seed for each prompt; None uses sampling.seed + i.
    """
    if not prompts:
        return []
    if images is Images.FORCED and sampling.max_images == 0:
        raise InputError("max_images 0 is invalid here, since each sample begins with an image; use at least 1")
    tokenizer, null_prompts = pipeline.tokenizer, []
    negative = tokenizer.encode(sampling.negative_prompt or "")
    if images is Images.NEVER:
        sampling = replace(sampling, max_images=0)
    else:
        pipeline.noise.check_sampler(sampling.sampler, sampling.num_inference_steps)
        if sampling.guided:
            null_prompts = [null_prompt(tokenizer, prompt.images, negative) for prompt in prompts]

    at_boi = images is Images.FORCED
    seeds = range(sampling.seed, sampling.seed + len(prompts)) if seeds is None else seeds
    shapes = [shape_to_draw(pipeline, prompt, sampling) for prompt in prompts]
    lengths = [image_length(pipeline, shape) for shape in shapes]
    rooms = check_lengths(pipeline, prompts, sampling, at_boi)
    if null_prompts:  # they grow by the same images
        rooms = list(map(min, rooms, check_lengths(pipeline, null_prompts, sampling, at_boi, "negative_prompt")))
    samples = [
        SampleState(prompt, torch.Generator().manual_seed(seed), tokenizer, sampling, at_boi, shape, length, room)
        for prompt, seed, shape, length, room in zip(prompts, seeds, shapes, lengths, rooms, strict=True)
    ]
    room = sampling.max_new_tokens + sampling.max_images * max(lengths)
    decoder = read_prompts(pipeline, prompts, at_boi, room)
    # Placed by this code, never by the model; where one token is BOS and EOS, the model writes it as EOS.
    never = [token for token in (tokenizer.bos, tokenizer.eoi) if token != tokenizer.eos]
    if images is Images.NEVER:
        never.append(tokenizer.boi)
    rows = samples  # the samples in the rows of the decoder
    while active := [row for row, sample in enumerate(rows) if sample.stop_reason is None]:
        if len(active) <= len(rows) // 2:  # drop the rows that have ended, which would be computed without use
            decoder = decoder.branch(active, None, room)
            rows = [rows[row] for row in active]
        if writing := [row for row, sample in enumerate(rows) if sample.writes]:
            write_token(decoder, rows, writing, never, sampling)
        else:
            at_boi_now = [row for row, sample in enumerate(rows) if sample.at_boi]
            shape = rows[at_boi_now[0]].latent_shape
            drawing = [row for row in at_boi_now if rows[row].latent_shape == shape]
            draw_image(decoder, rows, drawing, sampling, on_step)
    return [sample.finished() for sample in samples]


def write_token(
    decoder: Decoder, samples: Sequence[SampleState], writing: Sequence[int], never: Sequence[int], sampling: Sampling
) -> None:
    """LM mode: write one token in each row of `writing`. The last token of a sample is not read."""
    logits = decoder.logits[writing, : decoder.pipeline.first_code]
    logits[:, never] = -torch.inf
    token_ids: list[int | None] = [None] * len(samples)
    for row, token_id in zip(writing, pick(logits, [samples[row].generator for row in writing], sampling), strict=True):
        samples[row].add_token(token_id)
        if samples[row].stop_reason is None:
            token_ids[row] = token_id
    if any(token_id is not None for token_id in token_ids):
        decoder.read_tokens(token_ids)


def draw_image(
    decoder: Decoder,
    samples: Sequence[SampleState],
    drawing: Sequence[int],
    sampling: Sampling,
    on_step: OnStep | None,
) -> None:
    """Diffusion mode: draw one image and EOI in each row of `drawing`, all of one size.

    Later positions see the clean image. If images are tokens, they are written code by code instead.
    """
    pipeline, null = decoder.pipeline, None
    if sampling.guided:
        negative = pipeline.tokenizer.encode(sampling.negative_prompt or "")
        null_prompts = [null_prompt(pipeline.tokenizer, samples[row].images_so_far, negative) for row in drawing]
        null = read_prompts(pipeline, null_prompts, with_boi=True)
    shape = samples[drawing[0]].latent_shape
    num_patches = image_length(pipeline, shape) - 2
    branch = decoder.branch(drawing, null, room=num_patches + 1)
    draw_latents = write_codes if pipeline.images_are_tokens else denoise
    latents = draw_latents(branch, shape, [samples[row].generator for row in drawing], sampling, on_step)
    for row, image in zip(drawing, latents, strict=True):
        samples[row].add_image(image)
    if all(samples[row].stop_reason for row in drawing):
        return
    tail = FlatDocument([pipeline.tokenizer.eoi], [], [TEXT], [])
    if pipeline.images_are_tokens:  # they have been read
        branch.read([tail for _ in drawing])
    else:
        tokens = [*[pipeline.tokenizer.pad] * num_patches, *tail.tokens]
        image_ids = [*[0] * num_patches, TEXT]
        branch.read([FlatDocument(tokens, [], image_ids, [ImageSegment(image)]) for image in latents])
    decoder.merge(drawing, branch)


def read_prompts(pipeline: Pipeline, prompts: Sequence[Document], with_boi: bool, room: int = 0) -> Decoder:
    """Make a decoder that has read the prompts, each with BOI if `with_boi`, and has room for `room` more positions."""
    pieces = [flatten(prompt, pipeline.tokenizer, pipeline.patches) for prompt in prompts]
    if with_boi:
        boi = pipeline.tokenizer.boi
        pieces = [p._replace(tokens=[*p.tokens, boi], image_ids=[*p.image_ids, TEXT]) for p in pieces]
    decoder = Decoder(pipeline, len(pieces), max(len(piece.tokens) for piece in pieces) + room)
    decoder.read(pieces)
    return decoder
