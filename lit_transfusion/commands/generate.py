"""`generate`: draw pictures and write text with a checkpoint."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_transfusion.commands.prompt_file import Request, read_prompt_file
from lit_transfusion.errors import InputError, check_at_least
from lit_transfusion.generation.settings import Sampling
from lit_transfusion.progress import reporting

if TYPE_CHECKING:
    from torch import Tensor

    from lit_transfusion.generation.pipeline import Pipeline


def generate(
    ckpt: str,
    prompt: list[str] | None = None,
    prompts: str | None = None,
    image: str | None = None,
    edit: str | None = None,
    instruction: str | None = None,
    interleave: bool = False,
    num_images: int = 1,
    output: str = "out.png",
    contact_sheet: bool = False,
    batch_size: int = 16,
    ema: bool = True,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    compile: bool = False,
    **sampling: Any,
) -> None:
    """Draw a prompt, describe a picture, edit a picture, or let the model choose text and pictures.

    --prompt TEXT draws TEXT. --image FILE writes a caption. --edit FILE --instruction TEXT changes FILE as TEXT says.
    --interleave continues the prompt, the picture or nothing, and draws wherever the model begins an image.

    Args:
        ckpt: Checkpoint of a run, such as runs/quickstart/checkpoints/last.ckpt (no other file of the run is needed);
            or a folder that `export` wrote, or its name on the Hugging Face hub.
        prompt: Text to draw or to continue. May be given several times.
        prompts: File of prompts, one on each line, or .jsonl with {"prompt": ..., "seed": ...} on each line.
        image: Picture to describe or to continue.
        edit: Picture to change.
        instruction: How to change it.
        interleave: Let the model choose between writing and drawing.
        num_images: Number of samples for each prompt (or picture), with consecutive seeds.
        output: PNG file for a grid of the pictures with their captions; or a directory for the grid, each picture, and
            samples.json with prompt, seed, text and stop reason of each sample.
        contact_sheet: Also save a picture of the denoising, one row for each sample.
        batch_size: Number of samples to process together.
        ema: Use the averaged weights, if the checkpoint has them.
        device: cpu, cuda, cuda:1, …; null uses a GPU if there is one.
        dtype: Type of the net's weights and arithmetic; bfloat16, on GPUs, needs half the memory, and is faster and
            less exact.
        compile: Compile the net's blocks and replay its steps as CUDA graphs. Compilation takes time first, so it is
            for many samples on a GPU; it is not faster on a CPU.
        sampling: How to sample; see Sampling.
    """
    # Imports are here, since they take seconds, and --help is quick.
    from torchvision.transforms.functional import to_pil_image

    from lit_transfusion.commands.output import Gallery, exhibit
    from lit_transfusion.generation import engine as sampler
    from lit_transfusion.generation.engine import Images
    from lit_transfusion.generation.open_pipeline import open_pipeline
    from lit_transfusion.generation.pictures import Frames
    from lit_transfusion.generation.prompts import check_lengths, prompt_document

    settings = Sampling(**sampling)
    check_task(prompt, prompts, image, edit, instruction, interleave, contact_sheet)
    check_at_least("num_images", num_images)
    check_at_least("batch_size", batch_size)
    gallery = Gallery(output)
    requests = read_prompt_file(prompts) if prompts else [Request(text) for text in prompt or (instruction,)]

    pipeline = open_pipeline(ckpt, device, ema, compile, dtype)
    file = edit or image
    given = None if file is None else open_picture(file, pipeline)
    documents = [prompt_document(pipeline, request.prompt, given) for request in requests]
    limited = settings
    if interleave:
        images = Images.CHOSEN
    elif image is not None:
        images = Images.NEVER
    else:
        images, limited = Images.FORCED, settings.one_image()
    name = f"prompts {prompts}: the prompt" if prompts else "--instruction" if edit else "--prompt"
    check_lengths(pipeline, documents, settings, images is Images.FORCED, name)  # check all before the first is drawn

    orders = number_samples(requests, num_images, settings.seed)
    exhibits, frames = [], Frames(pipeline.codec, settings.num_inference_steps)
    gallery.open()
    doing = "writing" if images is Images.NEVER else "drawing"
    with reporting() as on_progress:
        on_progress(doing, 0, len(orders))
        for start in range(0, len(orders), batch_size):
            batch = orders[start : start + batch_size]

            def on_step(step: int, latents: "Tensor", start: int = start, count: int = len(batch)) -> None:
                on_progress(doing, start + count * (step + 1) / settings.num_inference_steps, len(orders))
                if contact_sheet:
                    frames.take(step, latents)

            samples = sampler.generate(
                pipeline,
                [documents[number] for number, _ in batch],
                limited,
                on_step,
                images,
                seeds=[seed for _, seed in batch],
            )
            for (number, seed), sample in zip(batch, samples, strict=True):
                exhibits.append(exhibit(pipeline, sample, requests[number].prompt, seed))
            on_progress(doing, start + len(batch), len(orders))

    paths = gallery.save_samples(exhibits, given, {"ckpt": ckpt, "image": file, "settings": asdict(settings)})
    if frames.columns:
        paths.append(gallery.save_picture(to_pil_image(frames.sheet()), "denoising"))
    for shown in exhibits:  # printed last, so that the files are written even if printing fails
        if images is not Images.FORCED:
            print(shown.whole_text)
        if images is Images.CHOSEN:
            print(f"(stopped by: {shown.stop_reason}{'' if shown.pictures else '; the model began no image'})")
    for path in paths:
        print(path)


def check_task(
    prompt: list[str] | None,
    prompts: str | None,
    image: str | None,
    edit: str | None,
    instruction: str | None,
    interleave: bool,
    contact_sheet: bool,
) -> None:
    """Check that the options can be combined, so that none is silently ignored."""
    if (edit is None) != (instruction is None):
        raise InputError("--edit and --instruction need each other: use --edit FILE --instruction TEXT")
    if prompt and prompts:
        raise InputError("--prompt and --prompts cannot be combined: use only one of them")
    given = {"--prompt": prompt or prompts, "--image": image, "--edit": edit, "--interleave": interleave}
    asked = [name for name, value in given.items() if value]
    if not asked:
        raise InputError(
            "nothing to do: use --prompt TEXT to draw, --image FILE to describe, --edit FILE --instruction TEXT to "
            "change a picture, or --interleave to let the model choose"
        )
    if edit is not None and len(asked) > 1:
        other = next(name for name in asked if name != "--edit")
        raise InputError(f"--edit and {other} cannot be combined: use only one of them")
    if contact_sheet and asked == ["--image"]:
        raise InputError("--contact_sheet needs pictures, but --image alone draws none: remove it, or add --interleave")
    if asked == ["--prompt", "--image"]:
        raise InputError("--prompt draws and --image describes: use only one of them, or add --interleave")


def number_samples(requests: list[Request], count: int, seed: int) -> list[tuple[int, int]]:
    """The index of the request and the seed of each sample."""
    firsts = [seed + i * count if request.seed is None else request.seed for i, request in enumerate(requests)]
    return [(number, first + i) for number, first in enumerate(firsts) for i in range(count)]


def open_picture(path: str, pipeline: "Pipeline") -> "Tensor":
    """Read a picture as (3, height, width) in [-1, 1], cropped and resized as in training."""
    from lit_transfusion.data.images import read_image

    if not Path(path).is_file():
        raise InputError(f"picture {path} not found; check the path")
    try:
        return read_image(path, pipeline.image_size, pipeline.multiple_of)
    except ValueError as error:
        raise InputError(f"picture {path}: {error}") from None
