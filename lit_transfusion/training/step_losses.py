"""The losses of one optimiser step, over all its batches on all ranks."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_transfusion.data.types import PackedBatch
from lit_transfusion.timestep_buckets import TIMESTEP_BUCKETS
from lit_transfusion.training.losses import LossTerms, LossWeights, means_by_timestep, sums_by_timestep

if TYPE_CHECKING:
    from lit_transfusion.training.lit_module import LitTransfusion


class StepLosses:
    """Sums the losses of one optimiser step over its micro-batches and ranks. All ranks must call it alike.

    Args:
        counts: (2,) number of text targets and of learned images (or codes) of the step on this rank.
        num_timesteps: T.
        num_batches: Number of micro-batches.
        world_size: Number of ranks.
    """

    def __init__(self, counts: Tensor, num_timesteps: int, num_batches: int, world_size: int) -> None:
        self.num_timesteps = num_timesteps
        self.num_batches = num_batches
        self.world_size = world_size
        self.counts = self._sum_over_ranks(counts.clone())  # (2,) on all ranks
        self.sums = torch.zeros(4 + 2 * TIMESTEP_BUCKETS, device=counts.device)
        self.batches: list[PackedBatch] = []  # of this rank

    def add(self, batch: PackedBatch, terms: LossTerms, timesteps: Tensor) -> None:
        """Add a micro-batch. Its losses must be divided by `counts`."""
        self.batches.append(batch)
        by_timestep = sums_by_timestep(terms.per_image, timesteps, self.num_timesteps)  # (2, 8)
        self.sums += torch.cat(
            [torch.stack([terms.text, terms.image, terms.z, terms.auxiliary]).detach(), by_timestep.flatten()]
        )
        if len(self.batches) == self.num_batches:
            self._sum_over_ranks(self.sums)

    def values(self, weights: LossWeights, gradient_norm: Tensor) -> dict[str, float]:
        """Return the values to log, by name. Modalities and timesteps that the step lacks are omitted.

        Args:
            weights: The weights of the losses in their sum.
            gradient_norm: The norm of the gradient, scalar.
        """
        # One transfer, because each one synchronises the GPU.
        together = torch.cat([self.sums, self.counts, gradient_norm[None]]).tolist()
        text, image, z, auxiliary, *by_timestep, num_targets, num_images, norm = together
        of_text, of_image = weights.of_modalities(num_targets, num_images)
        total = of_text * text + of_image * image + weights.z * z + weights.auxiliary * auxiliary
        values = {"loss": total, "grad_norm": norm}
        if num_targets:
            values |= {"loss_text": text, "perplexity": math.exp(min(text, 700.0))}
            values |= {"loss_z": z} if weights.z else {}
        if num_images:
            values |= {"loss_image": image} | ({"loss_auxiliary": auxiliary} if weights.auxiliary else {})
        return values | {name: mean for name, (mean, _) in means_by_timestep(by_timestep, self.num_timesteps).items()}

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values


def log_step(module: "LitTransfusion", values: dict[str, float]) -> None:
    """Log the values of a step: to the progress bar, and to the loggers at their interval."""
    for name in ("loss", "loss_text", "loss_image", "grad_norm"):
        if name in values:
            module.log(f"train/{name}", values[name], prog_bar=name != "grad_norm", logger=False)
    if (module.global_step + 1) % module.trainer.log_every_n_steps == 0:
        # module.log would repeat old values in a step that lacks a modality or a bucket of timesteps.
        for logger in module.loggers:
            logger.log_metrics({f"train/{name}": value for name, value in values.items()}, module.global_step)
