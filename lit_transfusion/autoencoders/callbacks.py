"""Callbacks of an autoencoder: pictures beside their reconstructions, and the folder of the codec."""

from itertools import islice
from pathlib import Path
from typing import Any

import lightning
import rich
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from lit_transfusion import run_folder
from lit_transfusion.autoencoders.reconstruction_measures import ReconstructionMeasures
from lit_transfusion.autoencoders.save_folder import save_folder
from lit_transfusion.data.types import Example
from lit_transfusion.generation.pictures import captioned_grid
from lit_transfusion.training.callbacks.show import Show, first_of

BATCHES = 16  # batches that are measured at the end, if the last validation was before the last step
SHOWN = ("psnr", "ssim", "code_usage", "code_perplexity")  # at the end of a run


class ShowReconstructions(Show):
    """Saves held-out pictures beside their reconstructions, in `samples/` of the run directory and in TensorBoard.

    Args:
        every_n_steps: Optimiser steps from one set of pictures to the next; there is one more set at the end.
        num_pictures: Number of pictures in a set.
    """

    def __init__(self, every_n_steps: int = 500, num_pictures: int = 16) -> None:
        super().__init__(every_n_steps)
        self.num_pictures = num_pictures

    def draw(self, trainer: lightning.Trainer, pl_module: Any) -> dict[str, Image.Image]:
        source = trainer.datamodule.source
        held_out = source.split("val")
        tiles, captions = [], []
        for example in first_of(held_out if len(held_out) else source.split("train"), Example, self.num_pictures):
            reconstruction, _ = pl_module.reconstruct(example.image[None].to(pl_module.device))
            tiles += [example.image, reconstruction[0]]
            captions += [example.captions[0], "reconstruction"]
        return {"reconstructions": captioned_grid(tiles, captions)}


class CodecFolder(lightning.Callback):
    """Writes the averaged weights as a folder of `diffusers`, `codec/` of the run directory.

    It is written after each validation and at the end, with the scale of the latents of the validation's pictures. If
    the last step has no validation, the scale is that of some held-out pictures; without these, of some pictures of
    training. `data.codec` of a run loads the folder.
    """

    def __init__(self) -> None:
        self.step = -1  # of the last folder

    @rank_zero_only
    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        folder = Path(trainer.default_root_dir)
        (folder / run_folder.CODEC).mkdir(parents=True, exist_ok=True)  # it marks a run directory

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._write(trainer, pl_module, pl_module.measures)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if self.step != trainer.global_step:
            loader = trainer.datamodule.val_dataloader() or trainer.datamodule.train_dataloader()
            with trainer.precision_plugin.forward_context():
                self._write(trainer, pl_module, pl_module.measure_all(islice(loader, BATCHES)))
        self._say(trainer, pl_module)

    def _write(self, trainer: lightning.Trainer, pl_module: Any, measures: ReconstructionMeasures) -> None:
        self.step = trainer.global_step
        self.measured = measures.values()
        if trainer.is_global_zero and not trainer.fast_dev_run:
            folder = Path(trainer.default_root_dir) / run_folder.CODEC
            save_folder(pl_module.ema, folder, measures.latent_statistics(), self.measured, self.step)

    @rank_zero_only
    def _say(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        folder = Path(trainer.default_root_dir)
        measured = ", ".join(f"{name} {self.measured[name]:.4g}" for name in SHOWN if name in self.measured)
        codec = "VQ" if pl_module.bottleneck.num_codes else "VAE"
        lines = (
            f"\nStep {trainer.global_step} is done: {measured}.",
            f"  codec      {folder / run_folder.CODEC}",
            f"  logs       {folder}",
            "Use it in the config of a run:",
            f"  data: {{codec: {{class_path: {codec}, init_args: {{path: {folder / run_folder.CODEC}}}}}}}",
        )
        for line in lines:
            rich.get_console().print(line, soft_wrap=True, highlight=False, markup=False)
