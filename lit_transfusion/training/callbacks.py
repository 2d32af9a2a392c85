"""What is shown of a run while it goes on, and where it leaves things."""

import json
import logging
import os
import resource
import shlex
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import lightning
import rich
import torch
from lightning.pytorch.callbacks import BasePredictionWriter, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from lit_transfusion.data.document import EditExample, Example, PackedBatch
from lit_transfusion.data.loader import PackedLoader
from lit_transfusion.data.sources import Source
from lit_transfusion.generation.editing import edit, edit_grid
from lit_transfusion.generation.pictures import Frames, captioned_grid, save
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.sampler import Sampling, draw, write
from lit_transfusion.model.flops import Flops, peak_bf16
from lit_transfusion.training.ema import AverageWeights

log = logging.getLogger(__name__)
Kind = TypeVar("Kind")


class RunProgress(RichProgressBar):
    """Lightning's, for a run that is one long epoch: the two losses and the pace, and no epoch number.

    Args:
        refresh_rate: Batches between two refreshments; at each one, a GPU is waited for.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate)

    def get_metrics(self, trainer: lightning.Trainer, pl_module: Any) -> dict[str, Any]:
        short = {"train/loss_text": "text", "train/loss_image": "image", "throughput/images_per_second": "images/s"}
        metrics = super().get_metrics(trainer, pl_module)
        return {short[name]: value for name, value in metrics.items() if name in short}

    @property
    def total_train_batches(self) -> int | float:
        """Lightning's own counts the steps that are left, which accumulated or continued runs overtake."""
        return self.trainer.num_training_batches

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"


