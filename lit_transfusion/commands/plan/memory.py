"""The memory of one device in training, by kind.

Counted: weights, gradients and optimiser state in float32, each tensor at its exact size; the average of the weights;
the bf16 copies of weights that autocast keeps for the backward pass; the buckets of DDP; what FSDP2 gathers (see
`gathered`); the weights of the codec; activations (see `activations.py`); logits, and one float32 piece of them in the
loss. Rows have no padding, and all rows of the batch are of the kind that needs most (see `rows.py`).

Not counted: the context of CUDA, buffers of NCCL and of kernels, fragmentation, gradients of activations, what the
codec needs while it encodes, an auxiliary loss, clean copies of images, and what `text_rate` saves.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lit_transfusion.commands.plan.activations import activations, is_product
from lit_transfusion.commands.plan.rows import rows_of
from lit_transfusion.commands.plan.setup import Setup
from lit_transfusion.errors import InputError
from lit_transfusion.model import Transfusion
from lit_transfusion.model.cross_entropy import PIECE
from lit_transfusion.serialization import find_class
from lit_transfusion.training.optim import decay_groups


class Memory(NamedTuple):
    """Bytes by kind."""

    fixed: dict[str, int]
    of_row: dict[str, int]

    def by_kind(self, batch_size: int) -> dict[str, int]:
        return self.fixed | {kind: batch_size * count for kind, count in self.of_row.items()}

    def total(self, batch_size: int) -> int:
        return sum(self.by_kind(batch_size).values())

    def largest_batch(self, limit: float) -> int:
        """The largest batch_size whose total is at most `limit` bytes; 0 if none is."""
        return max(0, int((limit - sum(self.fixed.values())) // sum(self.of_row.values())))


def memory(setup: Setup, net: Transfusion, devices: int) -> dict[str, Memory]:
    """The memory of each of `devices` devices that train the net, for each value of `model.activation_checkpointing`.

    Args:
        setup: The run.
        net: Its net, which may be on the meta device.
        devices: Number of devices.
    """
    parameters = count(net.parameters())
    shards = devices if setup.sharded else 1
    cast = outside_blocks(net) if setup.sharded else net.modules()
    fixed = {
        "weights": 4 * parameters // shards,
        "gradients": 4 * parameters // shards,
        "optimiser state": optimizer_bytes(setup) // shards,
        "average (EMA)": 4 * parameters // shards if setup.ema else 0,
        "bf16 copies of weights": 2 * sum(count(m.parameters()) for m in cast if is_product(m)) if setup.bf16 else 0,
        "buckets of DDP": 4 * parameters if devices > 1 and not setup.sharded else 0,
        "gathered by FSDP2": gathered(net, setup.bf16) if devices > 1 and setup.sharded else 0,
        "codec": setup.latents.codec_bytes,
    }
    fixed = {kind: number for kind, number in fixed.items() if number}
    counted = [
        (setup.vocab_size * (row.num_targets + row.num_codes), activations(setup, row)) for row in rows_of(setup)
    ]
    return {kind: with_rows(fixed, [(n, a[kind].total) for n, a in counted], setup.bf16) for kind in counted[0][1]}


def with_rows(fixed: dict[str, int], rows: Sequence[tuple[int, int]], bf16: bool) -> Memory:
    """The memory with rows of the kind that needs most; `rows` has the logits and the bytes of activations of each."""
    width = 2 if bf16 else 4
    logits, kept = max(rows, key=lambda row: width * row[0] + row[1])
    loss = {"piece of the loss": 4 * min(PIECE["cuda"], logits)} if bf16 else {}
    return Memory(fixed | loss, {"activations": kept, "logits": width * logits})


def gathered(net: Transfusion, bf16: bool) -> int:
    """Bytes that FSDP2 needs on each device besides its shards, at most.

    Two blocks are gathered, since the next one is fetched during the first. All other weights stay gathered, in
    float32. The whole gradients of a block and of the other weights, and a float32 copy to sum them, are there until
    they are summed.
    """
    block, width = count(net.transformer.blocks[0].parameters()), 2 if bf16 else 4
    others = count(net.parameters()) - count(net.transformer.blocks.parameters())
    return block * (2 * width + width + 4) + others * (4 + 4 + 4)


def optimizer_bytes(setup: Setup) -> int:
    """Bytes of the optimiser's state after a step, which it makes on tensors without data.

    Raises:
        InputError: The optimiser reads values of the weights in its step.
    """
    cls = find_class(setup.optimizer["class_path"])
    net = setup.net()
    with FakeTensorMode(allow_non_fake_inputs=True):
        net.to_empty(device="cpu")  # fake: it allocates nothing
        for parameter in net.parameters():
            parameter.grad = torch.empty_like(parameter)
        optimizer = cls(decay_groups(net), **setup.optimizer["init_args"])
        try:
            optimizer.step()
        except RuntimeError as error:
            raise InputError(
                f"model.optimizer {cls.__name__} needs the values of weights in its step, so its memory cannot be "
                "planned; use another one, such as AdamW"
            ) from error
    states = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.numel() * value.element_size() for value in states if isinstance(value, torch.Tensor))


def outside_blocks(net: Transfusion) -> list[nn.Module]:
    inside = set(net.transformer.blocks.modules())
    return [module for module in net.modules() if module not in inside]


def count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
