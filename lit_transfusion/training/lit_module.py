"""The LightningModule: draws noise, asks the net, adds the two losses."""

import copy
import dataclasses
import math
from typing import Any, Literal, NamedTuple

import lightning
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lit_transfusion.data.document import ExampleBatch, PackedBatch
from lit_transfusion.data.order import mix
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.diffusion import NoiseProcess
from lit_transfusion.errors import InputError
from lit_transfusion.generation.checkpoint import KEY
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.sampler import draw, write
from lit_transfusion.generation.settings import Sampling
from lit_transfusion.latents import Codec
from lit_transfusion.model import SIZES, Patcher, TransformerSize, Transfusion, Visibility
from lit_transfusion.model.block_runner import ActivationCheckpointing, block_runner
from lit_transfusion.training.earlier_weights import check_fits, start_from
from lit_transfusion.training.ema import AverageWeights
from lit_transfusion.training.exact_stops import ExactStops
from lit_transfusion.training.fsdp import shard
from lit_transfusion.training.losses import LossTerms, mean_by_timestep, transfusion_loss
from lit_transfusion.training.optim import decay_groups
from lit_transfusion.training.stop_together import StopTogether

SizeName = Literal["nano", "tiny", "0.16B", "0.37B", "0.76B", "1.4B", "7B"]


class Prediction(NamedTuple):
    drawn: Tensor  # (N, 3, S, S) in [-1, 1], what the captions say
    written: list[str]  # what the pictures show


