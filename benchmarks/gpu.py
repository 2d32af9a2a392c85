"""The paper's sizes on a GPU in bf16: with and without compilation, attention, memory, agreement with float32."""

from functools import partial

import torch
from torch.nn.attention.flex_attention import flex_attention

from benchmarks.attention import LAYOUTS, both_ways
from benchmarks.batches import packed
from benchmarks.report import Table
from benchmarks.sample import STEPS, cached, new_pipeline, per_token, random_prompt, write_with
from benchmarks.timing import gemm_rate, interleave, show
from benchmarks.training import least_flops, new_net, new_step
from lit_transfusion.data.types import PackedBatch
from lit_transfusion.model import SIZES, Bidirectional
from lit_transfusion.model.attention import dense, flex
from lit_transfusion.model.block_runner import block_runner
from lit_transfusion.model.flops import peak_bf16
from lit_transfusion.model.visibility import block_mask

VOCAB = 32_000
ROWS = {"nano": 4, "0.16B": 8, "0.37B": 8, "0.76B": 4, "1.4B": 2}  # rows of 4,096 positions, which fit in 80 GB


def run(quick: bool, device: str = "cuda") -> list[Table]:
    sizes = ["nano"] if quick else ["0.16B", "0.37B", "0.76B", "1.4B"]
    tables = [sizes_table(sizes, quick), attention_table(quick), memory_table(sizes[-1])]
    return [*tables, sampling_table(sizes, quick), agreement_table(20 if quick else 200)]


def on_gpu(batch: PackedBatch) -> PackedBatch:
    return PackedBatch(*(tensor.cuda() for tensor in batch))


def gpu_step(size: str, batch: PackedBatch, precision: torch.dtype | None = torch.bfloat16, **options):
    attention = options.pop("attention", "flex")
    with torch.device("cuda"):
        net = new_net(SIZES[size], VOCAB, attention=attention)
    net.transformer.run_block = block_runner(**options)
    return net, new_step(net, batch, precision=precision)


def sizes_table(sizes: list[str], quick: bool) -> Table:
    peak = peak_bf16(torch.cuda.get_device_name()) or gemm_rate("cuda", torch.bfloat16)
    table = Table(
        "A training step in bf16, rows of 4,096, pairs of 256 patches, V=32,000",
        ["size", "rows", "", "ms", "tokens/s", "MFU", "peak GB"],
        notes=[f"MFU: minimum FLOPs (visible pairs, targets only) over a peak of {peak / 1e12:.0f} TFLOP/s."],
    )
    for size in sizes:
        batch = on_gpu(packed(4096, ROWS[size], side=16, vocab_size=VOCAB))
        for name, options in {"eager": {}, "compiled": {"compile": True}}.items():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            net, step = gpu_step(size, batch, **options)
            timing = interleave({"step": step}, rounds=5 if quick else 15, device="cuda", warmup=3)["step"]
            tokens, flops = int(batch.lengths.sum()), least_flops(net, batch)
            table.add(
                size, ROWS[size], name, timing, show(tokens / timing.median), f"**{flops / timing.median / peak:.1%}**",
                f"{torch.cuda.max_memory_allocated() / 1e9:.1f}",
            )  # fmt: skip
            del net, step
    return table


