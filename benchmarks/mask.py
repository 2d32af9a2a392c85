"""Time to create the mask: a BlockMask from the intervals, by FlexAttention's own function, and a dense mask."""

import torch
from torch.nn.attention.flex_attention import create_block_mask

from benchmarks.batches import packed
from benchmarks.report import Table
from benchmarks.timing import interleave, show
from lit_transfusion.model import Bidirectional
from lit_transfusion.model.visibility import block_mask, cuts, dense_mask, mask_mod


def run(quick: bool, device: str = "cpu") -> list[Table]:
    table = Table(
        "Pairs of 64 patches",
        ["B", "L", "intervals", "cuts", "dense mask", "BlockMask of the intervals", "create_block_mask", "ratio"],
        notes=["Both BlockMasks were asserted to have the same tiles. The ratio compares the last two."],
    )
    for rows, length in ((1, 512), (4, 1024)) if quick else ((1, 512), (8, 1024), (1, 4096), (4, 4096)):
        batch = packed(length, rows, side=8)
        ids = batch.document_ids, batch.image_ids
        lo, hi = Bidirectional().intervals(*ids)

        def theirs(lo=lo, hi=hi, rows=rows, length=length):
            return create_block_mask(mask_mod(lo, hi), rows, None, length, length, device=lo.device)

        assert torch.equal(theirs().to_dense(), block_mask(lo, hi).to_dense())
        timing = interleave(
            {
                "intervals": lambda ids=ids: Bidirectional().intervals(*ids),
                "cuts": lambda lo=lo, hi=hi: cuts(lo, hi),
                "dense": lambda lo=lo, hi=hi: dense_mask(lo, hi),
                "ours": lambda lo=lo, hi=hi: block_mask(lo, hi),
                "theirs": theirs,
            },
            rounds=3 if quick else 7,
        )
        table.add(rows, length, *timing.values(), f"**{show(timing['theirs'].median / timing['ours'].median)}x**")
    return [table]
