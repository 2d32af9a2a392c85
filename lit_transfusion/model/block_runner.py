"""How training runs a block of the Transformer: as it is, compiled, or keeping less and computing it again."""

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

RunBlock = Callable[..., Tensor]  # (block, x, rope, attend) → x
ActivationCheckpointing = Literal["none", "selective", "full"]

# What "selective" keeps: the results of matrix products and of attention. All else is cheap to compute again.
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


def block_runner(compile: bool = False, activation_checkpointing: ActivationCheckpointing = "none") -> RunBlock:
    """What a Transformer's `run_block` may be set to. Results are the same up to rounding.

    Args:
        compile: Compile the block, once for all layers. Nothing of its shapes depends on how a batch is packed, so that
            no other batch of the same size compiles again. (Where attention goes document by document, on a CPU, it
            stays outside, and "selective" leaves nothing to compile.)
        activation_checkpointing: What the backward pass computes again, so that it need not be kept: "none" of it,
            all but matrix products and attention ("selective"), or the whole block ("full").
    """
    run: RunBlock = as_it_is
    # A block draws no random numbers; their state need not be kept.
    recomputed = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    if activation_checkpointing == "selective":  # inside what is compiled, since it looks at single operations
        run = functools.partial(recomputed, run, context_fn=selective_contexts)
    if compile:
        run = torch.compile(run, dynamic=False)
    if activation_checkpointing == "full":
        run = functools.partial(recomputed, run)
    return run


def selective_contexts() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
    return create_selective_checkpoint_contexts(keep_what_is_expensive)


def keep_what_is_expensive(
    context: SelectiveCheckpointContext, op: object, *args: object, **kwargs: object
) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in EXPENSIVE else CheckpointPolicy.PREFER_RECOMPUTE
