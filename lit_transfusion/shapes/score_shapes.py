"""`score_shapes`: measure how well a checkpoint that was trained on `Shapes` draws and describes held-out shapes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from lit_transfusion.progress import reporting

if TYPE_CHECKING:
    from lit_transfusion.shapes.scorer import ColourShapeScore
    from lit_transfusion.shapes.source import ShapePrompt


def score_shapes(
    ckpt: str,
    num_samples: int = 64,
    sampler: str | None = None,
    num_inference_steps: int = 25,
    guidance_scale: float = 3.0,
    seed: int = 0,
    output: str | None = None,
    device: str | None = None,
) -> None:
    """Draw held-out prompts, describe held-out pictures, and check the results with an exact scorer.

    Each prompt names one object. The prompts use all 24 pairs of colour and shape, with sizes, places and wordings that
    training never combines. A picture is right if it contains exactly one object, with the colour (the shape) of the
    prompt. The last rows of the table are the scores of noise and random training pictures for the same prompts.

    Args:
        ckpt: Checkpoint of a run on the `Shapes` source, or a folder that `export` wrote.
        num_samples: Number of prompts and of pictures, at most 216.
        sampler: One of the noise process (DDPM: ddim, ddpm, dpm++; FlowMatching: euler, heun); null: the first.
        num_inference_steps: Number of denoising steps.
        guidance_scale: Weight of the prompt against the null prompt; 1 is no guidance.
        seed: Seed for noise.
        output: PNG file for the drawn pictures; null writes no file.
        device: cpu, cuda, cuda:1, …; null uses a GPU if there is one.
    """
    # Imports are here, since they take seconds, and --help is quick.
    from torch import Tensor

    from lit_transfusion.generation.engine import draw, generate, write
    from lit_transfusion.generation.open_pipeline import open_pipeline
    from lit_transfusion.generation.pictures import captioned_grid, picture_path, save
    from lit_transfusion.generation.prompts import prompt_document
    from lit_transfusion.generation.settings import Sampling
    from lit_transfusion.shapes.scenes import parse_caption
    from lit_transfusion.shapes.scorer import score_captions, score_pictures
    from lit_transfusion.shapes.source import Shapes, single_object_prompts

    path = None if output is None else picture_path(output)
    prompts = single_object_prompts(num_samples)
    pipeline = open_pipeline(ckpt, device)
    sampling = Sampling(sampler, num_inference_steps, guidance_scale, seed=seed)
    texts = [prompt.text for prompt in prompts]
    with reporting("steps") as on_progress:

        def on_step(step: int, _: Tensor) -> None:
            on_progress("drawing", step + 1, num_inference_steps)

        drawn = draw(pipeline, texts, sampling, on_step, cut=True)
        on_progress("writing", 0, None)
        held_out = Shapes(image_size=pipeline.image_size, scenes=("single",)).split("val")
        examples = [held_out[i] for i in range(num_samples)]
        written = write(pipeline, [example.image for example in examples], sampling)
        documents = [prompt_document(pipeline, text, cut=True) for text in texts]
        chosen = generate(pipeline, documents, Sampling(num_inference_steps=1, guidance_scale=1))
    with_image = sum(len(sample.images) == 1 for sample in chosen)
    pictures = score_pictures(drawn, [(prompt.colour, prompt.shape) for prompt in prompts])
    captions = score_captions(written, [parse_caption(example.captions[0])[0] for example in examples])
    table = Table("", "colour", "shape", "both", title=f"{num_samples} held-out prompts and pictures")
    for name, result in (("drawn pictures", pictures), ("written captions", captions)):
        table.add_row(name, *percent(result))
    table.add_section()
    for name, result in baselines(prompts, pipeline.image_size).items():
        table.add_row(name, *percent(result))
    saved = path and save(captioned_grid(drawn, texts), path)  # before printing
    console = Console()
    console.print(table)
    console.print(f"After {with_image} of {num_samples} prompts the model itself began an image.")
    if saved:
        console.print(str(saved))


def percent(result: "ColourShapeScore") -> list[str]:
    return [f"{100 * share:.0f} %" for share in result]


def baselines(prompts: "Sequence[ShapePrompt]", image_size: int, number: int = 96) -> "dict[str, ColourShapeScore]":
    """The scores of pictures that were not drawn for the prompts; each picture is compared with each prompt."""
    from lit_transfusion.shapes.scorer import baseline_pictures, read_picture, score
    from lit_transfusion.shapes.source import Shapes

    wanted = [[(prompt.colour, prompt.shape)] for prompt in prompts]
    scores = {}
    for name, images in baseline_pictures(Shapes(image_size, scenes=("single",)), number).items():
        found = [[(one.colour, one.shape) for one in read_picture(image)] for image in images]
        scores[name] = score([objects for objects in found for _ in wanted], wanted * number)
    return scores
