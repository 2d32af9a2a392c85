"""LM mode: which token comes next (paper, 3.4)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_transfusion.generation.settings import Sampling


def pick(logits: Tensor, generators: Sequence[torch.Generator], sampling: Sampling) -> list[int]:
    """(B, V) logits → a token for each row, drawn with the row's own generator."""
    if sampling.temperature == 0:
        return logits.argmax(-1).tolist()
    logits = logits.float() - logits.float().amax(-1, keepdim=True)  # lest a small temperature make them infinite
    logits = likeliest(logits / sampling.temperature, sampling.top_k, sampling.top_p)
    probabilities = logits.softmax(-1).cpu()  # where the generators are
    return [int(torch.multinomial(p, 1, generator=g)) for p, g in zip(probabilities, generators, strict=True)]


def likeliest(logits: Tensor, top_k: int | None, top_p: float) -> Tensor:
    """Logits (B, V) with those of all but the likeliest tokens at -∞.

    `top_k` goes first; `top_p` is a share of what it leaves. The token with which the share is reached stays in.
    """
    if top_k is None and top_p == 1:
        return logits
    ordered, tokens = logits.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered[:, top_k:] = -torch.inf
    probabilities = ordered.softmax(-1)
    reached = probabilities.cumsum(-1) - probabilities >= top_p  # without the token itself
    ordered = ordered.masked_fill(reached, -torch.inf)
    return ordered.gather(1, tokens.argsort(dim=-1))
