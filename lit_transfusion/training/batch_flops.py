"""The operations of a training step on a batch."""

import torch
from torch import Tensor

from lit_transfusion.data.types import TEXT, PackedBatch
from lit_transfusion.latents import Codec
from lit_transfusion.model import Visibility
from lit_transfusion.model.flops import Flops


def batch_flops(flops: Flops, mask: Visibility, batch: PackedBatch, codec: Codec) -> Tensor:
    """Minimum number of operations of the net in a training step, as a scalar on the device of the batch.

    Args:
        flops: Operations of the net, per unit.
        mask: The visibility rule of the net.
        batch: The batch.
        codec: Gives the shapes of latents; its own operations are not counted.
    """
    image_ids, targets = batch.image_ids, len(batch.target_positions)
    if codec.num_codes is not None:  # images are tokens
        image_ids, targets = torch.full_like(image_ids, TEXT), targets + batch.num_learned_patches
    lo, hi = mask.intervals(batch.document_ids, image_ids)
    shapes = [(len(group.at), codec.shape_of_latents(group.images)) for group in batch.image_groups]
    return flops.of_batch(lo, hi, batch.lengths, targets, shapes, batch.private)