class LimitThreads(lightning.Callback):
    """Keeps torch to a number of CPU threads in each process: a small net gains nothing from more, and loses much when
    another process takes one of their cores.

    Args:
        threads: Of each process.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    def setup(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        torch.set_num_threads(self.threads)


class Throughput(lightning.Callback):
    """Logs what training does per second on this device, over the steps since it was last written down.

    Tokens and patches without padding, images, milliseconds that a step waits for its data, the most memory so far, and
    the operations per second that could not be avoided (`model/flops.py`); under bf16 on a GPU whose peak is known,
    also their share of it (MFU). Validation, drawing samples and writing checkpoints are not counted as time.
    Also the share of the rows that is filled (`data/fill`) and, of a mix of sources, the share that each has had in the
    positions since the start of this process, or since the weights changed (`data/share_NAME`).
    """

    def __init__(self) -> None:
        self.flops: Flops | None = None
        self._restart()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.flops = Flops.count(pl_module.net, pl_module.pipeline.latent_shape)
        self.waited = getattr(trainer.train_dataloader, "seconds", 0.0)
        self._restart()

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: PackedBatch, *_: Any) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: PackedBatch, batch_idx: int
    ) -> None:
        lo, hi = pl_module.net.mask.intervals(batch.document_ids, batch.image_ids)
        self.steps += 1
        self.tokens += batch.lengths.sum()
        self.positions += batch.tokens.numel()
        self.images += len(batch.images)
        self.operations += self.flops.of_batch(lo, hi, batch.lengths, len(batch.target_positions), len(batch.images))
        last = (batch_idx + 1) % (trainer.log_every_n_steps * trainer.accumulate_grad_batches) == 0
        if last:
            self.operations = float(self.operations)  # on a GPU, waits until all steps are done
        self.seconds += time.perf_counter() - self.began
        if last:
            self._log(trainer, pl_module)
            self._restart()

    def _log(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        waited = getattr(trainer.train_dataloader, "seconds", 0.0) - self.waited
        self.waited += waited
        seconds = self.seconds + waited
        per_second = self.operations / seconds
        gpu = pl_module.device.type == "cuda"
        peak = peak_bf16(torch.cuda.get_device_name(pl_module.device)) if gpu else None
        values = {
            "tokens_per_second": float(self.tokens) / seconds,
            "images_per_second": self.images / seconds,
            "data_wait_ms": 1e3 * waited / self.steps,
            "gflops_per_second": per_second / 1e9,
            "peak_memory_gb": (torch.cuda.max_memory_allocated(pl_module.device) if gpu else peak_rss()) / 1e9,
        }
        if peak and trainer.precision == "bf16-mixed":
            values["mfu"] = per_second / peak
        for name, value in values.items():
            pl_module.log(f"throughput/{name}", value, prog_bar=name == "images_per_second")
        pl_module.log("data/fill", float(self.tokens) / self.positions)
        if isinstance(trainer.train_dataloader, PackedLoader):
            for name, share in trainer.train_dataloader.shares().items():
                pl_module.log(f"data/share_{name}", share)

    def _restart(self) -> None:
        self.seconds = self.steps = self.tokens = self.positions = self.images = self.operations = 0


def peak_rss() -> int:
    """Bytes of memory that this process has held at most. (macOS counts bytes, Linux kilobytes.)"""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Show(lightning.Callback):
    """Shows what the averaged weights can do, in `samples/` of the run and in TensorBoard.

    Args:
        every_n_steps: Optimiser steps between two showings; there is one more at the end.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self.last_step = -1

    def pictures(self, source: Source, pipeline: Pipeline) -> dict[str, Image.Image]:
        """What to show, by name. `source` holds what training does not see."""
        raise NotImplementedError

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.last_step = trainer.global_step  # nothing has been learned since then

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step != self.last_step:
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.global_step != self.last_step:
            self._show(trainer, pl_module)

    def _show(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """On every rank, since a sharded net needs them all; rank 0 writes."""
        self.last_step = trainer.global_step
        self._keep(trainer, self.pictures(trainer.datamodule.source.pictures.split("val"), pl_module.pipeline))

    @rank_zero_only
    def _keep(self, trainer: lightning.Trainer, pictures: dict[str, Image.Image]) -> None:
        for name, picture in pictures.items():
            save(picture, Path(trainer.default_root_dir) / "samples" / f"{name}_{trainer.global_step:06d}.png")
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(name, pil_to_tensor(picture), trainer.global_step)


def first_of(source: Source, kind: type[Kind], count: int) -> list[Kind]:
    """The first examples of a source that can be read, if they are of this kind."""
    examples = (source[i] for i in range(min(len(source), 4 * count)))
    return list(islice((example for example in examples if isinstance(example, kind)), count))


class ShowSamples(Show):
    """Draws pictures for held-out captions, and writes captions for held-out pictures, with the averaged weights.

    Each time there are three pictures, in `samples/` of the run and in TensorBoard: the drawn pictures beside their
    captions, how four of them came out of noise, and the held-out pictures with the captions that the model writes.

    Args:
        every_n_steps: Optimiser steps between two showings; there is one more at the end.
        num_samples: Pictures and captions each time.
        prompts: What to draw; null takes captions of the held-out split.
        sampler: ddpm, ddim or dpm++.
        num_inference_steps: Denoising steps.
        guidance_scale: Weight of the prompt against no prompt; 1 is none.
        max_new_tokens: Length of a written caption at most.
    """

    def __init__(
        self,
        every_n_steps: int = 500,
        num_samples: int = 16,
        prompts: list[str] | None = None,
        sampler: str = "ddim",
        num_inference_steps: int = 25,
        guidance_scale: float = 3.0,
        max_new_tokens: int = 40,
    ) -> None:
        super().__init__(every_n_steps)
        self.num_samples = num_samples
        self.prompts = prompts
        self.sampling = Sampling(
            sampler, num_inference_steps, guidance_scale, temperature=0.0, max_new_tokens=max_new_tokens
        )

    def pictures(self, source: Source, pipeline: Pipeline) -> dict[str, Image.Image]:
        held_out = first_of(source, Example, self.num_samples)
        # Each example tells its captions in the same order; taking another one each time shows more wordings.
        prompts = self.prompts or [e.captions[i % len(e.captions)] for i, e in enumerate(held_out)]
        if not prompts:
            return {}
        frames = Frames(pipeline.codec, self.sampling.num_inference_steps)
        drawn = draw(pipeline, prompts, self.sampling, lambda step, latents: frames.take(step, latents[:4]))
        pictures = {"samples": captioned_grid(drawn, prompts), "denoising": to_pil_image(frames.sheet())}
        if held_out:
            images = torch.stack([example.image for example in held_out])
            pictures["captions"] = captioned_grid(images, write(pipeline, images, self.sampling))
        return pictures


class ShowEdits(Show):
    """Does held-out edits with the averaged weights: input, output and truth, in `samples/` and in TensorBoard.

    Args:
        every_n_steps: Optimiser steps between two showings; there is one more at the end.
        num_samples: Edits each time.
        sampler: ddpm, ddim or dpm++.
        num_inference_steps: Denoising steps.
        guidance_scale: Weight of the instruction against none; 1 is none.
    """

    def __init__(
        self,
        every_n_steps: int = 500,
        num_samples: int = 15,
        sampler: str = "ddim",
        num_inference_steps: int = 25,
        guidance_scale: float = 1.0,
    ) -> None:
        super().__init__(every_n_steps)
        self.num_samples = num_samples
        self.sampling = Sampling(sampler, num_inference_steps, guidance_scale)

    def pictures(self, source: Source, pipeline: Pipeline) -> dict[str, Image.Image]:
        held_out = first_of(source, EditExample, self.num_samples)
        if not held_out:
            return {}
        inputs = torch.stack([e.input_image for e in held_out])
        truths = torch.stack([e.output_image for e in held_out])
        instructions = [e.instructions[i % len(e.instructions)] for i, e in enumerate(held_out)]
        outputs = edit(pipeline, inputs, instructions, self.sampling)
        return {"edits": edit_grid(inputs, instructions, outputs, truths)}


class WritePredictions(BasePredictionWriter):
    """Writes what `predict` makes to `predictions/` of the run: a grid of drawings, and one of written captions."""

    def __init__(self) -> None:
        super().__init__("batch")

    @rank_zero_only  # all ranks predict the same
    def write_on_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, prediction: Any, indices: Any, batch: Any, batch_idx: int, *_
    ) -> None:
        folder = Path(trainer.default_root_dir) / "predictions"
        save(captioned_grid(prediction.drawn, batch.captions), folder / f"drawn_{batch_idx:04d}.png")
        save(captioned_grid(batch.images, prediction.written), folder / f"written_{batch_idx:04d}.png")

    @rank_zero_only
    def on_predict_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        log.info("drawn and written: %s", Path(trainer.default_root_dir) / "predictions")


