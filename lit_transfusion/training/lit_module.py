"""The LightningModule, which draws noise, runs the net and adds the two losses."""

import copy
import dataclasses
import logging
import math
from typing import Any, Literal, NamedTuple

import lightning
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lit_transfusion.data.permutation import mix
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.data.types import ExampleBatch, PackedBatch
from lit_transfusion.diffusion import NoiseProcess
from lit_transfusion.errors import InputError
from lit_transfusion.generation.checkpoint import KEY
from lit_transfusion.generation.engine import draw, write
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.settings import Sampling
from lit_transfusion.latents import Codec
from lit_transfusion.model import SIZES, Patcher, TransformerConfig, Transfusion, Visibility
from lit_transfusion.model.block_runner import ActivationCheckpointing, block_runner
from lit_transfusion.training.checkpoint_compat import check_fits, start_from
from lit_transfusion.training.ema import update_average
from lit_transfusion.training.exact_resume import ExactStops
from lit_transfusion.training.fsdp import shard
from lit_transfusion.training.graceful_stop import StopTogether
from lit_transfusion.training.losses import (
    LossTerms,
    StepLosses,
    sums_by_timestep,
    timestep_buckets,
    transfusion_loss,
)
from lit_transfusion.training.nonfinite import NonFiniteError, report
from lit_transfusion.training.optim import decay_groups
from lit_transfusion.training.resumed_settings import ResumedSettings

log = logging.getLogger(__name__)

SizeName = Literal["nano", "tiny", "0.16B", "0.37B", "0.76B", "1.4B", "7B"]


class Prediction(NamedTuple):
    """The result of a predict step."""

    drawn: Tensor  # (N, 3, S, S) in [-1, 1], drawn from the captions
    written: list[str]  # captions of the pictures


