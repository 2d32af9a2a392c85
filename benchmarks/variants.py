"""Time of a training step with variants of the Transformer's blocks, compared with the paper's block."""

from dataclasses import replace

from benchmarks.batches import packed
from benchmarks.report import Table
from benchmarks.timing import interleave, show
from benchmarks.training import new_net, new_step
from lit_transfusion.model import SIZES

VARIANTS = {
    "the paper's block": {},
    "n_kv_heads 2": {"n_kv_heads": 2},
    "qk_norm": {"qk_norm": True},
    "norm_order post": {"norm_order": "post"},
    "rope 2d": {"rope": "2d"},
    "modality_weights ffn": {"modality_weights": "ffn"},
    "modality_weights all": {"modality_weights": "all"},
}


def run(quick: bool, device: str = "cpu") -> list[Table]:
    length = 512 if quick else 1024
    batch = packed(length, 1, 8)
    nets = {name: new_net(replace(SIZES["nano" if quick else "tiny"], **changes)) for name, changes in VARIANTS.items()}
    parameters = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    timing = interleave({name: new_step(net, batch) for name, net in nets.items()}, rounds=3 if quick else 15)
    table = Table(
        f"{'nano' if quick else 'tiny'}, one row of {length}, pictures of 64 patches",
        ["block", "parameters", "step", "to the paper's"],
        notes=["What each variant computes is compared with other implementations in tests/model/test_config.py."],
    )
    paper = timing["the paper's block"].median
    for name, time in timing.items():
        table.add(name, f"{parameters[name] / 1e6:.2f}M", time, f"**{show(time.median / paper)}x**")
    return [table]
