"""Cross-entropy that makes no copy of the logits."""

from typing import Any

import torch
from torch import Tensor

# Number of logits per piece: as many as fit in a CPU's cache, or as keep a GPU busy.
PIECE = {"cpu": 2**18, "cuda": 2**26}


class SumOfCrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropy of (T, V) logits and (T,) targets, in float32. The gradient overwrites the logits.

    With a large vocabulary the logits are the largest tensor of a step. `F.cross_entropy` allocates three more float32
    tensors of that size; this function allocates none. A second backward pass through the same logits is an error.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        log_sums = [rows.float().logsumexp(1) for rows in logits.split(rows_at_once(logits))]
        log_sum = torch.cat(log_sums)  # (T,)
        ctx.save_for_backward(logits, targets, log_sum)
        return (log_sum - logits.gather(1, targets[:, None])[:, 0].float()).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient is the softmax, minus one at the target."""
        logits, targets, log_sum = ctx.saved_tensors
        pieces = (x.split(rows_at_once(logits)) for x in (logits, targets, log_sum))
        for rows, target, row_log_sum in zip(*pieces, strict=True):
            softmax = rows.float().sub_(row_log_sum[:, None]).exp_()  # overwrites the logits if they are float32
            softmax.scatter_add_(1, target[:, None], torch.full_like(target[:, None], -1, dtype=softmax.dtype))
            rows.copy_(softmax.mul_(gradient))
        return logits, None


def rows_at_once(logits: Tensor) -> int:
    """Return the number of rows of (T, V) logits per piece, at least 1."""
    return max(1, PIECE.get(logits.device.type, 2**18) // logits.shape[1])
