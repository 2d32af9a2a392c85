"""Editing: a picture, an instruction, and the picture that comes of them (paper, 4.5)."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from lit_transfusion.generation.denoising import OnStep
from lit_transfusion.generation.engine import draw_after
from lit_transfusion.generation.pictures import captioned_grid
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.prompts import prompt_document
from lit_transfusion.generation.settings import Sampling


def edit(
    pipeline: Pipeline,
    images: Tensor,
    instructions: Sequence[str],
    sampling: Sampling = Sampling(),
    on_step: OnStep | None = None,
    seeds: Sequence[int] | None = None,
    cut: bool = False,
) -> Tensor:
    """Each picture (B, 3, S, S) in [-1, 1] changed as its instruction says; BOI is put after it. (B, 3, S, S).

    Guidance strengthens the instruction: the null half sees the picture and no instruction, or the negative one.
    `cut` is for instructions from data; see `draw`.
    """
    prompts = [prompt_document(pipeline, text, image, cut) for image, text in zip(images, instructions, strict=True)]
    return draw_after(pipeline, prompts, sampling, on_step, seeds)


def edit_grid(inputs: Tensor, instructions: Sequence[str], outputs: Tensor, truths: Tensor) -> Image.Image:
    """Input with its instruction, output, truth, all (N, 3, H, W) in [-1, 1], side by side; three edits in a row."""
    tiles = torch.stack([inputs.cpu(), outputs.cpu(), truths.cpu()], dim=1).flatten(0, 1)  # (3 N, 3, H, W)
    captions = [text for instruction in instructions for text in (instruction, "output", "truth")]
    return captioned_grid(tiles, captions, columns=9)
