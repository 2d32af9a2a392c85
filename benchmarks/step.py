"""Time of a whole training step, from a plain version to ours, one change at a time, and compared with GEMM."""

import torch

from benchmarks.batches import CHANNELS, packed
from benchmarks.report import Table
from benchmarks.timing import gemm_rate, interleave, show
from benchmarks.training import least_flops, new_net, new_step
from lit_transfusion.data.packing import empty_group
from lit_transfusion.model import SIZES, TransformerConfig
from lit_transfusion.model.block_runner import block_runner

SMALL = TransformerConfig(dim=512, n_layers=8, n_heads=8, multiple_of=64)  # 30M with 8,192 tokens


def run(quick: bool, device: str = "cpu") -> list[Table]:
    nano = ("d128 L4, 64 patches", SIZES["nano"], 512, 8)
    cases = [
        ("d256 L6, 64 patches", SIZES["tiny"], 2048, 8),
        ("d256 L6, 256 patches", SIZES["tiny"], 2048, 16),
        ("d512 L8, 64 patches", SMALL, 1024, 8),
        ("d512 L8, 256 patches", SMALL, 2048, 16),
    ]
    return [ladder(*case, quick) for case in ([nano] if quick else cases)] + [without_images(quick)]


def ladder(name: str, size: TransformerConfig, length: int, side: int, quick: bool) -> Table:
    """Each row has all changes of the rows above it, but for the last two, which are alternatives."""
    batch = packed(length, 1, side)
    steps, losses = {}, {}
    for rung, options in {
        "plain: dense mask, all logits, loop AdamW": {"attention": "dense", "all_logits": True, "fused": False},
        "logits at targets": {"attention": "dense", "fused": False},
        "fused AdamW": {"attention": "dense"},
        "attention by document": {},
        "... and compiled": {"compile": True},
        "... and full activation checkpointing": {"activation_checkpointing": "full"},
    }.items():
        if quick and options.get("compile"):
            continue  # compilation takes half a minute
        net = new_net(size, attention=options.pop("attention", "split"))
        runner = {key: options.pop(key) for key in ("compile", "activation_checkpointing") if key in options}
        net.transformer.run_block = block_runner(**runner)
        steps[rung] = new_step(net, batch, **options)
        losses[rung] = [steps[rung]() for _ in range(2)]
    for loss in losses.values():
        torch.testing.assert_close(loss, next(iter(losses.values())), atol=1e-3, rtol=1e-4)
    flops, tokens = least_flops(net, batch), int(batch.lengths.sum())
    peak = gemm_rate()
    timing = interleave(steps, rounds=3 if quick else 7, warmup=0)
    peak = max(peak, gemm_rate())
    table = Table(
        f"{name}, one row of {length}",
        ["step", "ms", "tokens/s", "to plain", "GFLOP/s of the minimum", "of the best GEMM"],
        notes=[
            f"{flops / 1e9:.1f} GFLOP minimum; {len(batch.target_positions)} of {length} positions have a target. "
            f"Best GEMM {peak / 1e9:.0f} GFLOP/s. The losses of the first two steps were asserted equal.",
        ],
    )
    plain = next(iter(timing.values())).median
    for rung, time in timing.items():
        rate = flops / time.median
        table.add(
            rung, time, show(tokens / time.median), f"**{plain / time.median:.2f}x**", show(rate / 1e9),
            f"{rate / peak:.0%} [{flops / time.minimum / peak:.0%}]",
        )  # fmt: skip
    return table


def without_images(quick: bool) -> Table:
    """The cost of the image path without images. It runs in each step, so that all ranks have its gradients."""
    size = SIZES["nano" if quick else "tiny"]
    batch = packed(512, 1, side=8)
    none = empty_group((CHANNELS, 8, 8))
    text = batch._replace(image_ids=torch.full_like(batch.image_ids, -1), image_groups=(none,))
    net = new_net(size)
    step = new_step(net, text)
    t_emb = torch.zeros(0, size.dim)
    hidden = torch.zeros(0, 64, size.dim)

    def image_path() -> None:
        patches, skips = net.patcher.patchify(none.images, net.time_embedding(none.max_timesteps) + t_emb)
        (net.patcher.unpatchify(hidden + patches.sum(), t_emb, skips, (8, 8)).sum() + patches.sum()).backward()

    timing = interleave({"step": step, "image path": image_path}, rounds=5 if quick else 21)
    table = Table("A row of 512 without an image", ["whole step", "of it the image path", "share"])
    share = timing["image path"].median / timing["step"].median
    table.add(timing["step"], timing["image path"], f"**{share:.2%}**")
    return table
