"""A training step as in the LightningModule, on given latents."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.batches import CHANNELS
from lit_transfusion.data.types import IGNORE_INDEX, PackedBatch
from lit_transfusion.diffusion import DDPM
from lit_transfusion.latents import Pixels
from lit_transfusion.model import Bidirectional, LinearPatcher, TransformerConfig, Transfusion
from lit_transfusion.model.flops import Flops
from lit_transfusion.training.batch_flops import batch_flops
from lit_transfusion.training.losses import LossWeights, transfusion_loss
from lit_transfusion.training.objective import run_with_noise
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
    noise, codec = DDPM(), Pixels()
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
        asked = batch._replace(target_positions=everywhere) if all_logits else batch
        compared, _ = run_with_noise(net, noise, codec, asked, generator)
        if all_logits:
            text = F.cross_entropy(compared.logits.float(), labels, ignore_index=IGNORE_INDEX)
            return text + 5 * compared.image_errors.mean()
        return transfusion_loss(compared, LossWeights(5.0)).total

    return step


def least_flops(net: Transfusion, batch: PackedBatch) -> float:
    """The minimum FLOPs of a step on this batch (see `lit_transfusion/model/flops.py`)."""
    return float(batch_flops(Flops.count(net), net.mask, batch, Pixels()))