class LitTransfusion(lightning.LightningModule):
    """Transfusion and how it is trained.

    Args:
        tokenizer: Of the text (set by the data module).
        codec: Of the images (set by the data module).
        image_size: Side of the pictures in pixels (set by the data module).
        patcher: Linear or U-Net, or a class of your own.
        mask: Who sees whom: Bidirectional (the paper), Causal, or a class of your own.
        noise: The noise process.
        optimizer: Given the parameters; weight decay is applied to matrices only.
        scheduler: Given the optimiser; stepped after each optimiser step.
        size: Of the Transformer: a name (0.16B to 7B are the paper's Table 2) or the widths themselves.
        image_loss_weight: λ in L = L_LM + λ · L_DDPM (paper, Equation 4).
        ema_decay: Of the moving average of the weights that validation and sampling use; null for none.
        attention: Attention backend: auto, eager, dense, split or flex.
        compile: Compile the Transformer's blocks: on a GPU much faster, on a CPU some percent, after half a minute.
        activation_checkpointing: What the backward pass computes again in place of keeping it: none, selective (all but
            matrix products and attention), or full (each block). Less memory, more time.
        seed: Of noise and timesteps; on the command line that of --seed_everything unless it is set.
        init_from: Checkpoint whose (averaged) weights to start from, or a model that was exported; step, optimiser and
            data begin anew. To go on with a run as it was, use --ckpt_path instead.
        sequence_length: Positions of a row (set by the data module); a checkpoint tells it to whoever generates.
        sampling: How `predict` draws and writes.
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
        size: SizeName | TransformerSize = "nano",
        image_loss_weight: float = 5.0,
        ema_decay: float | None = 0.999,
        attention: Literal["auto", "eager", "dense", "split", "flex"] = "auto",
        compile: bool = False,
        activation_checkpointing: ActivationCheckpointing = "none",
        seed: int = 0,
        init_from: str | None = None,
        sequence_length: int | None = None,
        sampling: Sampling = Sampling(),
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self._codec = [codec]  # in a list, so that its frozen weights are no part of checkpoints
        self.image_size = image_size
        self.sequence_length = sequence_length
        self.sampling = sampling
        self.noise = noise
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.image_loss_weight = image_loss_weight
        self.ema_decay = ema_decay
        self.seed = seed
        size = SIZES[size] if isinstance(size, str) else size
        self.net = Transfusion(tokenizer.vocab_size, size, patcher, mask, attention=attention)
        if init_from is not None:
            start_from(init_from, self.net, tokenizer)
        self.ema = None if ema_decay is None else copy.deepcopy(self.net).requires_grad_(False).eval()
        self.net.transformer.run_block = block_runner(compile, activation_checkpointing)
        # FSDP2's hooks, which are not to be compiled, are then inside of what must be compiled as a whole.
        self.compiles_nothing_sharded = compile and activation_checkpointing == "selective"

        if getattr(noise, "clip_sample", False) and codec.downscale > 1:
            raise InputError(
                "model.noise.clip_sample is for pixels: it would cut off latents at 1; "
                "set model.noise.init_args.clip_sample to false"
            )
        self.pipeline.describe()  # a part that cannot be put into a checkpoint should fail now, not there

    def configure_model(self) -> None:
        """Under FSDP2, share out the weights and their averages. (Called again when a fit is followed by a test.)"""
        nets = [net for net in (self.net, self.ema) if net is not None]
        if self.device_mesh is not None and not isinstance(self.net, FSDPModule):
            if self.compiles_nothing_sharded:
                raise InputError(
                    "model.compile with model.activation_checkpointing selective compiles nothing under fsdp2: set the "
                    "latter to full or none, or model.compile to false"
                )
            for net in nets:
                shard(net, self.device_mesh["data_parallel"], bf16=self.trainer.precision == "bf16-mixed")

    @property
    def codec(self) -> Codec:
        return self._codec[0].to(self.device)

    @property
    def pipeline(self) -> Pipeline:
        """What generation needs, with the averaged weights if there are any."""
        net = self.ema or self.net
        return Pipeline(net, self.noise, self.codec, self.tokenizer, self.image_size, self.sequence_length)

    def losses(self, net: Transfusion, batch: PackedBatch, generator: torch.Generator) -> tuple[LossTerms, Tensor]:
        """Noise each image as its own timestep says, and compare the net's predictions where something is learned.

        Also returns the timesteps of the images that are learned.
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
        terms = transfusion_loss(output.logits, labels, prediction, target, self.image_loss_weight)
        return terms, timesteps.index_select(0, batch.learned_images)

    def latents_of(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """What a batch holds, pixels (N, 3, S, S) or what the codec has kept of them (N, K, h, w) → (N, C, H, W)."""
        if images.shape[1:] == (3, self.image_size, self.image_size):  # `prepare` keeps nothing that has this shape
            return self.codec.encode(images, generator)
        return self.codec.sample(images.to(torch.promote_types(images.dtype, torch.float32)), generator)

    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        # Randomness is a function of the step, so that a run that was stopped goes on exactly as if it had not been.
        micro_batch = batch_idx % self.trainer.accumulate_grad_batches
        seed = mix(self.seed, self.global_step, micro_batch, self.global_rank)
        terms, timesteps = self.losses(self.net, batch, torch.Generator(self.device).manual_seed(seed))
        self._log("train", terms, batch)
        is_last = micro_batch == self.trainer.accumulate_grad_batches - 1
        if is_last and (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # as Lightning writes them down
            losses = self._by_timestep("train", terms, timesteps)
            for logger in self.loggers:  # not self.log, which would repeat old values of the buckets not drawn now
                logger.log_metrics({name: loss.item() for name, (loss, _) in losses.items()}, self.global_step)
        return terms.total

    def validation_step(self, batch: PackedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(stage_of("val", self.trainer.val_dataloaders, dataloader_idx), batch, batch_idx)

    def test_step(self, batch: PackedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(stage_of("test", self.trainer.test_dataloaders, dataloader_idx), batch, batch_idx)

    def predict_step(self, batch: ExampleBatch, batch_idx: int) -> Prediction:
        pipeline = self.pipeline
        # Each batch has noise of its own, lest all draw the same pictures in the same places.
        sampling = dataclasses.replace(self.sampling, seed=self.sampling.seed + 1000 * batch_idx)
        return Prediction(draw(pipeline, batch.captions, sampling), write(pipeline, batch.images, sampling))

    def _evaluate(self, stage: str, batch: PackedBatch, batch_idx: int) -> None:
        """The same noise and timesteps each time and on each rank, so that curves are comparable from step to step."""
        generator = torch.Generator(self.device).manual_seed(mix(self.seed, batch_idx))
        terms, timesteps = self.losses(self.ema or self.net, batch, generator)
        self._log(stage, terms, batch)
        for name, (loss, count) in self._by_timestep(stage, terms, timesteps).items():
            self.log(name, loss, batch_size=count, add_dataloader_idx=False)

    def on_validation_epoch_end(self) -> None:
        self._log_perplexity("val")

    def on_test_epoch_end(self) -> None:
        self._log_perplexity("test")

    def _log(self, stage: str, terms: LossTerms, batch: PackedBatch) -> None:
        num_targets, num_images = len(batch.target_positions), len(terms.per_image)
        on_epoch = stage != "train"
        shown = {"prog_bar": True, "add_dataloader_idx": False}  # the names tell the loaders of a mix apart
        self.log(f"{stage}/loss", terms.total, batch_size=len(batch.tokens), **shown)
        if num_targets:
            self.log(f"{stage}/loss_text", terms.text, batch_size=num_targets, **shown)
            if not on_epoch:
                self.log("train/perplexity", terms.text.exp())
        if num_images:
            self.log(f"{stage}/loss_image", terms.image, batch_size=num_images, **shown)

    def _log_perplexity(self, stage: str) -> None:
        for name, loss in self.trainer.callback_metrics.items():  # none if no text is learned: all captions are dropped
            if name.startswith(f"{stage}/") and name.endswith("/loss_text"):
                self.log(name.replace("/loss_text", "/perplexity"), loss.exp())

    def _by_timestep(self, stage: str, terms: LossTerms, timesteps: Tensor) -> dict[str, tuple[Tensor, int]]:
        means = mean_by_timestep(terms.per_image, timesteps, self.noise.num_train_timesteps)
        return {f"{stage}/loss_image_by_timestep/{bucket}": mean for bucket, mean in means.items()}

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.optimizer(decay_groups(self.net))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None, gradient_clip_algorithm: str | None
    ) -> None:
        """Clip by norm and log it. Lightning's own refuses fused AdamW under bf16-mixed, and returns no norm."""
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), gradient_clip_val or math.inf)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.log("train/grad_norm", norm)

    def configure_callbacks(self) -> list[lightning.Callback]:
        # Of the trainer's callbacks these come after the config's, but before those that write checkpoints.
        return [*([] if self.ema is None else [AverageWeights()]), ExactStops(), StopTogether()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = self.pipeline.describe()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_fits(checkpoint, self.state_dict(), self.tokenizer)


def stage_of(stage: str, loaders: Any, number: int) -> str:
    """val, or where each source of a mix has a loader of its own, val/text."""
    name = getattr(loaders[number] if isinstance(loaders, list) else loaders, "name", "")
    return f"{stage}/{name}" if name else stage
