"""Cross-entropy that makes no copy of the logits."""

from typing import Any

import torch
from torch import Tensor

# Number of logits per piece: as many as fit in a CPU's cache, or as keep a GPU busy.
PIECE = {"cpu": 2**18, "cuda": 2**26}


class CrossEntropy(torch.autograd.Function):
    """The cross-entropy (T,) and the z-loss (T,) of (T, V) logits and (T,) targets, both in float32.

    The z-loss of a position is the square of log Σ exp(logits), which keeps the logits from growing (Chowdhery et al.,
    2022, PaLM). The gradient overwrites the logits.

    With a large vocabulary the logits are the largest tensor of a step. `F.cross_entropy` allocates three more float32
    tensors of that size; this function allocates none. A second backward pass through the same logits is an error.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)  # None tells the backward pass that the z-loss is unused
        log_sums = [rows.float().logsumexp(1) for rows in logits.split(rows_at_once(logits))]
        log_sum = torch.cat(log_sums)  # (T,)
        ctx.save_for_backward(logits, targets, log_sum)
        return log_sum - logits.gather(1, targets[:, None])[:, 0].float(), log_sum.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, z_gradient: Tensor | None) -> tuple[Tensor, None]:
        """The gradient is the softmax, minus one at the target; that of the z-loss is 2 · log Σ exp · softmax."""
        logits, targets, log_sum = ctx.saved_tensors
        z = torch.zeros_like(log_sum) if z_gradient is None else 2 * z_gradient * log_sum  # (T,)
        pieces = (x.split(rows_at_once(logits)) for x in (logits, targets, log_sum, gradient, z))
        for rows, target, row_log_sum, of_target, of_z in zip(*pieces, strict=True):
            softmax = rows.float().sub_(row_log_sum[:, None]).exp_()  # overwrites the logits if they are float32
            if z_gradient is None:
                one = torch.ones_like(target[:, None], dtype=softmax.dtype)
                softmax.scatter_add_(1, target[:, None], -one).mul_(of_target[:, None])
            else:
                softmax.mul_((of_target + of_z)[:, None])
                softmax.scatter_add_(1, target[:, None], -of_target[:, None])
            rows.copy_(softmax)
        return logits, None


def rows_at_once(logits: Tensor) -> int:
    """Return the number of rows of (T, V) logits per piece, at least 1."""
    return max(1, PIECE.get(logits.device.type, 2**18) // logits.shape[1])
