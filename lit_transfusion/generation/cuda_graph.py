"""Capture a function as one CUDA graph for each input shape that is frequent, and replay the graph.

A forward pass launches some hundreds of kernels. For few rows, a GPU finishes each kernel before the CPU has launched
the next. A CUDA graph launches all of them together. It is tied to shapes and memory addresses: inputs are copied to
the addresses at which it was captured, and results are copied from where it writes them.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]
RARE = 8  # calls with the same input shapes before they are captured, since a capture takes as long as some calls


class Graphed:
    """A function of tensors that is called many times with inputs of few shapes.

    Args:
        function: Takes tensors and returns a tuple of tensors. Everything else that it reads or writes must stay at the
            same memory address. It must not wait for the GPU, and calling it twice must have the same effect as
            calling it once.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        self.calls: Counter[tuple[torch.Size, ...]] = Counter()  # input shapes → calls
        self.graphs: dict[tuple[torch.Size, ...], tuple[list[Tensor], Function]] = {}  # with the tensors it reads

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        shapes = tuple(tensor.shape for tensor in inputs)
        self.calls[shapes] += 1
        if self.calls[shapes] <= RARE:
            return self.function(*inputs)
        if shapes not in self.graphs:
            buffers = [tensor.clone() for tensor in inputs]
            self.graphs[shapes] = buffers, capture(self.function, buffers)
        buffers, replay = self.graphs[shapes]
        for buffer, tensor in zip(buffers, inputs, strict=True):
            buffer.copy_(tensor)
        return tuple(output.clone() for output in replay())


def capture(function: Function, buffers: Sequence[Tensor]) -> Function:
    """A callable that computes `function` of the current contents of `buffers`. (On a CPU, it calls the function.)"""
    device = buffers[0].device
    if device.type != "cuda":
        return functools.partial(function, *buffers)
    graph, aside = torch.cuda.CUDAGraph(), side_stream(device)
    with torch.cuda.device(device):  # the device of the streams below
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # warm up: what libraries set up for a stream must not be in the graph
            function(*buffers)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(graph, stream=aside):
            outputs = function(*buffers)

    def replay() -> tuple[Tensor, ...]:
        with torch.cuda.device(device):
            graph.replay()
        return outputs

    return replay


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream for captures of a device, since CUDA cannot capture the default stream."""
    return torch.cuda.Stream(device)
