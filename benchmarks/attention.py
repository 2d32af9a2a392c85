"""Time of each attention backend by length and layout, compared with dense attention with the same mask."""

from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.batches import packed
from benchmarks.report import Table
from benchmarks.timing import interleave, show
from lit_transfusion.model import Bidirectional
from lit_transfusion.model.attention import BACKENDS
from lit_transfusion.model.visibility import block_mask

HEADS, HEAD_DIM = 8, 64
LAYOUTS = {"pairs of 64 patches": (8, False), "pairs of 256 patches": (16, False), "one document": (16, True)}


def run(quick: bool, device: str = "cpu") -> list[Table]:
    table = Table(
        f"Forward and backward, one row, {HEADS} heads of {HEAD_DIM}, float32",
        ["L", "layout", "visible", "causal, no mask", "eager", "dense", "split", "dense / split"],
        notes=[
            "The cost of masks and cuts is included in each variant. Outputs and gradients were asserted equal before, "
            "but for the causal variant, which has another mask and is a lower bound. `visible`: share of all pairs, "
            "and of FlexAttention's 128 x 128 tiles.",
        ],
    )
    for length in (512,) if quick else (512, 1024, 2048, 4096):
        for layout, (side, long) in LAYOUTS.items():
            batch = packed(length, 1, side, long=long)
            lo, hi = Bidirectional().intervals(batch.document_ids, batch.image_ids)
            shape = (1, length, HEADS, HEAD_DIM)
            q, k, v, gradient = (torch.randn(shape).transpose(1, 2).requires_grad_() for _ in range(4))
            names = ["eager", "dense", "split"] if length <= 1024 else ["dense", "split"]
            variants = {name: partial(both_ways, BACKENDS[name], lo, hi, q, k, v, gradient.detach()) for name in names}
            check({name: variant() for name, variant in variants.items()})
            variants["causal"] = partial(both_ways, causal, lo, hi, q, k, v, gradient.detach())
            timing = interleave(variants, rounds=3 if length == 4096 else 7)
            blocks = block_mask(lo, hi).to_dense()
            visible = f"{(hi - lo).sum() / length**2:.1%}, tiles {blocks.float().mean():.0%}"
            ratio = timing["dense"].median / timing["split"].median
            table.add(
                length,
                layout,
                visible,
                timing["causal"],
                timing.get("eager", "-"),
                timing["dense"],
                timing["split"],
                f"**{show(ratio)}x**",
            )
    return [table]


def both_ways(backend, lo, hi, q, k, v, gradient) -> list[torch.Tensor]:
    output = backend(lo, hi)(q, k, v)
    return [output, *torch.autograd.grad(output, (q, k, v), gradient)]


def causal(lo, hi):
    return partial(F.scaled_dot_product_attention, is_causal=True)


def check(results: dict[str, list[torch.Tensor]]) -> None:
    for result in results.values():
        for tensor, reference in zip(result, results["dense"], strict=True):
            torch.testing.assert_close(tensor, reference, atol=1e-4, rtol=1e-3)
