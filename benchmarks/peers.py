"""Comparison with transfusion-pytorch on the same documents, and with transformers' Llama on as many positions."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.batches import CHANNELS, MARKERS, flat, packed, pairs
from benchmarks.report import Table
from benchmarks.timing import Timing, interleave, show
from benchmarks.training import new_net, new_step
from lit_transfusion.data.packing import collate
from lit_transfusion.model import SIZES, TransformerConfig
from lit_transfusion.model.block_runner import block_runner
from lit_transfusion.model.config import llama_hidden_dim

SIDE = 8


def run(quick: bool, device: str = "cpu") -> list[Table]:
    size = SIZES["nano" if quick else "tiny"]
    return [beside_transfusion_pytorch(size, quick), beside_llama(size, quick)]


def new_theirs(size: TransformerConfig) -> torch.nn.Module:
    from transfusion_pytorch import Transfusion

    torch.manual_seed(0)
    heads = {"heads": size.n_heads, "dim_head": size.dim // size.n_heads}
    return Transfusion(
        num_text_tokens=8192,
        dim_latent=CHANNELS,
        channel_first_latent=True,
        modality_default_shape=(SIDE, SIDE),
        modality_num_dim=2,
        transformer={"dim": size.dim, "depth": size.n_layers, **heads},
    )


def beside_transfusion_pytorch(size: TransformerConfig, quick: bool) -> Table:
    documents = pairs(6 if quick else 18, SIDE)
    flats = [flat(document) for document in documents]
    length = -(-sum(len(document.tokens) for document in flats) // 32) * 32
    batch = collate([flats], length, MARKERS.pad, (CHANNELS, SIDE, SIDE))
    theirs = new_theirs(size)
    inputs = [[torch.tensor(d.segments[0].token_ids), d.segments[1].latents] for d in documents]
    nets = {"lit_transfusion": new_net(size), "transfusion-pytorch": theirs}
    steps = {
        "lit_transfusion": new_step(nets["lit_transfusion"], batch),
        "transfusion-pytorch": step_of(theirs, lambda: theirs(inputs)),
    }
    flops = {}
    for name, step in steps.items():
        with FlopCounterMode(display=False) as counter:
            step()
        flops[name] = counter.get_total_flops()
    if not quick:  # compilation takes half a minute
        name = "lit_transfusion, compiled"
        nets[name] = new_net(size)
        nets[name].transformer.run_block = block_runner(compile=True)
        steps[name], flops[name] = new_step(nets[name], batch), flops["lit_transfusion"]
    timing = interleave(steps, rounds=3 if quick else 9)
    table = Table(
        f"A training step on {len(documents)} pairs of {SIDE * SIDE} patches, dim {size.dim}, {size.n_layers} layers",
        ["", "parameters", "ms", "real tokens/s", "GFLOP counted", "GFLOP/s", "tokens/s, ratio", "GFLOP/s, ratio"],
        notes=[
            "The nets are not the same: theirs has an adaptive norm with a time vector for each token (twice the "
            "products of the layer itself), logits at all positions, U-Net skips over its layers, and rectified flow "
            "instead of DDPM. So tokens/s compares the result, and GFLOP/s how well each uses the machine. Both are "
            "counted by torch's FlopCounterMode, and the optimiser is the same.",
        ],
    )
    tokens, peer = int(batch.lengths.sum()), "transfusion-pytorch"
    for name, time in timing.items():
        table.add(
            name,
            f"{sum(p.numel() for p in nets[name].parameters()) / 1e6:.1f}M",
            time,
            show(tokens / time.median),
            show(flops[name] / 1e9),
            show(flops[name] / time.median / 1e9),
            ratios(timing[peer], time),
            ratios(timing[peer], time, flops[name] / flops[peer]),
        )
    return table


def ratios(theirs: Timing, ours: Timing, factor: float = 1.0) -> str:
    """The ratio of the medians, and of the minimum times, which depend less on other processes."""
    return f"**{factor * theirs.median / ours.median:.2f}x** [{factor * theirs.minimum / ours.minimum:.2f}x]"


def beside_llama(size: TransformerConfig, quick: bool) -> Table:
    from transformers import LlamaConfig, LlamaForCausalLM

    length = 512 if quick else 2048
    batch = packed(length, 1, SIDE)
    torch.manual_seed(0)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8192,
            hidden_size=size.dim,
            intermediate_size=llama_hidden_dim(size.dim, size.multiple_of),
            num_hidden_layers=size.n_layers,
            num_attention_heads=size.n_heads,
            attn_implementation="sdpa",
            use_cache=False,
        )
    )
    tokens = torch.randint(8192, (1, length))
    variants = {
        "transformers' Llama: text, causal, all logits": step_of(llama, lambda: llama(tokens, labels=tokens).loss),
        "ours: pairs of 64 patches": new_step(new_net(size), batch),
        "ours, one document of 256-patch images": new_step(new_net(size), packed(length, 1, 16, long=True)),
    }
    timing = interleave(variants, rounds=3 if quick else 7)
    table = Table(
        f"A training step on {length} positions, dim {size.dim}, {size.n_layers} layers, 8,192 tokens",
        ["", "ms", "positions/s", "ratio"],
        notes=[
            "Shows the cost of images, and the gain from masks and logits at targets. All with fused AdamW, clipping."
        ],
    )
    first = next(iter(timing.values())).median
    for name, time in timing.items():
        table.add(name, time, show(length / time.median), f"**{first / time.median:.2f}x**")
    return table


def step_of(net: torch.nn.Module, loss):
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        loss().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step
