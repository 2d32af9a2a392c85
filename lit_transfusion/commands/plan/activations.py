"""The bytes that a forward pass keeps for the backward pass. The parts of the net run on tensors without data."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from lit_transfusion.commands.plan.rows import Row
from lit_transfusion.commands.plan.setup import Setup
from lit_transfusion.model import Causal, NoisyImages
from lit_transfusion.model.rotary import rotary_angles


class Activations(NamedTuple):
    """Bytes for one row."""

    kept: int  # until the backward pass, by all blocks and around them
    recomputed: int  # by one block at a time

    @property
    def total(self) -> int:
        return self.kept + self.recomputed


class Attention(torch.autograd.Function):
    """What fused attention keeps: queries, keys, values, output and one float32 number for each query and head."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        output = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, output, torch.empty(q.shape[:-1], dtype=torch.float32))
        return output


def activations(setup: Setup, row: Row) -> dict[str, Activations]:
    """Count the activations of one row, for each value of `model.activation_checkpointing`.

    Blocks are not compiled; compiled ones keep less. A block with weights for each modality counts as a plain one. The
    visibility rule needs no memory.
    """
    length, size = setup.sequence_length, setup.size
    net = setup.net(n_layers=1, modality_weights="none")
    net.mask = Causal()  # a rule of the user may read values, which these tensors lack
    if setup.bf16:
        as_under_autocast(net)
    with FakeTensorMode(allow_non_fake_inputs=True):
        net.to_empty(device="cpu")  # fake: it allocates nothing
        (block,), net.transformer.blocks = net.transformer.blocks, nn.ModuleList()
        x = torch.empty(1, length, size.dim, requires_grad=True)
        rope = rotary_angles(torch.zeros(1, length, 1), size.head_dim, size.rope_theta)
        of_block = kept_by(lambda: block(x, Attention.apply, rope), block, setup.bf16, rope)
        zeros, targets = (
            torch.zeros(1, length, dtype=torch.int64),
            torch.zeros(row.num_targets + row.num_codes, dtype=torch.int64),
        )
        at = torch.zeros(row.num_images, setup.patches, dtype=torch.int64)
        images = NoisyImages(torch.empty(row.num_images, *setup.shape), at[:, 0], at)
        inputs = zeros, zeros, zeros, zeros, [images] if row.num_images and not setup.images_are_tokens else [], targets
        around = kept_by(lambda: net(*inputs), net, setup.bf16)  # embedding, patcher, last norm and head
    of_input = 4 * length * size.dim
    numbers = sum(m.out_features for m in block.modules() if isinstance(m, nn.Linear)) + size.dim
    of_products = length * ((2 if setup.bf16 else 4) * numbers + 4 * size.n_heads)  # and of attention
    return {
        "none": Activations(around + size.n_layers * of_block, 0),
        "selective": Activations(around + size.n_layers * (of_input + of_products), of_block - of_input),
        "full": Activations(around + size.n_layers * of_input, of_block - of_input),
    }


def kept_by(run: Callable[[], Any], module: nn.Module, bf16: bool, inputs: Iterable[Tensor] = ()) -> int:
    """Bytes of all different tensors that `run` keeps for its backward pass, without parameters and `inputs`.

    With `bf16` it runs under autocast.
    """
    known = {StorageWeakRef(x.untyped_storage()) for x in (*module.parameters(), *inputs)}
    kept: dict[StorageWeakRef, Tensor] = {}  # a reference keeps each storage alive, so that none is used twice

    def keep(x: Tensor) -> Tensor:
        storage = StorageWeakRef(x.untyped_storage())
        if storage not in known:
            kept[storage] = x
        return x

    with saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        result = run()
    del result
    return sum(x.untyped_storage().nbytes() for x in kept.values())


def as_under_autocast(net: nn.Module) -> None:
    """Give matrix products bf16 weights, and compute norms in float32, as autocast does on a GPU.

    So the copies of the weights that autocast makes are not among what is kept.
    """
    for part in net.modules():
        if is_product(part):
            part.to(torch.bfloat16)
        elif isinstance(part, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm):
            part.register_forward_pre_hook(lambda _, inputs: tuple(x.float() for x in inputs))


def is_product(part: nn.Module) -> bool:
    """Whether autocast computes a layer in bf16."""
    return isinstance(part, nn.Linear | nn.modules.conv._ConvNd)
