"""A training step as in the LightningModule, on given latents."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.batches import CHANNELS
from lit_transfusion.data.types import IGNORE_INDEX, PackedBatch
from lit_transfusion.diffusion import DDPM
from lit_transfusion.model import Bidirectional, LinearPatcher, TransformerConfig, Transfusion
from lit_transfusion.model.flops import Flops
from lit_transfusion.training.losses import transfusion_loss
from lit_transfusion.training.optim import decay_groups


def new_net(size: TransformerConfig, vocab_size: int = 8192, attention: str = "auto", seed: int = 0) -> Transfusion:
    torch.manual_seed(seed)
    patcher = LinearPatcher(CHANNELS, size.dim, patch_size=1)
    return Transfusion(vocab_size, size, patcher, Bidirectional(), attention=attention)


def new_step(
    net: Transfusion,
    batch: PackedBatch,
    all_logits: bool = False,
    fused: bool = True,
    precision: torch.dtype | None = None,
) -> Callable:
    """Return a function that runs one step and returns the loss.

    Args:
        net: The net to train.
        batch: The batch of every step.
        all_logits: Compute the head at all positions, as is usual; the loss ignores positions without a target.
        fused: Use torch's fused AdamW; otherwise its loop over the parameters.
        precision: Precision of autocast; None computes all in float32.
    """
    noise = DDPM()
    optimizer = torch.optim.AdamW(decay_groups(net), lr=1e-4, fused=fused or None, foreach=False if not fused else None)
    generator = torch.Generator(batch.tokens.device).manual_seed(0)
    everywhere = torch.arange(batch.tokens.numel(), device=batch.tokens.device)
    labels = batch.labels.flatten()

    def step() -> torch.Tensor:
        with torch.autocast(batch.tokens.device.type, precision, enabled=precision is not None):
            loss = losses()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    def losses() -> torch.Tensor:
        timesteps = noise.draw_timesteps(batch.max_timesteps, generator)
        target = torch.randn(batch.images.shape, generator=generator, device=batch.images.device)
        output = net(
            batch.tokens,
            batch.positions,
            batch.document_ids,
            batch.image_ids,
            noise.add_noise(batch.images, target, timesteps),
            timesteps,
            everywhere if all_logits else batch.target_positions,
        )
        if all_logits:
            text = F.cross_entropy(output.logits.float(), labels, ignore_index=IGNORE_INDEX)
            return text + 5 * F.mse_loss(output.image_prediction.float(), target)
        targets = labels.index_select(0, batch.target_positions)
        return transfusion_loss(output.logits, targets, output.image_prediction, target, 5.0).total

    return step


def least_flops(net: Transfusion, batch: PackedBatch) -> float:
    """The minimum FLOPs of a step on this batch (see `lit_transfusion/model/flops.py`)."""
    lo, hi = net.mask.intervals(batch.document_ids, batch.image_ids)
    flops = Flops.count(net, tuple(batch.images.shape[1:]))
    return float(flops.of_batch(lo, hi, batch.lengths, len(batch.target_positions), len(batch.images), batch.private))
