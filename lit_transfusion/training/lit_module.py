"""The LightningModule, which draws noise, runs the net and adds the two losses."""

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

from lit_transfusion.data.permutation import hash_of
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.data.types import ExampleBatch, PackedBatch
from lit_transfusion.diffusion import NoiseProcess
from lit_transfusion.generation.checkpoint import KEY
from lit_transfusion.generation.engine import draw, write
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.settings import Sampling
from lit_transfusion.latents import Codec
from lit_transfusion.model import SIZES, Patcher, TransformerConfig, Transfusion, Visibility
from lit_transfusion.model.block_runner import ActivationCheckpointing, block_runner
from lit_transfusion.training.auxiliary import AuxiliaryLoss
from lit_transfusion.training.checkpoint_compat import check_fits, start_from
from lit_transfusion.training.ema import update_average
from lit_transfusion.training.evaluation_logs import log_losses, log_totals, stage_of
from lit_transfusion.training.exact_resume import ExactResume
from lit_transfusion.training.fsdp import shard_nets
from lit_transfusion.training.graceful_stop import GracefulStop
from lit_transfusion.training.losses import LossTerms, LossWeights, transfusion_loss
from lit_transfusion.training.nonfinite import skip_or_stop
from lit_transfusion.training.objective import check_parts, compare
from lit_transfusion.training.optim import decay_groups, scale_rates
from lit_transfusion.training.resumed_settings import ResumedSettings
from lit_transfusion.training.step_losses import StepLosses, log_step
from lit_transfusion.training.text_rate import check_text_rate, freeze_text, keep_rows, text_parameters
from lit_transfusion.training.trainer_settings import check_steps
from lit_transfusion.training.width_transfer import transfer_width

SizeName = Literal["nano", "tiny", "0.16B", "0.37B", "0.76B", "1.4B", "7B"]


class Prediction(NamedTuple):
    """The result of a predict step."""

    drawn: list[Tensor]  # each (3, height, width) in [-1, 1], drawn from the captions
    written: list[str]  # captions of the pictures


