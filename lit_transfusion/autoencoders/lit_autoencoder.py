"""The LightningModule of an autoencoder: losses of reconstruction, of the bottleneck and of the patch GAN."""

import copy
from collections.abc import Iterable
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lit_transfusion.autoencoders.bottlenecks import Bottleneck, Encoded, Term, total
from lit_transfusion.autoencoders.discriminator import PatchGAN
from lit_transfusion.autoencoders.gradient_clipping import clip_each
from lit_transfusion.autoencoders.networks import architecture, check_shapes
from lit_transfusion.autoencoders.perceptual import PerceptualLoss
from lit_transfusion.autoencoders.reconstruction_measures import ReconstructionMeasures
from lit_transfusion.data.permutation import hash_of
from lit_transfusion.errors import InputError
from lit_transfusion.evaluation.features import FeatureExtractor
from lit_transfusion.evaluation.metric import Unavailable
from lit_transfusion.training.ema import update_average
from lit_transfusion.training.exact_resume import ExactResume
from lit_transfusion.training.graceful_stop import GracefulStop
from lit_transfusion.training.optim import decay_groups
from lit_transfusion.training.resumed_settings import ResumedSettings
from lit_transfusion.training.trainer_settings import check_steps

KEY = "lit_transfusion_autoencoder"  # the checkpoint's entry by which it is known as that of an autoencoder