class RunDirectory(lightning.Callback):
    """Keeps the tokenizer with the run, writes finished.json when all its steps are done, and says at the end where
    everything is and what to do next."""

    @rank_zero_only
    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.model").write_bytes(pl_module.tokenizer.model)
        (folder / "finished.json").unlink(missing_ok=True)  # of an earlier start, with fewer steps
        self.began = time.monotonic()
        net = pl_module.net
        millions = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in net.named_children()}
        parts = ", ".join(f"{name} {count:.2f}M" for name, count in millions.items())
        log.info("%.2fM parameters: %s", sum(millions.values()), parts)
        log.info("the run is kept in %s", folder)

    def on_load_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """What is saved need not be saved again before the next step: an error until then, such as of data that have
        changed, would put a place at their beginning into the checkpoint."""
        for keeper in trainer.checkpoint_callbacks:
            if isinstance(keeper, ModelCheckpoint):
                keeper._last_global_step_saved = checkpoint["global_step"]

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        """Write down what was logged before a checkpoint: a run that is killed goes on from there, and would not log it
        again. (Of the last step before it, Lightning logs after the checkpoint.)"""
        keeper = trainer.checkpoint_callback
        if isinstance(keeper, ModelCheckpoint) and keeper._last_global_step_saved == trainer.global_step:
            for logger in trainer.loggers:
                logger.save()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        """Keep the last step: where it is no multiple of the interval, last.ckpt would stay at an earlier one. (A
        checkpoint that is judged by what it monitors waits for the validation.)"""
        keeper = trainer.checkpoint_callback
        last = trainer.global_step == trainer.max_steps
        if last and isinstance(keeper, ModelCheckpoint) and keeper.monitor is None:
            for callback in trainer.callbacks:
                if isinstance(callback, AverageWeights):  # whose turn is after this one's, and before a checkpoint's
                    callback.on_train_batch_end(trainer, pl_module)
            candidates = keeper._monitor_candidates(trainer)
            keeper._save_topk_checkpoint(trainer, candidates)
            keeper._save_last_checkpoint(trainer, candidates)

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """A batch that Ctrl-C interrupts is learned after the run is continued. Checkpoints are written after this."""
        for logger in trainer.loggers:
            logger.save()  # what it has not written yet
        batches = trainer.fit_loop.epoch_loop.batch_progress.current
        if batches.ready > batches.processed and isinstance(trainer.train_dataloader, PackedLoader):
            trainer.train_dataloader.give_back()

    @rank_zero_only
    def on_fit_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        folder = Path(trainer.default_root_dir)
        done = {"step": trainer.global_step, "seconds": round(time.monotonic() - self.began, 1)}
        (folder / "finished.json").write_text(json.dumps(done) + "\n", encoding="utf-8")
        last = trainer.checkpoint_callback.last_model_path if trainer.checkpoint_callback else ""
        checkpoint = os.path.relpath(last) if last else ""
        grids = sorted((folder / "samples").glob("samples_*.png"))
        source = trainer.datamodule.source.pictures.split("train")
        text = shlex.quote(" ".join(source.captions()[0].split()[:20]))
        options = "--prompt {} --interleave", "--prompt {}", "--edit PICTURE --instruction {}"
        task = options[source.images_per_example].format(text)

        def say(text: str) -> None:
            rich.get_console().print(text, soft_wrap=True, highlight=False, markup=False)

        rows = {
            "checkpoint": checkpoint,
            "logs": folder,
            "pictures": grids[-1] if grids else None,
        }
        say(f"\nStep {trainer.global_step} is done.")
        for name, value in rows.items():
            if value:
                say(f"  {name:<11}{value}")
        if checkpoint:
            say("Next:")
            say(f"  tensorboard --logdir {folder}")
            say(f"  python -m lit_transfusion generate --ckpt {checkpoint} {task} --output out.png")
