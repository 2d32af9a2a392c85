"""Time of the head and its loss, at all positions or at targets only, and the memory of a whole step."""

import multiprocessing
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.batches import packed
from benchmarks.report import Table
from benchmarks.timing import interleave, show
from benchmarks.training import new_net, new_step
from lit_transfusion.model import SIZES
from lit_transfusion.model.block_runner import block_runner
from lit_transfusion.model.cross_entropy import CrossEntropy

DIM, POSITIONS, TEXT = 256, 1024, 256


def run(quick: bool, device: str = "cpu") -> list[Table]:
    return [head(quick), memory(quick)]


def head(quick: bool) -> Table:
    table = Table(
        f"Head and loss, forward and backward, D={DIM}, {POSITIONS} positions of which {TEXT} have a target",
        ["V", "all positions", "targets, F.cross_entropy", "targets, gradient in place (ours)", "to all positions"],
        notes=["Losses and gradients of the three were asserted equal."],
    )
    for vocab_size in (8192,) if quick else (8192, 32_000, 128_000):
        torch.manual_seed(0)
        weight = torch.randn(vocab_size, DIM).div_(DIM**0.5).requires_grad_()
        hidden = torch.randn(POSITIONS, DIM, requires_grad=True)
        text = torch.randperm(POSITIONS)[:TEXT].sort().values
        labels = torch.full((POSITIONS,), -100)
        labels[text] = torch.randint(vocab_size, (TEXT,))

        def everywhere(weight=weight, hidden=hidden, labels=labels):
            return F.cross_entropy(hidden @ weight.T, labels, reduction="sum")

        def at_targets(weight=weight, hidden=hidden, labels=labels, text=text):
            return F.cross_entropy(hidden[text] @ weight.T, labels[text], reduction="sum")

        def in_place(weight=weight, hidden=hidden, labels=labels, text=text):
            return CrossEntropy.apply(hidden[text] @ weight.T, labels[text])[0].sum()

        losses = {"all": everywhere, "targets": at_targets, "ours": in_place}
        variants = {
            name: lambda loss=loss, inputs=(weight, hidden): (value := loss(), *torch.autograd.grad(value, inputs))
            for name, loss in losses.items()
        }
        for variant in variants.values():
            for tensor, reference in zip(variant(), variants["all"](), strict=True):
                torch.testing.assert_close(tensor, reference, atol=1e-4, rtol=1e-4)
        timing = interleave(variants, rounds=3 if quick else 5)
        table.add(vocab_size, *timing.values(), f"**{timing['all'].median / timing['ours'].median:.2f}x**")
    return table


def memory(quick: bool) -> Table:
    length, rows, vocab_size = (512, 1, 32_000) if quick else (2048, 4, 32_000)
    variants = {
        "all logits, dense mask": {"attention": "dense", "all_logits": True},
        "logits at targets, attention by document": {},
        "... and selective activation checkpointing": {"activation_checkpointing": "selective"},
        "... and full activation checkpointing": {"activation_checkpointing": "full"},
    }
    table = Table(
        f"Peak memory of two steps, d256 L6, V={vocab_size}, {rows} rows of {length}, pairs of 64 patches",
        ["step", "MB", "to all logits"],
        notes=["Peak memory of a new process, minus its memory before the first step (weights)."],
    )
    first = None
    for name, options in list(variants.items())[: 2 if quick else None]:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak = pool.apply(peak_of_two_steps, (length, rows, vocab_size, options))
        first = first or peak
        table.add(name, show(peak / 1e6), f"**{peak / first:.2f}**")
    return table


def memory_of_process(what: str) -> int:
    """Bytes of memory: VmRSS (now) or VmHWM (peak). getrusage would include the parent process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return 1024 * int(line.split()[1])


def peak_of_two_steps(length: int, rows: int, vocab_size: int, options: dict) -> int:
    torch.set_num_threads(1)
    net = new_net(SIZES["tiny"], vocab_size, attention=options.pop("attention", "split"))
    net.transformer.run_block = block_runner(activation_checkpointing=options.pop("activation_checkpointing", "none"))
    step = new_step(net, packed(length, rows, side=8, vocab_size=vocab_size), **options)
    before = memory_of_process("VmRSS")
    for _ in range(2):
        step()
    return memory_of_process("VmHWM") - before