def attention_table(quick: bool) -> Table:
    table = Table(
        "Attention, forward and backward, 4 rows, 16 heads of 64, bf16",
        ["L", "layout", "dense", "FlexAttention", "FlexAttention, FLASH", "dense / flex"],
        notes=["FLASH needs the package flash-attn-4; '-' if it is not available."],
    )
    for length in (1024,) if quick else (512, 1024, 2048, 4096, 8192):
        for layout, (side, long) in LAYOUTS.items():
            batch = on_gpu(packed(length, 4, side, long=long))
            lo, hi = Bidirectional().intervals(batch.document_ids, batch.image_ids)
            q, k, v, gradient = (
                torch.randn(4, 16, length, 64, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(4)
            )
            inputs = (lo, hi, q, k, v, gradient.detach())
            variants = {"dense": partial(both_ways, dense, *inputs), "flex": partial(both_ways, flex, *inputs)}
            try:
                both_ways(flash, *inputs)
                variants["flash"] = partial(both_ways, flash, *inputs)
            except Exception:  # for example a missing package, or no kernel for this mask or GPU
                pass
            for tensor, reference in zip(variants["flex"](), variants["dense"](), strict=True):
                torch.testing.assert_close(tensor, reference, atol=0.05, rtol=0.05)
            timing = interleave(variants, rounds=15, device="cuda", warmup=3)
            ratio = timing["dense"].median / timing["flex"].median
            table.add(length, layout, timing["dense"], timing["flex"], timing.get("flash", "-"), f"**{show(ratio)}x**")
    return table


def flash(lo: torch.Tensor, hi: torch.Tensor):
    kernel = torch.compile(flex_attention, dynamic=False)
    return partial(kernel, block_mask=block_mask(lo, hi), kernel_options={"BACKEND": "FLASH"})


def memory_table(size: str) -> Table:
    table = Table(f"Memory of a step, {size}, 4,096 positions a row", ["activation checkpointing", "ms", "peak GB"])
    batch = on_gpu(packed(4096, ROWS[size], side=16, vocab_size=VOCAB))
    for name in ("none", "selective", "full"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        net, step = gpu_step(size, batch, compile=True, activation_checkpointing=name)
        timing = interleave({"step": step}, rounds=5, device="cuda", warmup=3)["step"]
        table.add(name, timing, f"{torch.cuda.max_memory_allocated() / 1e9:.1f}")
        del net, step
    return table


def sampling_table(sizes: list[str], quick: bool, device: str = "cuda") -> Table:
    table = Table(
        "Sampling in bf16 after 256 positions: a guided denoising step of 256 patches, and a token",
        ["size", "batch", "ms per step", "compiled", "ratio", "ms per token", "compiled", "ratio"],
        notes=[
            "Compiled: the blocks are compiled, and a step is replayed as a CUDA graph after it is recorded. Before "
            "that, each batch of images needs eight plain passes, a warm-up and a recording, which are not included."
        ],
    )
    prefix, (few, many) = 256, (2, 18 if quick else 66)
    for size in sizes:
        for count in (1, 8):
            variants = {}
            for compiled in (False, True):
                with torch.device(device):
                    pipeline = new_pipeline(SIZES[size], side=16)
                pipeline.net.to(torch.bfloat16)
                if compiled:
                    pipeline.compile()
                variants["step", compiled] = cached(pipeline, [random_prompt(prefix)] * count, 3.0)
                for tokens in (few, many):
                    variants[tokens, compiled] = write_with(pipeline, prefix, count, tokens)
            timing = interleave(variants, rounds=3 if quick else 9, device=device, warmup=2)
            steps = [timing["step", compiled].median / STEPS for compiled in (False, True)]
            tokens = [
                per_token(timing[few, compiled], timing[many, compiled], many - few) for compiled in (False, True)
            ]
            cells = []
            for plain, compiled in (steps, tokens):
                cells += [show(1e3 * plain), show(1e3 * compiled), f"**{plain / compiled:.2f}x**"]
            table.add(size, count, *cells)
    return table


def agreement_table(steps: int) -> Table:
    """Compare the losses of float32 on the CPU with bf16 on the GPU, for the same net and batch.

    Noise is drawn on each device, so single steps differ, but the averages must agree.
    """
    batch = packed(256, 2, side=8, vocab_size=VOCAB)
    cpu = new_step(new_net(SIZES["nano"], VOCAB), batch)
    _, gpu = gpu_step("nano", on_gpu(batch), attention="dense")
    curves = torch.tensor([[float(cpu()), float(gpu())] for _ in range(steps)])
    table = Table(f"Losses over {steps} steps", ["steps", "CPU, float32", "GPU, bf16", "difference"])
    for start in range(0, steps, max(steps // 5, 1)):
        mean = curves[start : start + max(steps // 5, 1)].mean(0)
        table.add(f"from {start}", *(show(float(x)) for x in mean), f"{float(mean[1] / mean[0] - 1):.1%}")
    end = curves[-steps // 5 :].mean(0)
    assert abs(end[1] / end[0] - 1) < 0.05, "bf16 on the GPU and float32 on the CPU learn differently"
    return table
