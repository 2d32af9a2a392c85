"""The parameters of a net, by part."""

import torch
from torch import nn

from lit_transfusion.commands.plan.setup import Setup
from lit_transfusion.model import Transfusion


def parameters_of(setup: Setup, net: Transfusion) -> dict[str, int]:
    """The number of parameters of each part. Those that both halves of the patcher use are counted in the first.

    With `tie_embeddings` the head has none of its own.
    """
    into = used_by_patchify(setup, net)
    parts = {
        "embedding": [net.embedding.weight],
        "head": list(net.head.parameters()),
        "patcher in": into,
        "patcher out": list(net.patcher.parameters()),
        "time embedding": list(net.time_embedding.parameters()),
        "blocks": list(net.transformer.parameters()),
    }
    counted: set[int] = set()
    numbers = {}
    for name, parameters in parts.items():
        own = [parameter for parameter in parameters if id(parameter) not in counted]
        counted |= {id(parameter) for parameter in own}
        numbers[name] = sum(parameter.numel() for parameter in own)
    return numbers


def used_by_patchify(setup: Setup, net: Transfusion) -> list[nn.Parameter]:
    """The parameters of the patcher that have a gradient after `patchify`, on the meta device."""
    parameters = list(net.patcher.parameters())
    if not parameters:
        return []
    with torch.device("meta"):
        patches, _ = net.patcher.patchify(torch.empty(1, *setup.shape), torch.empty(1, setup.size.dim))
        gradients = torch.autograd.grad(patches.sum(), parameters, allow_unused=True)
    return [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
