"""Beside others: transfusion-pytorch on the same documents, and transformers' Llama on as many positions."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.batches import CHANNELS, MARKERS, flat, packed, pairs
from benchmarks.report import Table
from benchmarks.timing import interleave, show
from benchmarks.training import least_flops, new_net, new_step
from lit_transfusion.data.packing import collate
from lit_transfusion.model import SIZES
from lit_transfusion.model.transformer import llama_hidden_dim

SIDE = 8


def run(quick: bool, device: str = "cpu") -> list[Table]:
    size = SIZES["nano" if quick else "tiny"]
    return [beside_transfusion_pytorch(size, quick), beside_llama(size, quick)]


def beside_transfusion_pytorch(size, quick: bool) -> Table:
    from transfusion_pytorch import Transfusion

    documents = pairs(6 if quick else 18, SIDE)
    flats = [flat(document) for document in documents]
    length = -(-sum(len(document.tokens) for document in flats) // 128) * 128
    batch = collate([flats], length, MARKERS.pad, (CHANNELS, SIDE, SIDE))
    torch.manual_seed(0)
    theirs = Transfusion(
        num_text_tokens=8192,
        dim_latent=CHANNELS,
        channel_first_latent=True,
        modality_default_shape=(SIDE, SIDE),
        modality_num_dim=2,
        transformer={
            "dim": size.dim,
            "depth": size.n_layers,
            "heads": size.n_heads,
            "dim_head": size.dim // size.n_heads,
        },
    )
    inputs = [[torch.tensor(d.segments[0].token_ids), d.segments[1].latents] for d in documents]
    their_step = step_of(theirs, lambda: theirs(inputs))
    net = new_net(size)
    our_step = new_step(net, batch)
    with FlopCounterMode(display=False) as counter:
        theirs(inputs).backward()
    theirs.zero_grad()
    timing = interleave({"ours": our_step, "theirs": their_step}, rounds=3 if quick else 7)
    table = Table(
        f"A training step on {len(documents)} pairs of {SIDE * SIDE} patches, dim {size.dim}, {size.n_layers} layers",
        ["", "parameters", "ms", "real tokens/s", "GFLOP counted", "GFLOP/s", "tokens/s, ratio", "GFLOP/s, ratio"],
        notes=[
            "Not the same net: theirs has an adaptive norm with a time vector for each token (twice the products of "
            "the layer itself), logits everywhere, U-Net skips over its layers, and rectified flow in place of DDPM. "
            "So tokens/s compares what one gets, GFLOP/s how well each uses the machine. Theirs are counted by torch's "
            "FlopCounterMode, ours are the least needed.",
        ],
    )
    tokens = int(batch.lengths.sum())
    flops = {"ours": least_flops(net, batch), "theirs": counter.get_total_flops()}
    names = {"ours": "lit_transfusion", "theirs": "transfusion-pytorch"}
    nets = {"ours": net, "theirs": theirs}
    for key in ("ours", "theirs"):
        seconds, rate = timing[key].median, flops[key] / timing[key].median
        table.add(
            names[key],
            f"{sum(p.numel() for p in nets[key].parameters()) / 1e6:.1f}M",
            timing[key],
            show(tokens / seconds),
            show(flops[key] / 1e9),
            show(rate / 1e9),
            f"**{timing['theirs'].median / seconds:.2f}x**",
            f"**{rate / (flops['theirs'] / timing['theirs'].median):.2f}x**",
        )
    return table


def beside_llama(size, quick: bool) -> Table:
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
        notes=["What the image path costs, and what masks and logits give back. Both with fused AdamW and clipping."],
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
