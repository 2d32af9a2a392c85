"""LM mode: choose the next token (paper, 3.4)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_transfusion.generation.settings import Sampling


def pick(logits: Tensor, generators: Sequence[torch.Generator], sampling: Sampling) -> list[int]:
    """Choose a token for each row of (B, V) logits, with the row's own generator."""
    if sampling.temperature == 0:
        return logits.argmax(-1).tolist()
    logits = logits.float() - logits.float().amax(-1, keepdim=True)  # so that a small temperature does not overflow
    logits = likeliest(logits / sampling.temperature, sampling.top_k, sampling.top_p)
    probabilities = logits.softmax(-1).cpu()  # the generators are on the CPU
    return [int(torch.multinomial(p, 1, generator=g)) for p, g in zip(probabilities, generators, strict=True)]


def likeliest(logits: Tensor, top_k: int | None, top_p: float) -> Tensor:
    """Set the logits (B, V) of all but the likeliest tokens to -∞.

    `top_k` is applied first; `top_p` is a share of the remaining probability. The token that reaches the share is kept.
    """
    if top_k is None and top_p == 1:
        return logits
    ordered, tokens = logits.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered[:, top_k:] = -torch.inf
    probabilities = ordered.softmax(-1)
    reached = probabilities.cumsum(-1) - probabilities >= top_p  # the share without the token itself
    ordered = ordered.masked_fill(reached, -torch.inf)
    return ordered.gather(1, tokens.argsort(dim=-1))
