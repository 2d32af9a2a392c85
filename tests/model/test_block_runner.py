"""Tests that plain, compiled and checkpointed blocks agree, and that a block is compiled once."""

import functools
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from lit_transfusion.model import Bidirectional, Transformer, TransformerConfig
from lit_transfusion.model.attention import attention
from lit_transfusion.model.block_runner import as_it_is, block_runner

SIZE = TransformerConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=24)
LAYOUTS = ["tAAAAt|tBBt|tt", "tt|tAAAAtBBBBt", "AAAAAAAAAAAA", "t|t|t|t|tBBt|ttt"]
row = st.lists(st.sampled_from(["t", "ttt", "AAAA", "BB", "|"]), max_size=5).map("".join)


def run(net, ids, backend):
    """Return the output and all gradients, for random inputs that are the same each time."""
    x = torch.randn(*ids[0].shape, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    attend = attention(backend, *Bidirectional().intervals(*ids), x.dtype)
    output = net(x, torch.arange(x.shape[1]).expand(len(x), -1)[..., None], ids[1] >= 0, attend)
    return output, *torch.autograd.grad(output.square().sum(), [x, *net.parameters()])


@pytest.fixture(params=["none", pytest.param("all", marks=pytest.mark.slow)])
def net(request):
    torch.manual_seed(0)
    net = Transformer(replace(SIZE, modality_weights=request.param))
    net.reset_parameters()
    return net


@pytest.mark.parametrize(
    ("compile", "activation_checkpointing", "backend"),
    list(product([False, True], ["none", "selective", "full"], ["dense", "split"])),
)
def test_all_runners_agree(net, lay_out, monkeypatch, compile, activation_checkpointing, backend):
    """The real compiler takes long; the slow test below uses it."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    runner = block_runner(compile, activation_checkpointing)
    for layout in LAYOUTS[:2]:
        ids = lay_out(layout, length=16)
        net.run_block = as_it_is
        expected = run(net, ids, "eager")
        net.run_block = runner
        torch.testing.assert_close(run(net, ids, backend), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["dense", "split"])
def test_compiled_blocks_agree(net, lay_out, backend):
    runner = block_runner(compile=True)

    @given(rows=st.lists(row, min_size=2, max_size=2))
    @settings(max_examples=20, deadline=None, derandomize=True)
    def agree(rows):
        ids = lay_out(*(row[:24] for row in rows), length=24)
        net.run_block = as_it_is
        expected = run(net, ids, "eager")
        net.run_block = runner
        torch.testing.assert_close(run(net, ids, backend), expected, atol=1e-4, rtol=1e-4)

    agree()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("backend", ["eager", "dense", "split"])
def test_documents_do_not_affect_each_other(net, lay_out, monkeypatch, backend, compiled):
    """Through all layers, a document does not change the output of another by one bit."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    net.run_block = block_runner(compile=compiled)
    ids = lay_out("tAAAAt|tBBt|tt")
    attend = attention(backend, *Bidirectional().intervals(*ids), torch.float32)
    x, positions = torch.randn(1, 12, 16), torch.arange(12)[None]
    before = net(x, positions[..., None], ids[1] >= 0, attend)
    x[:, :6] *= -30
    x[:, 10:] += 30
    after = net(x, positions[..., None], ids[1] >= 0, attend)
    assert torch.equal(after[:, 6:10], before[:, 6:10])
    assert not torch.isclose(after[:, :6], before[:, :6]).all()


@pytest.mark.parametrize("net", ["none"], indirect=True)
@pytest.mark.parametrize(("backend", "graphs"), [("dense", 1), ("split", 4)])
def test_another_packing_does_not_compile_again(net, lay_out, monkeypatch, backend, graphs):
    """The `split` backend is not compiled; the code before and after it has separate graphs."""
    counts = number_of_graphs(net, lay_out, monkeypatch, backend)
    assert counts == [graphs] * len(LAYOUTS)


@pytest.mark.parametrize("net", ["ffn"], indirect=True)
def test_groups_of_other_sizes_compile_once_more(net, lay_out, monkeypatch):
    """The second batch makes the sizes of the groups variables of the compiled block."""
    first, *others = number_of_graphs(net, lay_out, monkeypatch, "dense", grouped=True)
    assert first == 1
    assert others == [2] * len(others)


def number_of_graphs(net, lay_out, monkeypatch, backend, **options):
    """Train on several packings, and return the number of compiled graphs after each one."""
    torch._dynamo.reset()
    compiled = []

    def count(graph, inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=count))
    net.run_block = block_runner(compile=True, **options)
    counts = []
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for layout in LAYOUTS:
            run(net, lay_out(layout, length=16), backend)
            counts.append(len(compiled))
    return counts


@pytest.mark.parametrize("net", ["none"], indirect=True)
def test_recomputed_operations(net, lay_out):
    """ "selective" recomputes no product; "full" all but the last of each block, which no other operation reads.

    (`benchmarks loss` measures the memory.)
    """
    ids = lay_out(*LAYOUTS[:2], length=16)
    attend = attention("dense", *Bidirectional().intervals(*ids), torch.float32)

    def flops(backward=True):
        with FlopCounterMode(display=False) as counter:
            output = net(torch.randn(2, 16, 16), ids[0][..., None], ids[1] >= 0, attend)
            if backward:
                output.sum().backward()
        return counter.get_total_flops()

    forward, counts = flops(backward=False), {}
    for name in ("none", "selective", "full"):
        net.run_block = block_runner(activation_checkpointing=name)
        counts[name] = flops()
    assert counts["selective"] == counts["none"]
    last = 2 * (2 * 16) * SIZE.hidden_dim * SIZE.dim
    assert counts["full"] == counts["none"] + forward - SIZE.n_layers * last
