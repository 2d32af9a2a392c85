"""Callbacks that draw pictures during a run, to show what the model has learned."""

from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import lightning
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from lit_transfusion.data.sources import Source
from lit_transfusion.data.types import EditExample, Example
from lit_transfusion.generation.engine import draw, edit, write
from lit_transfusion.generation.pictures import Frames, captioned_grid, edit_grid, save
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.prompts import check_lengths, prompt_document
from lit_transfusion.generation.settings import Sampling

Kind = TypeVar("Kind")


class Show(lightning.Callback):
    """Base class: saves pictures of the averaged weights in `samples/` of the run directory and in TensorBoard.

    Args:
        every_n_steps: Optimiser steps from one set of pictures to the next; there is one more set at the end.
        sampling: Settings for drawing, or None. It is an error before training if the noise process cannot use
            them.
    """

    def __init__(self, every_n_steps: int, sampling: Sampling | None = None) -> None:
        self.every_n_steps = every_n_steps
        self.sampling = sampling
        self.last_step = -1

    def pictures(self, source: Source, pipeline: Pipeline) -> dict[str, Image.Image]:
        """Return the pictures to show, by name. `source` is the validation split."""
        raise NotImplementedError

    def draw(self, trainer: lightning.Trainer, pl_module: Any) -> dict[str, Image.Image]:
        """Return the pictures to show, by name. Override it if the module has no pipeline."""
        return self.pictures(trainer.datamodule.source.pictures.split("val"), pl_module.pipeline)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.last_step = trainer.global_step  # nothing has been learned since then

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step != self.last_step:
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.global_step != self.last_step:
            self._show(trainer, pl_module)

    def _show(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Draw in the precision of training, on every rank, because a sharded net runs on all of them."""
        self.last_step = trainer.global_step
        with trainer.precision_plugin.forward_context():
            pictures = self.draw(trainer, pl_module)
        self._save(trainer, pictures)

    @rank_zero_only
    def _save(self, trainer: lightning.Trainer, pictures: dict[str, Image.Image]) -> None:
        for name, picture in pictures.items():
            save(picture, Path(trainer.default_root_dir) / "samples" / f"{name}_{trainer.global_step:06d}.png")
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(name, pil_to_tensor(picture), trainer.global_step)


def first_of(source: Source, kind: type[Kind], count: int) -> list[Kind]:
    """Return up to `count` examples of class `kind` from the start of a source, without those that cannot be read."""
    examples = (source[i] for i in range(min(len(source), 4 * count)))
    return list(islice((example for example in examples if isinstance(example, kind)), count))


class ShowSamples(Show):
    """Draws pictures for captions of the validation split, and writes captions for its pictures.

    It uses the averaged weights. Each set has three grids, in `samples/` of the run directory and in TensorBoard: the
    drawn pictures with their captions, the denoising of four of them, and validation pictures with written captions.

    Args:
        every_n_steps: Optimiser steps from one set of pictures to the next; there is one more set at the end.
        num_samples: Number of pictures and of captions in a set.
        prompts: Texts to draw; null uses captions of the validation split. A prompt that does not fit in a row is an
            error before training; captions are cut as in training.
        sampler: One of the noise process (DDPM: ddim, ddpm, dpm++; FlowMatching: euler, heun); null: the first.
        num_inference_steps: Denoising steps.
        guidance_scale: Scale of classifier-free guidance by the prompt; 1 is no guidance.
        max_new_tokens: Maximum length of a written caption.
    """

    def __init__(
        self,
        every_n_steps: int = 500,
        num_samples: int = 16,
        prompts: list[str] | None = None,
        sampler: str | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 3.0,
        max_new_tokens: int = 40,
    ) -> None:
        super().__init__(
            every_n_steps, Sampling(sampler, num_inference_steps, guidance_scale, max_new_tokens=max_new_tokens)
        )
        self.num_samples = num_samples
        self.prompts = prompts

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        super().on_fit_start(trainer, pl_module)
        documents = [prompt_document(pl_module.pipeline, prompt) for prompt in self.prompts or []]
        name = "trainer.callbacks: ShowSamples.prompts: the prompt"
        check_lengths(pl_module.pipeline, documents, self.sampling, True, name)

    def pictures(self, source: Source, pipeline: Pipeline) -> dict[str, Image.Image]:
        held_out = first_of(source, Example, self.num_samples)
        # The captions of each example may be in the same order; a different index for each shows more wordings.
        prompts = self.prompts or [e.captions[i % len(e.captions)] for i, e in enumerate(held_out)]
        if not prompts:
            return {}
        frames = Frames(pipeline.codec, self.sampling.num_inference_steps)
        drawn = draw(
            pipeline,
            prompts,
            self.sampling,
            lambda step, latents: frames.take(step, latents[:4]),
            cut=not self.prompts,
        )
        pictures = {"samples": captioned_grid(drawn, prompts), "denoising": to_pil_image(frames.sheet())}
        if held_out:
            images = [example.image for example in held_out]
            pictures["captions"] = captioned_grid(images, write(pipeline, images, self.sampling))
        return pictures


class ShowEdits(Show):
    """Makes edits of the validation split with the averaged weights, and shows input, output and target.

    The grids are in `samples/` of the run directory and in TensorBoard.

    Args:
        every_n_steps: Optimiser steps from one grid to the next; there is one more grid at the end.
        num_samples: Number of edits in a grid.
        sampler: One of the noise process (DDPM: ddim, ddpm, dpm++; FlowMatching: euler, heun); null: the first.
        num_inference_steps: Denoising steps.
        guidance_scale: Scale of classifier-free guidance by the instruction; 1 is no guidance.
    """

    def __init__(
        self,
        every_n_steps: int = 500,
        num_samples: int = 15,
        sampler: str | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 1.0,
    ) -> None:
        super().__init__(every_n_steps, Sampling(sampler, num_inference_steps, guidance_scale))
        self.num_samples = num_samples

    def pictures(self, source: Source, pipeline: Pipeline) -> dict[str, Image.Image]:
        held_out = first_of(source, EditExample, self.num_samples)
        if not held_out:
            return {}
        inputs = [e.input_image for e in held_out]
        truths = [e.output_image for e in held_out]
        instructions = [e.instructions[i % len(e.instructions)] for i, e in enumerate(held_out)]
        outputs = edit(pipeline, inputs, instructions, self.sampling, cut=True)
        return {"edits": edit_grid(inputs, instructions, outputs, truths)}
