"""Use a learning rate that was tuned for a narrow net at another width (μP: Yang et al., 2022, arXiv 2203.03466).

Adam changes each weight by about the learning rate, whatever its gradient. A layer that sums over the width then
changes its output in proportion to the width, so that the best rate falls as nets get wider. In μP it stays the same.

| parameters (Table 8 of the paper)                | initial weights       | learning rate |
|--------------------------------------------------|-----------------------|---------------|
| hidden: input and output grow with the width     | unchanged: 1 / √width | 1 / width     |
| output: only the input grows (head, last layers) | · 1 / √width          | 1 / width     |
| input: only the output grows (embeddings, first) | do not depend on it   | constant      |
| norms, biases, and what does not touch the width | unchanged             | constant      |

All of it is relative to the base width, at which nothing changes. The kind of a parameter follows from its shapes in
the net and in the same net of the base width.
"""

import dataclasses

import torch
from torch import Tensor, nn

from lit_transfusion.errors import InputError
from lit_transfusion.model import Patcher, Transfusion
from lit_transfusion.serialization import build, describe


@torch.no_grad()
def transfer_width(net: Transfusion, base_dim: int) -> dict[str, float]:
    """Scale the initial weights of a net that has just been made, and return the factors of the learning rates.

    Args:
        net: The net.
        base_dim: Width D at which the learning rate was tuned.

    Returns:
        The factor for each parameter by its name in `net`, if it is not 1.

    Raises:
        InputError: The net has no counterpart of this width.
    """
    at_base = dict(base_net(net, base_dim).named_parameters())
    embeddings = {id(module.weight) for module in net.modules() if isinstance(module, nn.Embedding)}
    scales = {}
    for name, weight in net.named_parameters():
        if weight.ndim < 2 or weight.shape == at_base[name].shape:
            continue
        if id(weight) in embeddings:
            weight *= (net.transformer.config.dim / base_dim) ** 0.5  # they are made with 1 / √width
            continue
        ratio = fan_in(at_base[name]) / fan_in(weight)
        if weight.shape[0] == at_base[name].shape[0]:
            weight *= ratio**0.5
        if ratio != 1:
            scales[name] = ratio
    return scales


def fan_in(weight: Tensor) -> int:
    """Number of inputs of each output of a linear layer or a convolution."""
    return weight[0].numel()


def base_net(net: Transfusion, base_dim: int) -> Transfusion:
    """The same net at the base width, with heads of the same size, on the meta device: shapes without values."""
    config = net.transformer.config
    if config.tie_embeddings:
        raise InputError(
            "model.base_dim is not possible with model.size.tie_embeddings: the embedding and the head need different "
            "learning rates; set one of them to null or false"
        )
    size = {}
    for name in ("dim", "n_heads", "n_kv_heads", "hidden_dim"):
        if (length := getattr(config, name)) is not None:
            size[name], rest = divmod(length * base_dim, config.dim)
            if rest or size[name] < 1:
                raise InputError(
                    f"model.base_dim {base_dim} does not fit dim {config.dim} of model.size: its {name} {length} would "
                    f"be {length * base_dim / config.dim:g}; heads must have the same size at both widths, so use a "
                    f"multiple of {config.head_dim}"
                )
    narrow = dataclasses.replace(config, **size)
    patcher = describe(net.patcher)
    patcher["init_args"]["dim"] = base_dim
    with torch.device("meta"):
        return Transfusion(net.head.out_features, narrow, build(patcher, Patcher), net.mask)
