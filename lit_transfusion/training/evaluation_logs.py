"""What `validate` and `test` log: means over all batches, weighted by their number of targets or images."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_transfusion.data.permutation import hash_of
from lit_transfusion.data.types import PackedBatch
from lit_transfusion.training.losses import means_by_timestep, sums_by_timestep

if TYPE_CHECKING:
    from lit_transfusion.training.lit_module import LitTransfusion


def stage_of(stage: str, loaders: Any, number: int) -> str:
    """Return the prefix of metric names: "val", or "val/text" if each source of a mix has its own loader."""
    name = getattr(loaders[number] if isinstance(loaders, list) else loaders, "name", "")
    return f"{stage}/{name}" if name else stage


def log_losses(module: "LitTransfusion", stage: str, batch: PackedBatch, batch_idx: int) -> None:
    """Log the losses of a batch. Noise and timesteps are the same in each validation and on each rank."""
    generator = torch.Generator(module.device).manual_seed(hash_of(module.seed, batch_idx))
    terms, timesteps = module.losses(module.ema or module.net, batch, generator)

    def log(name: str, value: float | Tensor, number: int, prog_bar: bool = False) -> None:
        if number:  # the names contain the loaders of a mix
            module.log(f"{stage}/{name}", value, prog_bar, batch_size=number, add_dataloader_idx=False)

    tokens_only = module.noise.images_are_tokens
    num_text = len(batch.target_positions)
    num_images = batch.num_learned_patches if tokens_only else len(terms.per_image)
    log("loss_text", terms.text, num_text, prog_bar=True)
    log("loss_image", terms.image, num_images, prog_bar=True)
    if module.loss_weights.z:
        log("loss_z", terms.z, num_text + tokens_only * num_images)
    if module.loss_weights.auxiliary:
        log("loss_auxiliary", terms.auxiliary, num_images)
    if module.loss_weights.image is None:  # one cross-entropy over all tokens
        log("loss", terms.total, num_text + num_images, prog_bar=True)
    num_timesteps = module.noise.num_train_timesteps
    sums = sums_by_timestep(terms.per_image, timesteps, num_timesteps).flatten().tolist()
    for name, (mean, number) in means_by_timestep(sums, num_timesteps).items():
        log(name, mean, number)


def log_totals(module: "LitTransfusion", stage: str) -> None:
    """Log the objective and the perplexity, computed from the means over all batches."""
    image_weight, z_weight, auxiliary_weight = module.loss_weights
    weights = {
        "loss_text": 1.0,
        "loss_image": image_weight,
        "loss_z": z_weight,
        "loss_auxiliary": auxiliary_weight,
    }
    means = {name: loss for name, loss in module.trainer.callback_metrics.items() if name.startswith(f"{stage}/")}
    totals: dict[str, Tensor] = {}
    for name, mean in means.items():
        loader, _, loss = name.rpartition("/")
        if loss == "loss_text":  # missing if no text is learned, because all captions are dropped
            module.log(f"{loader}/perplexity", mean.exp())
        if loss in weights and image_weight is not None:
            totals[loader] = totals.get(loader, 0.0) + weights[loss] * mean
    for loader, total in totals.items():
        module.log(f"{loader}/loss", total, prog_bar=True)
