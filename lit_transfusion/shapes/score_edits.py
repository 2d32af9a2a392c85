"""`score_edits`: measure how well a checkpoint that was fine-tuned on `ShapeEdits` does held-out edits."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from lit_transfusion.progress import reporting

if TYPE_CHECKING:
    from lit_transfusion.shapes.scorer import EditScore


def score_edits(
    ckpt: str,
    num_samples: int = 200,
    sampler: str | None = None,
    num_inference_steps: int = 25,
    guidance_scale: float = 1.0,
    seed: int = 0,
    output: str | None = None,
    device: str | None = None,
) -> None:
    """Do held-out edits of pictures with two objects, and check the results with an exact scorer.

    An edit is right if the result has exactly the expected objects, each with the right colour, shape and place. The
    other object is unchanged if it is found where it was, even if the rest is wrong. The last rows of the table are
    results without a model, such as for the unchanged input.

    Args:
        ckpt: Checkpoint of a run on the `ShapeEdits` source.
        num_samples: Number of edits, in equal shares of recolour, reshape, move, add and remove.
        sampler: One of the noise process (DDPM: ddim, ddpm, dpm++; FlowMatching: euler, heun); null: the first.
        num_inference_steps: Number of denoising steps.
        guidance_scale: Weight of the instruction against no instruction; 1 is no guidance.
        seed: Seed for noise.
        output: PNG file for the first 24 edits, as input, output and truth; null writes no file.
        device: cpu, cuda, cuda:1, …; null uses a GPU if there is one.
    """
    # Imports are here, since they take seconds, and --help is quick.
    import torch
    from torch import Tensor

    from lit_transfusion.generation.engine import edit
    from lit_transfusion.generation.open_pipeline import open_pipeline
    from lit_transfusion.generation.pictures import edit_grid, picture_path, save
    from lit_transfusion.generation.settings import Sampling
    from lit_transfusion.shapes.edits import ShapeEdits
    from lit_transfusion.shapes.scorer import noise_pictures, score_edited

    path = None if output is None else picture_path(output)
    pipeline = open_pipeline(ckpt, device)
    held_out = ShapeEdits(pipeline.image_size, num_val_examples=num_samples).split("val")
    edits = [held_out.edit(i) for i in range(num_samples)]
    examples = [held_out[i] for i in range(num_samples)]
    inputs = torch.stack([example.input_image for example in examples])  # (N, 3, S, S)
    truths = torch.stack([example.output_image for example in examples])
    # The five kinds alternate, and each lists its wordings in a fixed order: use the wordings in turn.
    asked = [one.instructions[i // 5 % len(one.instructions)] for i, one in enumerate(edits)]
    sampling = Sampling(sampler, num_inference_steps, guidance_scale, seed=seed)
    with reporting("steps") as on_progress:

        def on_step(step: int, _: Tensor) -> None:
            on_progress("editing", step + 1, num_inference_steps)

        edited = edit(pipeline, inputs, asked, sampling, on_step, cut=True)
    scores = score_edited(edited, edits)
    table = Table("", "edits", "right", "other object unchanged", title=f"{num_samples} held-out edits")
    for kind in dict.fromkeys(one.kind for one in edits):
        of_kind = [score for score, one in zip(scores, edits, strict=True) if one.kind == kind]
        table.add_row(kind, *summary(of_kind))
    table.add_section()
    table.add_row("all", *summary(scores))
    table.add_section()
    table.add_row("the unchanged input", *summary(score_edited(inputs, edits)))
    table.add_row("noise", *summary(score_edited(noise_pictures(num_samples, pipeline.image_size), edits)))
    of_others = truths.roll(5, 0)  # the five kinds alternate, so that each is of the same kind
    table.add_row("the result of another edit", *summary(score_edited(of_others, edits)))
    saved = path and save(edit_grid(inputs[:24], asked[:24], edited[:24], truths[:24]), path)  # before printing
    console = Console()
    console.print(table)
    if saved:
        console.print(str(saved))


def summary(scores: "list[EditScore]") -> tuple[str, str, str]:
    """The number of edits, and the shares that are right and that keep the other object."""
    right, unchanged = (100 * sum(column) / len(scores) for column in zip(*scores, strict=True))
    return str(len(scores)), f"{right:.0f} %", f"{unchanged:.0f} %"
