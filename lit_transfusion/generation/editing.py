"""Editing: a picture, an instruction, and the picture that comes of them (paper, 4.5)."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from lit_transfusion.data.document import ImageSegment
from lit_transfusion.data.packing import flatten
from lit_transfusion.data.recipe import edit_prompt, null_edit_prompt
from lit_transfusion.generation.decoder import Decoder
from lit_transfusion.generation.pictures import captioned_grid
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.sampler import OnStep, Sampling, _denoise, _with_boi


@torch.inference_mode()
def edit(
    pipeline: Pipeline,
    images: Tensor,
    instructions: Sequence[str],
    sampling: Sampling = Sampling(),
    on_step: OnStep | None = None,
) -> Tensor:
    """Each picture (B, 3, S, S) in [-1, 1] changed as its instruction says; BOI is put after it. (B, 3, S, S).

    The null half of guidance sees the picture and no instruction.
    """
    tokenizer = pipeline.tokenizer
    latents = pipeline.codec.encode(images.to(pipeline.net.head.weight.device), torch.Generator().manual_seed(0))
    given = [ImageSegment(image) for image in latents]
    prompts = [
        edit_prompt(image, tokenizer.encode(instruction), tokenizer)
        for image, instruction in zip(given, instructions, strict=True)
    ]
    if sampling.guidance_scale != 1:
        prompts += [null_edit_prompt(image, tokenizer) for image in given]
    pieces = [_with_boi(flatten(prompt, tokenizer, pipeline.patches_per_image), tokenizer.boi) for prompt in prompts]
    capacity = max(len(piece.tokens) for piece in pieces) + pipeline.patches_per_image
    decoder = Decoder(pipeline, len(pieces), capacity)
    decoder.read(pieces)
    return pipeline.codec.decode(_denoise(decoder, len(given), sampling, on_step))


def edit_grid(inputs: Tensor, instructions: Sequence[str], outputs: Tensor, truths: Tensor) -> Image.Image:
    """Input with its instruction, output, truth, all (N, 3, H, W) in [-1, 1], side by side; three edits in a row."""
    tiles = torch.stack([inputs.cpu(), outputs.cpu(), truths.cpu()], dim=1).flatten(0, 1)  # (3 N, 3, H, W)
    captions = [text for instruction in instructions for text in (instruction, "output", "truth")]
    return captioned_grid(tiles, captions, columns=9)