class LitTransfusion(lightning.LightningModule):
    """Training, validation and prediction of a Transfusion net.

    Args:
        tokenizer: Tokenizer of the text (set by the data module).
        codec: Codec of the images (set by the data module).
        image_size: Side of the pictures in pixels (set by the data module).
        patcher: LinearPatcher, UNetPatcher, or your own class.
        mask: Which positions attend to which: Bidirectional (the paper), Causal, or your own class.
        noise: The noise process.
        optimizer: Called with the parameter groups; weight decay is applied to matrices only.
        scheduler: Called with the optimiser; stepped after each optimiser step.
        size: Size of the Transformer: a name (0.16B to 7B are the paper's Table 2), its widths, or a name and, later in
            YAML or on the command line, the widths that differ from it (--model.size.n_layers 6).
        image_loss_weight: λ in L = L_LM + λ · L_DDPM (paper, Equation 4).
        ema_decay: Decay of the moving average of the weights, which validation and sampling use; null for no average.
        attention: Attention backend: auto, eager, dense, split or flex.
        rope_theta: Base of the rotary position embedding; larger for longer documents.
        compile: Compile the Transformer's blocks. It takes half a minute; then a GPU is much faster and a CPU some
            percent.
        activation_checkpointing: What the backward pass recomputes to save memory: none, selective (all except matrix
            products and attention), or full (each block). It takes more time.
        seed: Seed of noise and timesteps; on the command line that of --seed_everything unless it is set.
        init_from: Checkpoint or exported model whose (averaged) weights are the initial ones; step, optimiser and data
            start from the beginning. To resume a run, use --ckpt_path instead.
        sequence_length: Positions of a row (set by the data module); checkpoints contain it, for generation.
        sampling: Settings of `predict`.
        skip_nonfinite: Number of steps in a run that may be skipped because a loss or the norm of the gradient is not
            finite; the next one ends the run.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        codec: Codec,
        image_size: int,
        patcher: Patcher,
        mask: Visibility,
        noise: NoiseProcess,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable,
        size: SizeName | TransformerConfig = "nano",
        image_loss_weight: float = 5.0,
        ema_decay: float | None = 0.999,
        attention: Literal["auto", "eager", "dense", "split", "flex"] = "auto",
        rope_theta: float = 10_000.0,
        compile: bool = False,
        activation_checkpointing: ActivationCheckpointing = "none",
        seed: int = 0,
        init_from: str | None = None,
        sequence_length: int | None = None,
        sampling: Sampling = Sampling(),
        skip_nonfinite: int = 0,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self._codec = [codec]  # in a list, so that checkpoints do not contain its frozen weights
        self.image_size = image_size
        self.sequence_length = sequence_length
        self.sampling = sampling
        self.noise = noise
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.image_loss_weight = image_loss_weight
        self.ema_decay = ema_decay
        self.seed = seed
        self.skip_nonfinite = skip_nonfinite
        self.skipped_steps = 0
        size = SIZES[size] if isinstance(size, str) else size
        self.net = Transfusion(tokenizer.vocab_size, size, patcher, mask, rope_theta, attention)
        if init_from is not None:
            start_from(init_from, self.net, tokenizer)
        self.ema = None if ema_decay is None else copy.deepcopy(self.net).requires_grad_(False).eval()
        self.net.transformer.run_block = block_runner(compile, activation_checkpointing)
        # The hooks of FSDP2 cannot be compiled, but would be inside a function that must be compiled as a whole.
        self.cannot_be_sharded = compile and activation_checkpointing == "selective"

        if getattr(noise, "clip_sample", False) and codec.downscale > 1:
            raise InputError(
                "model.noise.clip_sample true is for pixels only: it would clip latents to [-1, 1]; "
                "set model.noise.init_args.clip_sample to false"
            )
        self.pipeline.describe()  # a part that a checkpoint cannot contain should fail now, not at the first checkpoint

    def configure_model(self) -> None:
        """With FSDP2, shard the weights and their average. (Lightning calls this again if a test follows a fit.)"""
        nets = [net for net in (self.net, self.ema) if net is not None]
        if self.device_mesh is not None and not isinstance(self.net, FSDPModule):
            if self.cannot_be_sharded:
                raise InputError(
                    "model.compile true with model.activation_checkpointing selective compiles nothing with fsdp2; set "
                    "model.activation_checkpointing to full or none, or model.compile to false"
                )
            for net in nets:
                shard(net, self.device_mesh["data_parallel"], bf16=self.trainer.precision == "bf16-mixed")

    @property
    def codec(self) -> Codec:
        return self._codec[0].to(self.device)

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline for generation, with the averaged weights if there are any."""
        net = self.ema or self.net
        return Pipeline(net, self.noise, self.codec, self.tokenizer, self.image_size, self.sequence_length)

    def losses(
        self, net: Transfusion, batch: PackedBatch, generator: torch.Generator, counts: Tensor | None = None
    ) -> tuple[LossTerms, Tensor]:
        """Compute the losses of a batch, and the timesteps (M,) of its learned images.

        Args:
            net: The net or its average.
            batch: A batch on the net's device.
            generator: Generator of noise and timesteps.
            counts: (2,) numbers that divide the sums; see `transfusion_loss`.
        """
        compared, timesteps = self.predictions(net, batch, generator)
        return transfusion_loss(*compared, self.image_loss_weight, counts), timesteps

    def predictions(
        self, net: Transfusion, batch: PackedBatch, generator: torch.Generator
    ) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """Add noise to each image at its own timestep, and run the net.

        Returns:
            Logits (T, V), their targets (T,), predictions for the learned images (M, C, H, W) and their targets; and
            the timesteps (M,) of these images.
        """
        images = self.latents_of(batch.images, generator)  # (N, C, H, W)
        timesteps = self.noise.draw_timesteps(batch.max_timesteps, generator)  # (N,)
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        output = net(
            batch.tokens,
            batch.positions,
            batch.document_ids,
            batch.image_ids,
            self.noise.add_noise(images, noise, timesteps),
            timesteps,
            logit_positions=batch.target_positions,
        )
        labels = batch.labels.flatten().index_select(0, batch.target_positions)  # (T,)
        prediction = output.image_prediction.index_select(0, batch.learned_images)  # (M, C, H, W)
        target = self.noise.target(images, noise, timesteps).index_select(0, batch.learned_images)
        return (output.logits, labels, prediction, target), timesteps.index_select(0, batch.learned_images)

    def latents_of(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Map the images of a batch, pixels (N, 3, S, S) or moments (N, K, h, w) of the codec, to (N, C, H, W)."""
        # Moments that `prepare` saves never have the shape of pixels.
        if images.shape[1:] == (3, self.image_size, self.image_size):
            return self.codec.encode(images, generator)
        return self.codec.sample(images.to(torch.promote_types(images.dtype, torch.float32)), generator)

    def on_train_start(self) -> None:
        check_steps(self.trainer)

    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        """Return the contribution of a micro-batch to the objective of its optimiser step.

        The objective is the mean over the text targets plus λ times the mean over the learned images, of all
        micro-batches of the step on all ranks.
        """
        number = batch_idx % self.trainer.accumulate_grad_batches
        if number == 0:
            self.step = StepLosses(self._sum_over_ranks(batch.step_counts.clone()), self.noise.num_train_timesteps)
        terms, timesteps = self.losses(self.net, batch, self.generator(number), self.step.counts)
        self.step.add(batch, terms, timesteps)
        if number == self.trainer.accumulate_grad_batches - 1:
            self._sum_over_ranks(self.step.sums)
        # Lightning will divide by the number of micro-batches, and DDP and FSDP2 by the number of ranks.
        return terms.total * (self.trainer.accumulate_grad_batches * self.trainer.world_size)

    def generator(self, number: int) -> torch.Generator:
        """Return the generator of noise and timesteps of a micro-batch.

        Its seed depends on step, micro-batch and rank only, so that a resumed run draws the same.
        """
        seed = mix(self.seed, self.global_step, number, self.global_rank)
        return torch.Generator(self.device).manual_seed(seed)

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(values)
        return values

    def validation_step(self, batch: PackedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(stage_of("val", self.trainer.val_dataloaders, dataloader_idx), batch, batch_idx)

    def test_step(self, batch: PackedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(stage_of("test", self.trainer.test_dataloaders, dataloader_idx), batch, batch_idx)

    def predict_step(self, batch: ExampleBatch, batch_idx: int) -> Prediction:
        pipeline = self.pipeline
        # Each batch has its own seed, so that not all batches draw the same pictures.
        sampling = dataclasses.replace(self.sampling, seed=self.sampling.seed + 1000 * batch_idx)
        drawn = draw(pipeline, batch.captions, sampling, cut=True)
        return Prediction(drawn, write(pipeline, batch.images, sampling))

    def _evaluate(self, stage: str, batch: PackedBatch, batch_idx: int) -> None:
        """Log the losses of a batch. Noise and timesteps are the same in each validation and on each rank."""
        generator = torch.Generator(self.device).manual_seed(mix(self.seed, batch_idx))
        terms, timesteps = self.losses(self.ema or self.net, batch, generator)
        # Means over all batches, weighted by the number of targets or images. The names contain the loaders of a mix.
        if num_targets := len(batch.target_positions):
            self.log(f"{stage}/loss_text", terms.text, batch_size=num_targets, prog_bar=True, add_dataloader_idx=False)
        if num_images := len(terms.per_image):
            self.log(f"{stage}/loss_image", terms.image, batch_size=num_images, prog_bar=True, add_dataloader_idx=False)
        errors, counts = sums_by_timestep(terms.per_image, timesteps, self.noise.num_train_timesteps).tolist()
        for bucket, error, count in zip(timestep_buckets(self.noise.num_train_timesteps), errors, counts, strict=True):
            if count:
                name = f"{stage}/loss_image_by_timestep/{bucket}"
                self.log(name, error / count, batch_size=int(count), add_dataloader_idx=False)

    def on_validation_epoch_end(self) -> None:
        self._log_totals("val")

    def on_test_epoch_end(self) -> None:
        self._log_totals("test")

    def _log_totals(self, stage: str) -> None:
        """Log the objective and the perplexity, computed from the means over all batches."""
        means = {name: loss for name, loss in self.trainer.callback_metrics.items() if name.startswith(f"{stage}/")}
        totals: dict[str, Tensor] = {}
        for name, mean in means.items():
            loader, _, loss = name.rpartition("/")
            if loss == "loss_text":  # missing if no text is learned, because all captions are dropped
                self.log(f"{loader}/perplexity", mean.exp())
            if loss in ("loss_text", "loss_image"):
                weight = self.image_loss_weight if loss == "loss_image" else 1.0
                totals[loader] = totals.get(loader, 0.0) + weight * mean
        for loader, total in totals.items():
            self.log(f"{loader}/loss", total, prog_bar=True)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.optimizer(decay_groups(self.net))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None, gradient_clip_algorithm: str | None
    ) -> None:
        """Clip by norm, log the step, and stop or skip it if it is not finite.

        (Lightning's clipping does not work with fused AdamW under bf16-mixed, and returns no norm.)
        """
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), gradient_clip_val or math.inf)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        values = self.step.values(self.image_loss_weight, norm)
        if not all(map(math.isfinite, values.values())):
            self._skip_step(values)
            optimizer.zero_grad(set_to_none=True)  # a parameter without a gradient does not change
        for name in ("loss", "loss_text", "loss_image", "grad_norm"):
            if name in values:
                self.log(f"train/{name}", values[name], prog_bar=name != "grad_norm", logger=False)
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:
            # self.log would repeat old values in a step that lacks a modality or a bucket of timesteps.
            for logger in self.loggers:
                logger.log_metrics({f"train/{name}": value for name, value in values.items()}, self.global_step)

    def _skip_step(self, values: dict[str, float]) -> None:
        """Count a step that is not finite, and raise an error if it may not be skipped."""
        self.skipped_steps += 1
        message = report(self, values)
        if self.skipped_steps > self.skip_nonfinite:
            raise NonFiniteError(message)
        if self.global_rank == 0:
            log.warning("%s This step is skipped, %d of %d.", message, self.skipped_steps, self.skip_nonfinite)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Update the average together with the weights, so that checkpoints and samples have both of the same step."""
        super().optimizer_step(*arguments, **options)
        if self.ema is not None:
            update_average(self.ema, self.net, self.ema_decay, self.global_step + 1)

    def configure_callbacks(self) -> list[lightning.Callback]:
        # The trainer runs these after the callbacks of the config, but before those that write checkpoints.
        return [ExactStops(), ResumedSettings(), StopTogether()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = self.pipeline.describe()
        checkpoint["skipped_steps"] = self.skipped_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_fits(checkpoint, self.state_dict(), self.tokenizer)
        self.skipped_steps = checkpoint.get("skipped_steps", 0)


def check_steps(trainer: lightning.Trainer) -> None:
    """Check that all optimiser steps have the same number of batches, and that gradients are clipped by norm.

    Raises:
        InputError: A setting of the trainer contradicts this.
    """
    number = trainer.accumulate_grad_batches
    batches = trainer.num_training_batches
    if math.isfinite(batches) and batches % number:
        raise InputError(
            f"trainer.limit_train_batches {batches} is not a multiple of trainer.accumulate_grad_batches {number}, so "
            f"the last optimiser step would have fewer batches; use {batches // number * number or number}"
        )
    for callback in trainer.callbacks:
        if isinstance(callback, GradientAccumulationScheduler) and set(callback.scheduling.values()) != {number}:
            raise InputError(
                f"trainer.callbacks: GradientAccumulationScheduler with {callback.scheduling} is not supported: "
                "a run is one epoch; set trainer.accumulate_grad_batches, which may change when the run is resumed"
            )
    if trainer.gradient_clip_algorithm not in (None, "norm"):
        raise InputError("trainer.gradient_clip_algorithm value is not supported; use norm")


def stage_of(stage: str, loaders: Any, number: int) -> str:
    """Return the prefix of metric names: "val", or "val/text" if each source of a mix has its own loader."""
    name = getattr(loaders[number] if isinstance(loaders, list) else loaders, "name", "")
    return f"{stage}/{name}" if name else stage
