"""Minimum number of floating-point operations of a batch, and the peak rate of known GPUs.

Only the necessary products are counted: those of the blocks at each token or patch, of attention for each pair of a
query and a visible key, of the head at each target, and of the patcher for each image. Work on padding, hidden keys,
logits without a target and recomputed activations is not counted: it only costs time.
"""

import copy
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lit_transfusion.model.block import Block
from lit_transfusion.model.transfusion import Transfusion
from lit_transfusion.model.visibility import run_ends, run_starts

# Peak FLOP/s of dense bf16 products with float32 sums, without sparsity, from NVIDIA's data sheets. The first name that
# occurs in the device's name is used. Power and clock limits keep most cards below these numbers.
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
    """Operations of the forward pass, per unit.

    The backward pass takes twice as many: one product for the input and one for the weight.
    """

    token: int  # per token or patch, in all blocks
    pair: int  # per pair of a query and a visible key, in all blocks
    logit: int  # per position at which the head is computed
    image: "Callable[[tuple[int, int, int]], int]"  # per image of a shape (C, H, W), in patcher and time embedding

    @classmethod
    def count(cls, net: Transfusion) -> "Flops":
        """Count the operations of a net."""
        config = net.transformer.config
        with torch.device("meta"):
            block = Block(config)  # each position passes one such block per layer, also if patches have their own
        linears = (module for module in block.modules() if isinstance(module, nn.Linear))
        token = config.n_layers * sum(2 * linear.weight.numel() for linear in linears)
        pair = 4 * config.dim * config.n_layers
        return cls(token, pair, 2 * net.head.weight.numel(), image_flops(net))

    def training_step(self, tokens: Count, pairs: Count, logits: int, images: int) -> Count:
        """Operations of one forward and backward pass, where those of all images in the patcher are `images`."""
        return 3 * (self.token * tokens + self.pair * pairs + self.logit * logits + images)

    def of_batch(
        self,
        lo: Tensor,
        hi: Tensor,
        lengths: Tensor,
        num_targets: int,
        images: Iterable[tuple[int, tuple[int, int, int]]],
        private: Tensor | None = None,
    ) -> Tensor:
        """Operations of a training step on (B, L) rows, as a scalar on the device of `lo`.

        Args:
            lo: (B, L) first key that each query sees.
            hi: (B, L) one past the last key that each query sees.
            lengths: (B,) number of positions before the padding.
            num_targets: Number of text targets.
            images: The number of images of each shape (C, H, W).
            private: (B, L) private images of the patches (see `visibility.py`).
        """
        in_patcher = sum(number * self.image(shape) for number, shape in images)
        return self.training_step(lengths.sum(), visible_pairs(lo, hi, lengths, private), num_targets, in_patcher)


def visible_pairs(lo: Tensor, hi: Tensor, lengths: Tensor, private: Tensor | None = None) -> Tensor:
    """Number of (query, visible key) pairs of (B, L) intervals, without padding behind the (B,) lengths; a scalar."""
    padding = torch.arange(lo.shape[1], device=lo.device) >= lengths[:, None]
    pairs = hi - lo
    if private is not None:  # subtract the private keys of other images
        is_private = private >= 0
        before = F.pad(is_private.cumsum(1), (1, 0))  # (B, L + 1) private keys before each position
        own = torch.minimum(hi, run_ends(private)) - torch.maximum(lo, run_starts(private))
        pairs = pairs - (before.gather(1, hi) - before.gather(1, lo)) + own * is_private
    return pairs.masked_fill(padding, 0).sum()


def image_flops(net: Transfusion) -> Callable[[tuple[int, int, int]], int]:
    """A function that maps the shape (C, H, W) of an image to its operations.

    torch counts them on a copy of the patcher without data, so that any patcher works.
    """
    if net.patcher.images_are_tokens:
        return lambda shape: 0
    time_embedding = copy.deepcopy(net.time_embedding).to("meta")
    patcher = copy.deepcopy(net.patcher).to("meta")

    @cache
    def of_shape(shape: tuple[int, int, int]) -> int:
        image = torch.empty(1, *shape, device="meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            t_emb = time_embedding(torch.zeros(1, dtype=torch.int64, device="meta"))
            patches, skips = patcher.patchify(image, t_emb)
            patcher.unpatchify(patches, t_emb, skips, patcher.grid(image))
        return counter.get_total_flops()

    return of_shape


def peak_bf16(device_name: str) -> float | None:
    """Peak operations per second of a device, or None if it is not in the table."""
    if "Laptop" in device_name:
        return None
    return next((peak for name, peak in PEAK_BF16.items() if re.search(rf"\b{name}\b", device_name)), None)
