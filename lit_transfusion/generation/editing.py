"""Image editing: change a picture as an instruction asks (paper, 4.5)."""

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
    """Change each picture (B, 3, S, S) in [-1, 1] as its instruction says. Returns pictures (B, 3, S, S).

    BOI is placed after each instruction. Guidance strengthens the instruction: the null prompt is the picture without
    an instruction, or with the negative one. `cut` is for instructions from data; see `draw`.
    """
    prompts = [prompt_document(pipeline, text, image, cut) for image, text in zip(images, instructions, strict=True)]
    return draw_after(pipeline, prompts, sampling, on_step, seeds)


def edit_grid(inputs: Tensor, instructions: Sequence[str], outputs: Tensor, truths: Tensor) -> Image.Image:
    """Show input with instruction, output and truth, all (N, 3, H, W) in [-1, 1], side by side; three edits a line."""
    tiles = torch.stack([inputs.cpu(), outputs.cpu(), truths.cpu()], dim=1).flatten(0, 1)  # (3 N, 3, H, W)
    captions = [text for instruction in instructions for text in (instruction, "output", "truth")]
    return captioned_grid(tiles, captions, columns=9)
