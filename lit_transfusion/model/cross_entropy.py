"""Cross-entropy without copies of the logits, the largest tensor of a step."""

import torch
from torch import Tensor

# Logits that are worked on at once: as many as a CPU's cache holds, or as keep a GPU busy.
AT_ONCE = {"cpu": 2**18, "cuda": 2**26}


class SumOfCrossEntropy(torch.autograd.Function):
    """Cross-entropy of (T, V) logits and (T,) targets, in float32, summed. The gradient takes the place of the logits.

    With a large vocabulary the logits are the largest tensor of a step. `F.cross_entropy` makes three more of their
    size, in float32; this makes none. A second backward pass through the same logits is an error.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor) -> Tensor:
        log_sums = [rows.float().logsumexp(1) for rows in logits.split(rows_at_once(logits))]
        log_sum = torch.cat(log_sums)  # (T,)
        ctx.save_for_backward(logits, targets, log_sum)
        return (log_sum - logits.gather(1, targets[:, None])[:, 0].float()).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        """Softmax less one at the target."""
        logits, targets, log_sum = ctx.saved_tensors
        pieces = (x.split(rows_at_once(logits)) for x in (logits, targets, log_sum))
        for rows, target, row_log_sum in zip(*pieces, strict=True):
            softmax = rows.float().sub_(row_log_sum[:, None]).exp_()  # in float32, these are the rows themselves
            softmax.scatter_add_(1, target[:, None], torch.full_like(target[:, None], -1, dtype=softmax.dtype))
            rows.copy_(softmax.mul_(gradient))
        return logits, None


def rows_at_once(logits: Tensor) -> int:
    return max(1, AT_ONCE.get(logits.device.type, 2**18) // logits.shape[1])
