"""Checks that another packing causes no recompilation."""

import torch

from benchmarks.batches import packed
from benchmarks.report import Table
from benchmarks.training import new_net, new_step
from lit_transfusion.model import SIZES
from lit_transfusion.model.attention import flex
from lit_transfusion.model.visibility import Bidirectional


def run(quick: bool, device: str = "cpu") -> list[Table]:
    table = Table(
        "Number of compiled graphs after each of five steps with different packings",
        ["what is compiled", "1", "2", "3", "4", "5"],
        notes=[
            "Counted with torch's tracer and a backend that compiles nothing. Raises AssertionError if a row rises. "
            "Attention by document is not compiled, so a block has one graph before it and one after it.",
        ],
    )
    batches = [packed(256, 2, side=8, seed=seed) for seed in range(5)]
    for name, attention in (("block, dense attention", "dense"), ("block, attention by document", "split")):
        table.add(name, *graphs_of_steps(batches, attention))
    table.add("FlexAttention", *graphs_of_flex(batches))
    for row in table.rows:
        assert len(set(row[1:])) == 1, row
    return [table]


def graphs_of_steps(batches, attention: str) -> list[int]:
    torch._dynamo.reset()
    counter = Counter()
    net = new_net(SIZES["nano"], attention=attention)
    net.transformer.run_block = torch.compile(net.transformer.run_block, dynamic=False, backend=counter)
    counts = []
    for batch in batches:
        new_step(net, batch)()
        counts.append(counter.graphs)
    return counts


def graphs_of_flex(batches) -> list[int]:
    """Count graphs of the forward pass: on a CPU there is no backward pass. `pytest -m gpu` checks both on CUDA."""
    torch._dynamo.reset()
    counter = Counter()
    attend = torch.compile(lambda lo, hi, q, k, v: flex(lo, hi)(q, k, v), dynamic=False, backend=counter)
    counts = []
    for batch in batches:
        lo, hi = Bidirectional().intervals(batch.document_ids, batch.image_ids)
        with torch.no_grad():
            attend(lo, hi, *torch.randn(3, *lo.shape, 2, 16).transpose(2, 3))
        counts.append(counter.graphs)
    return counts


class Counter:
    """A torch.compile backend that counts graphs."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward
