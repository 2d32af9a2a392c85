"""Ways to run a block of the Transformer in training: plain, compiled, or with activation checkpointing."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

RunBlock = Callable[..., Tensor]  # (block, x, attend, rope) → x
ActivationCheckpointing = Literal["none", "selective", "full"]

# What "selective" saves: the results of matrix products and of attention. Everything else is cheap to recompute.
EXPENSIVE = {
    torch.ops.aten.mm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.higher_order.flex_attention,
}


def as_it_is(block: nn.Module, *inputs: object) -> Tensor:
    return block(*inputs)


def block_runner(
    compile: bool = False,
    activation_checkpointing: ActivationCheckpointing = "none",
    dropout: float = 0.0,
    grouped: bool = False,
) -> RunBlock:
    """Return a function for the `run_block` of a Transformer. Results are the same up to rounding.

    Args:
        compile: Compile the block, once for all layers. The shapes do not depend on how a batch is packed, so another
            batch of the same size needs no new compilation. (The backend `split` is not compiled. With it, "selective"
            leaves nothing to compile.)
        activation_checkpointing: What the backward pass recomputes to save memory: nothing ("none"), everything except
            matrix products and attention ("selective"), or the whole block ("full").
        dropout: That of the blocks. Without it they draw no random numbers, whose state then need not be saved.
        grouped: Whether positions are grouped by modality. The sizes of the groups change from batch to batch, so
            compilation must not depend on them.
    """
    run: RunBlock = as_it_is
    recomputed = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=dropout > 0)
    if activation_checkpointing == "selective":  # inside the compiled function, since it decides per operation
        run = functools.partial(recomputed, run, context_fn=selective_contexts)
    if compile:
        run = torch.compile(run, dynamic=None if grouped else False)
    if activation_checkpointing == "full":
        run = functools.partial(recomputed, run)
    return run


def selective_contexts() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
    return create_selective_checkpoint_contexts(save_expensive_results)


def save_expensive_results(
    context: SelectiveCheckpointContext, op: object, *args: object, **kwargs: object
) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in EXPENSIVE else CheckpointPolicy.PREFER_RECOMPUTE