class LitTransfusion(lightning.LightningModule):
    """Training, validation and prediction of a Transfusion net.

    Args:
        tokenizer: Tokenizer of the text (set by the data module).
        codec: Codec of the images (set by the data module).
        image_size: Side of the square pictures in pixels (set by the data module).
        keep_ratio: Whether pictures keep their aspect ratio (set by the data module).
        patcher: LinearPatcher, UNetPatcher, or your own class; NoPatcher if images are tokens.
        mask: Which positions attend to which: Bidirectional (the paper), Causal, or your own class.
        noise: The noise process: DDPM, FlowMatching, or your own class; NextToken if images are tokens.
        optimizer: Called with the parameter groups; weight decay is applied to matrices only.
        scheduler: Called with the optimiser; stepped after each optimiser step.
        size: The Transformer: the name of a size (0.16B to 7B are the paper's Table 2), all its fields, or a name and,
            later in YAML or on the command line, the fields that differ from it (--model.size.n_layers 6).
        image_loss_weight: λ in L = L_LM + λ · L_DDPM (paper, Equation 4). Null, only with NextToken, is one
            cross-entropy over all tokens.
        z_loss_weight: Weight of the mean square of log Σ exp(logits), which keeps logits small; 1e-5 in Chameleon.
        ema_decay: Decay of the moving average of the weights, which validation and sampling use; null for no average.
        attention: Attention backend: auto, eager, dense, split or flex.
        compile: Compile the Transformer's blocks. It takes half a minute; then a GPU is much faster and a CPU some
            percent.
        activation_checkpointing: What the backward pass recomputes to save memory: none, selective (all except matrix
            products and attention), or full (each block). It takes more time.
        seed: Seed of noise and timesteps; on the command line that of --seed_everything unless it is set.
        init_from: Checkpoint or exported model whose (averaged) weights are the initial ones, or a language model: a
            folder of transformers with Llama's architecture, or owner/name on the Hugging Face hub. Step, optimiser and
            data start from the beginning. To resume a run, use --ckpt_path instead.
        sequence_length: Positions of a row (set by the data module); checkpoints contain it, for generation.
        sampling: Settings of `predict`.
        skip_nonfinite: Number of steps in a run that may be skipped because a loss or the norm of the gradient is not
            finite; the next one ends the run.
        auxiliary: A loss of the hidden states of patches, such as REPA; null for none, as in the paper.
        base_dim: The `dim` of the net for which the learning rate was tuned: the same rate is then right for this one
            (μP). Null for one rate for all weights, as in the paper.
        text_rate: Factor of the learning rate of the weights that text passes, after `init_from`. 0 freezes them, with
            modality_weights: all; only the rows of new tokens, such as the image markers, are then learned.
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
        image_loss_weight: float | None = 5.0,
        z_loss_weight: float = 0.0,
        ema_decay: float | None = 0.999,
        attention: Literal["auto", "eager", "dense", "split", "flex"] = "auto",
        compile: bool = False,
        activation_checkpointing: ActivationCheckpointing = "none",
        seed: int = 0,
        init_from: str | None = None,
        sequence_length: int | None = None,
        keep_ratio: bool = False,
        sampling: Sampling = Sampling(),
        skip_nonfinite: int = 0,
        auxiliary: AuxiliaryLoss | None = None,
        base_dim: int | None = None,
        text_rate: float = 1.0,
    ) -> None:
        super().__init__()
        size = SIZES[size] if isinstance(size, str) else size
        check_parts(codec, patcher, noise, size, image_loss_weight, auxiliary)
        self.tokenizer = tokenizer
        self._codec = [codec]  # in a list, so that checkpoints do not contain its frozen weights
        self.sizes = image_size, sequence_length, keep_ratio  # of the pipeline
        self.sampling = sampling
        self.noise = noise
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.loss_weights = LossWeights(image_loss_weight, z_loss_weight, auxiliary.weight if auxiliary else 0.0)
        self.ema_decay = ema_decay
        self.seed = seed
        self.skip_nonfinite = skip_nonfinite
        self.skipped_steps = 0
        self.net = Transfusion(tokenizer.vocab_size + (codec.num_codes or 0), size, patcher, mask, attention)
        self.base_dim = base_dim
        self.rate_scales = {} if base_dim is None else transfer_width(self.net, base_dim)
        check_text_rate(self.net, text_rate, init_from, base_dim)
        copied_rows = 0 if init_from is None else start_from(init_from, self.net, tokenizer)
        self.kept_rows = copied_rows if text_rate == 0 else 0
        if text_rate not in (0, 1):
            self.rate_scales = dict.fromkeys(text_parameters(self.net), text_rate)
        self.ema = None if ema_decay is None else copy.deepcopy(self.net).requires_grad_(False).eval()
        if text_rate == 0:
            freeze_text(self.net)
        self.auxiliary = auxiliary
        if auxiliary is not None:
            auxiliary.build(size.dim)
        self.net.transformer.run_block = block_runner(
            compile, activation_checkpointing, size.dropout, grouped=size.groups_modalities
        )
        self.can_be_sharded = not (compile and activation_checkpointing == "selective")  # see fsdp.shard_nets
        self.pipeline.describe()  # a part that a checkpoint cannot contain should fail now, not at the first checkpoint

    def configure_model(self) -> None:
        """Shard the weights and their average with FSDP2. (Lightning calls this again if a test follows a fit.)"""
        if self.device_mesh is not None and not isinstance(self.net, FSDPModule):
            shard_nets(self, self.device_mesh["data_parallel"])

    @property
    def codec(self) -> Codec:
        return self._codec[0].to(self.device)

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline for generation, with the averaged weights if there are any."""
        net = self.ema or self.net
        return Pipeline(net, self.noise, self.codec, self.tokenizer, *self.sizes)

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
        parts = net, self.noise, self.codec, batch, generator, self.tokenizer.vocab_size, self.auxiliary
        compared, timesteps = compare(*parts)
        return transfusion_loss(compared, self.loss_weights, counts), timesteps

    def on_train_start(self) -> None:
        check_steps(self.trainer)

    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        """Return the contribution of a micro-batch to the objective of its optimiser step.

        The objective is the mean over the text targets plus λ times the mean over the learned images, of all
        micro-batches of the step on all ranks.
        """
        num_batches, world_size = self.trainer.accumulate_grad_batches, self.trainer.world_size
        number = batch_idx % num_batches
        if number == 0:
            counts = batch.step_counts[::2] if self.noise.images_are_tokens else batch.step_counts[:2]
            self.step = StepLosses(counts, self.noise.num_train_timesteps, num_batches, world_size)
        terms, timesteps = self.losses(self.net, batch, self.generator(number), self.step.counts)
        self.step.add(batch, terms, timesteps)
        # Lightning will divide by the number of micro-batches, and DDP and FSDP2 by the number of ranks.
        return terms.total * (num_batches * world_size)

    def generator(self, number: int) -> torch.Generator:
        """Return the generator of a micro-batch. It depends on step and rank only, so a resumed run draws the same."""
        seed = hash_of(self.seed, self.global_step, number, self.global_rank)
        if self.net.transformer.config.dropout:
            torch.manual_seed(seed)  # dropout has no generator of its own
        return torch.Generator(self.device).manual_seed(seed)

    def validation_step(self, batch: PackedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        log_losses(self, stage_of("val", self.trainer.val_dataloaders, dataloader_idx), batch, batch_idx)

    def test_step(self, batch: PackedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        log_losses(self, stage_of("test", self.trainer.test_dataloaders, dataloader_idx), batch, batch_idx)

    def predict_step(self, batch: ExampleBatch, batch_idx: int) -> Prediction:
        pipeline = self.pipeline
        # Each batch has its own seed, so that not all batches draw the same pictures.
        sampling = dataclasses.replace(self.sampling, seed=self.sampling.seed + 1000 * batch_idx)
        drawn = draw(pipeline, batch.captions, sampling, cut=True)
        return Prediction(drawn, write(pipeline, batch.images, sampling))

    def on_validation_epoch_end(self) -> None:
        log_totals(self, "val")

    def on_test_epoch_end(self) -> None:
        log_totals(self, "test")

    def configure_optimizers(self) -> dict[str, Any]:
        rate_scales = {f"net.{name}": scale for name, scale in self.rate_scales.items()}
        optimizer = self.optimizer(decay_groups(self, rate_scales, ["net.head.weight"] if self.kept_rows else []))
        scale_rates(optimizer, keep_decay=self.base_dim is not None)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None, gradient_clip_algorithm: str | None
    ) -> None:
        """Clip by norm, log the step, and stop or skip it if it is not finite.

        (Lightning's clipping does not work with fused AdamW under bf16-mixed, and returns no norm.)
        """
        if self.kept_rows:
            keep_rows(self.net, self.kept_rows)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val or math.inf)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        values = self.step.values(self.loss_weights, norm)
        if not all(map(math.isfinite, values.values())):
            skip_or_stop(self, values)
            optimizer.zero_grad(set_to_none=True)  # a parameter without a gradient does not change
        log_step(self, values)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Update the average together with the weights, so that checkpoints and samples have both of the same step."""
        super().optimizer_step(*arguments, **options)
        if self.ema is not None:
            update_average(self.ema, self.net, self.ema_decay, self.global_step + 1)

    def configure_callbacks(self) -> list[lightning.Callback]:
        # The trainer runs these after the callbacks of the config, but before those that write checkpoints.
        return [ExactResume(), ResumedSettings(), GracefulStop()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = self.pipeline.describe()
        checkpoint["skipped_steps"] = self.skipped_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_fits(checkpoint, self.state_dict(), self.tokenizer)
        self.skipped_steps = checkpoint.get("skipped_steps", 0)
