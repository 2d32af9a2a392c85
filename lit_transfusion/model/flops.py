"""How many floating-point operations a batch needs at least, and how many a device can do.

Counted are the products that cannot be avoided: those of the blocks at each position that holds a token or a patch, of
attention for each pair of a query and a key it sees, of the head where there is a target, and what the patcher does for
each image. Padding, keys that a mask hides, logits that nobody asked for and activations that are computed again
are not: what is spent on them counts as time lost.
"""

import copy
import re
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lit_transfusion.model.transfusion import Transfusion

# Of dense bf16 products with float32 sums, without sparsity, from NVIDIA's data sheets; the first name that occurs in
# the device's own is taken. Limits: power and clock keep most cards below.
PEAK_BF16: dict[str, float] = {
    "B200": 2250e12,
    "H200": 989.5e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989.5e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A40": 149.7e12,
    "A10": 125e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}


Count = TypeVar("Count", int, Tensor)  # a number, or a scalar on a device


@dataclass(frozen=True)
class Flops:
    """Of the forward pass; the backward pass takes twice as many, one product for the input and one for the weight."""

    token: int  # of a token or patch, in all blocks
    pair: int  # of a query and a key that it sees, in all blocks
    logit: int  # of a position at which the head is computed
    image: int  # of an image in the patcher, its time embedding included

    @classmethod
    def count(cls, net: Transfusion, image_shape: tuple[int, int, int]) -> "Flops":
        """Read them off a net, for images (C, H, W)."""
        blocks, dim = net.transformer.blocks, net.transformer.size.dim
        linears = (module for module in blocks.modules() if isinstance(module, nn.Linear))
        token = sum(2 * linear.weight.numel() for linear in linears)
        return cls(token, 4 * dim * len(blocks), 2 * net.head.weight.numel(), image_flops(net, image_shape))

    def training_step(self, tokens: Count, pairs: Count, logits: int, images: int) -> Count:
        """Of one forward and backward pass."""
        return 3 * (self.token * tokens + self.pair * pairs + self.logit * logits + self.image * images)

    def of_batch(self, lo: Tensor, hi: Tensor, lengths: Tensor, num_targets: int, num_images: int) -> Tensor:
        """Of a training step on rows whose queries see the keys of the (B, L) intervals [lo, hi), padding behind the
        (B,) lengths aside; a scalar on their device."""
        return self.training_step(lengths.sum(), visible_pairs(lo, hi, lengths), num_targets, num_images)


def visible_pairs(lo: Tensor, hi: Tensor, lengths: Tensor) -> Tensor:
    """How many keys the queries of (B, L) intervals see together, padding behind the (B,) lengths aside; a scalar."""
    padding = torch.arange(lo.shape[1], device=lo.device) >= lengths[:, None]
    return (hi - lo).masked_fill(padding, 0).sum()


def image_flops(net: Transfusion, image_shape: tuple[int, int, int]) -> int:
    """Counted by torch while a copy without data handles one image, since a patcher may be anyone's."""
    time_embedding = copy.deepcopy(net.time_embedding).to("meta")
    patcher = copy.deepcopy(net.patcher).to("meta")
    image = torch.empty(1, *image_shape, device="meta")
    grid = (image_shape[1] // patcher.patch_size, image_shape[2] // patcher.patch_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        t_emb = time_embedding(torch.zeros(1, dtype=torch.int64, device="meta"))
        patches, skips = patcher.patchify(image, t_emb)
        patcher.unpatchify(patches, t_emb, skips, grid)
    return counter.get_total_flops()


def peak_bf16(device_name: str) -> float | None:
    """Operations per second, or None where the device is not in the table."""
    if "Laptop" in device_name:
        return None
    return next((peak for name, peak in PEAK_BF16.items() if re.search(rf"\b{name}\b", device_name)), None)
