"""`generate`: from a checkpoint to pictures and text."""

from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from rich.progress import Progress
from torch import Tensor

from lit_transfusion.data.document import Document, ImageSegment
from lit_transfusion.data.images import read_image
from lit_transfusion.errors import InputError
from lit_transfusion.generation.pictures import captioned_grid, save
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.sampler import Sampling, draw, interleave, prompt_document, write


def generate(
    ckpt: str,
    prompt: str | None = None,
    image: str | None = None,
    output: str = "out.png",
    num_images: int = 1,
    interleaved: bool = False,
    sampler: Literal["ddpm", "ddim", "dpm++"] = "ddim",
    num_inference_steps: int = 50,
    guidance_scale: float = 3.0,
    temperature: float = 0.0,
    max_new_tokens: int = 64,
    seed: int = 0,
    ema: bool = True,
    device: str | None = None,
) -> None:
    """Draw what a prompt says, say what a picture shows, or let the model decide what comes next.

    --prompt TEXT draws TEXT. --image FILE writes a caption. --interleaved goes on from the prompt, the picture or
    nothing, and draws wherever the model itself begins an image.

    Args:
        ckpt: Checkpoint of a run, such as runs/quickstart/checkpoints/last.ckpt. Nothing else of the run is needed.
        prompt: What to draw, or what to go on from.
        image: Picture to describe, or to go on from.
        output: PNG file for what is drawn, its captions beside it.
        num_images: Pictures of the prompt, with seeds seed, seed + 1, …; with --interleaved, pictures at most.
        interleaved: Let the model choose between writing and drawing.
        sampler: ddpm (the paper's), ddim or dpm++.
        num_inference_steps: Denoising steps (paper: 250 with ddpm).
        guidance_scale: Weight of the prompt against no prompt; 1 is none.
        temperature: Of text; 0 takes the likeliest token each time.
        max_new_tokens: Length of the text at most.
        seed: Of noise and text: the same seed draws the same picture.
        ema: Use the averaged weights, if the checkpoint has them.
        device: cpu, cuda, cuda:1, …; null takes a GPU if there is one.
    """
    if prompt is None and image is None and not interleaved:
        raise InputError("nothing to do: give --prompt TEXT to draw, --image FILE to describe, or --interleaved true")
    if prompt is not None and image is not None and not interleaved:
        raise InputError("--prompt draws and --image describes: give one of them, or add --interleaved true")
    if num_images < 1:
        raise InputError(f"num_images {num_images} is less than 1")
    if Path(output).suffix.lower() not in Image.registered_extensions():
        raise InputError(f"--output {output} does not end in the name of a picture format, such as .png")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    sampling = Sampling(sampler, num_inference_steps, guidance_scale, temperature, max_new_tokens, num_images, seed)
    pipeline = Pipeline.from_checkpoint(ckpt, device, ema)
    picture = None if image is None else open_picture(image, pipeline.image_size)[None].to(device)
    with Progress(transient=True) as progress:
        task = progress.add_task("drawing", total=num_inference_steps)

        def on_step(step: int, latents: Tensor) -> None:
            progress.update(task, completed=step + 1)

        if interleaved:
            start = prompt_document(pipeline, prompt, picture)
            document, stop_reason = interleave(pipeline, start, sampling, on_step)
            text, drawn = read_out(pipeline, document, len(start.images))
            captions = [text.replace("[image]", "").strip()] * len(drawn)
        elif picture is not None:
            text, drawn = write(pipeline, picture, sampling)[0], []
        else:
            text, drawn = "", list(draw(pipeline, [prompt] * num_images, sampling, on_step))
            captions = [prompt] * num_images
    if text or interleaved:
        print(text)
    if interleaved:
        print(f"(stopped by: {stop_reason.value})")
    if drawn:
        print(save(captioned_grid(torch.stack(drawn), captions), Path(output)))


def open_picture(path: str, image_size: int) -> Tensor:
    """(3, image_size, image_size) in [-1, 1], cropped and resized as in training."""
    if not Path(path).is_file():
        raise InputError(f"picture {path} not found")
    try:
        return read_image(path, image_size)
    except ValueError as error:
        raise InputError(f"picture {path}: {error}") from None


def read_out(pipeline: Pipeline, document: Document, num_given: int) -> tuple[str, list[Tensor]]:
    """The document's text with [image] where an image stands, and the pictures after the first `num_given`."""
    words = [
        "[image]" if isinstance(segment, ImageSegment) else pipeline.tokenizer.decode(segment.token_ids)
        for segment in document.segments
    ]
    latents = [segment.latents for segment in document.images[num_given:]]
    drawn = list(pipeline.codec.decode(torch.stack(latents))) if latents else []
    return " ".join(word for word in words if word), drawn