class LitAutoencoder(lightning.LightningModule):
    """Training of an autoencoder of `diffusers`: an AutoencoderKL or a VQModel of one architecture.

    Args:
        image_size: Side of the square pictures in pixels (set by the data module).
        bottleneck: KL for continuous latents; VQ or FSQ for codes.
        optimizer: Called with the parameter groups of the autoencoder, and one of the discriminator.
        scheduler: Called with the optimiser; stepped after each optimiser step.
        block_out_channels: Channels of each level of the encoder, from fine to coarse; the decoder mirrors them. Each
            level after the first halves the sides.
        layers_per_block: Residual blocks of a level of the encoder; the decoder has one more.
        latent_channels: Channels of the latents. With codes, those before the projection to a code's channels.
        norm_num_groups: Groups of the group norms; it must divide all numbers of channels.
        attention: Whether the coarsest level has self-attention.
        perceptual: Distance between features of the picture and of its reconstruction; null for none.
        perceptual_weight: Weight of this distance; the mean absolute error of the pixels has the weight 1.
        gan: The discriminator and its settings; null for none.
        features: Features for the distance between held-out pictures and their reconstructions as two sets; null for
            none.
        ema_decay: Decay of the moving average of the weights, which validation and the saved folder use.
        seed: Seed of what training draws; on the command line that of --seed_everything unless it is set.
    """

    def __init__(
        self,
        image_size: int,
        bottleneck: Bottleneck,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable,
        block_out_channels: list[int],
        layers_per_block: int = 1,
        latent_channels: int = 4,
        norm_num_groups: int = 8,
        attention: bool = True,
        perceptual: PerceptualLoss | None = None,
        perceptual_weight: float = 1.0,
        gan: PatchGAN | None = None,
        features: FeatureExtractor | None = None,
        ema_decay: float = 0.999,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sizes = image_size, block_out_channels, layers_per_block, latent_channels, norm_num_groups, attention
        self.bottleneck = bottleneck
        self.net = bottleneck.build(architecture(*sizes))
        self.ema = copy.deepcopy(self.net).requires_grad_(False).eval()
        self.gan = gan
        # In lists, so that checkpoints do not contain their frozen weights.
        self._perceptual = [] if perceptual is None else [perceptual.requires_grad_(False)]
        self._features = features
        self.perceptual_weight = perceptual_weight
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.ema_decay = ema_decay
        self.seed = seed
        if gan is not None:
            gan.check_size(image_size)
        try:
            if features is not None:
                features.prepare()
        except Unavailable as error:
            raise InputError(f"model.features: {error}") from error

    def setup(self, stage: str) -> None:
        self.bottleneck.distribute()

    def on_train_start(self) -> None:
        check_steps(self.trainer)

    def reconstruction_terms(self, reconstruction: Tensor, pictures: Tensor) -> dict[str, Term]:
        """The losses that compare pictures (N, 3, H, W) with their reconstructions."""
        terms = {"l1": Term(F.l1_loss(reconstruction, pictures), 1.0)}
        for perceptual in self._perceptual:
            distance = perceptual.to(self.device)(reconstruction, pictures)
            terms["perceptual"] = Term(distance, self.perceptual_weight)
        return terms

    def terms(self, pictures: Tensor, step: int, generator: torch.Generator) -> dict[str, Term]:
        """All losses of a batch of pictures (N, 3, H, W) in [-1, 1], after this number of optimiser steps."""
        encoded = self.bottleneck.learn(self.net, pictures, generator)
        reconstruction = self.bottleneck.decode(self.net, encoded.latents).float()
        terms = self.reconstruction_terms(reconstruction, pictures)
        adversarial = {}
        if self.gan is not None:
            last_layer = self.net.decoder.conv_out.weight
            adversarial = self.gan.terms(pictures, reconstruction, total(terms), last_layer, step)
        return terms | encoded.terms | adversarial

    def training_step(self, pictures: Tensor, batch_idx: int) -> Tensor:
        """Return the sum of all losses.

        One backward pass gives the gradients of the autoencoder and of the discriminator: no loss of one reaches the
        weights of the other. So one optimiser and Lightning's own loop are enough.
        """
        number = batch_idx % self.trainer.accumulate_grad_batches
        seed = hash_of(self.seed, self.global_step, number, self.global_rank)
        torch.manual_seed(seed)  # k-means and the replacement of codes have no generator of their own
        terms = self.terms(pictures, self.global_step, torch.Generator(self.device).manual_seed(seed))
        self.log_dict({f"train/loss_{name}": term.value.detach() for name, term in terms.items()})
        if "gan" in terms:
            self.log("train/gan_weight", terms["gan"].weight)
        return total(terms)

    @torch.no_grad()
    def reconstruct(self, pictures: Tensor) -> tuple[Tensor, Encoded]:
        """Reconstruct pictures (N, 3, H, W) as the saved codec does, with the averaged weights."""
        encoded = self.bottleneck.encode(self.ema, pictures)
        return self.bottleneck.decode(self.ema, encoded.latents).float(), encoded

    @torch.no_grad()
    def measure(self, measures: ReconstructionMeasures, pictures: Tensor) -> None:
        reconstruction, encoded = self.reconstruct(pictures)
        terms = self.reconstruction_terms(reconstruction, pictures)
        losses = {f"loss_{name}": term.value for name, term in terms.items()}
        measures.add(pictures, reconstruction, encoded, losses)

    def measure_all(self, batches: Iterable[Tensor]) -> ReconstructionMeasures:
        """Measure batches of pictures outside a validation."""
        measures = self.new_measures()
        for pictures in batches:
            self.measure(measures, pictures.to(self.device))
        return measures

    def new_measures(self) -> ReconstructionMeasures:
        return ReconstructionMeasures(self.bottleneck.num_codes, self._features)

    def on_validation_epoch_start(self) -> None:
        self.measures = self.new_measures()

    def validation_step(self, pictures: Tensor, batch_idx: int) -> None:
        self.measure(self.measures, pictures)

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{name}": value for name, value in self.measures.values().items()})

    def configure_optimizers(self) -> dict[str, Any]:
        groups = decay_groups(self.net)
        groups += [] if self.gan is None else [{"params": list(self.gan.parameters())}]
        optimizer = self.optimizer(groups)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None, gradient_clip_algorithm: str | None
    ) -> None:
        """Clip the gradients of the autoencoder and of the discriminator, each by its own norm."""
        nets = {"grad_norm": list(self.net.parameters())}
        if self.gan is not None and self.global_step >= self.gan.start_step:
            nets["grad_norm_discriminator"] = list(self.gan.parameters())
        elif self.gan is not None:
            self.gan.zero_grad()  # sets them to None, so that the optimiser leaves the weights unchanged
        norms = clip_each(nets, gradient_clip_val, self.global_step + 1)
        self.log_dict({f"train/{name}": norm for name, norm in norms.items()})

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        super().optimizer_step(*arguments, **options)
        update_average(self.ema, self.net, self.ema_decay, self.global_step + 1)

    def configure_callbacks(self) -> list[lightning.Callback]:
        return [ExactResume(), ResumedSettings(), GracefulStop()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = {"class": type(self.net).__name__, "config": dict(self.net.config)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_shapes(checkpoint["state_dict"], self.state_dict())
