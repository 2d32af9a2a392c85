"""Work that is recorded for inputs of each shape that comes often, and then replayed.

A forward pass is some hundreds of kernels, and for few rows a GPU is done with each before the CPU has started the
next. A CUDA graph starts all of them at once. It is bound to shapes and to places in memory: so inputs are copied to
where they were when it was recorded, and results are copied from where it leaves them.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]
RARE = 8  # calls with inputs of some shapes until they are recorded, which takes as long as some calls


class Recorded:
    """A function of tensors, to be called many times with inputs of few shapes.

    Args:
        function: Of tensors, to a tuple of tensors. What else it reads or writes must stay where it is in memory; it
            must not wait for the GPU; and to call it twice must change no more than to call it once.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        self.calls: Counter[tuple[torch.Size, ...]] = Counter()  # by shapes, as what follows
        self.recordings: dict[tuple[torch.Size, ...], tuple[list[Tensor], Function]] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        shapes = tuple(tensor.shape for tensor in inputs)
        self.calls[shapes] += 1
        if self.calls[shapes] <= RARE:
            return self.function(*inputs)
        if shapes not in self.recordings:
            places = [tensor.clone() for tensor in inputs]
            self.recordings[shapes] = places, record(self.function, places)
        places, replay = self.recordings[shapes]
        for place, tensor in zip(places, inputs, strict=True):
            place.copy_(tensor)
        return tuple(output.clone() for output in replay())


def record(function: Function, places: Sequence[Tensor]) -> Function:
    """What computes `function` of whatever stands in `places` by then. (On a CPU that is the function itself.)"""
    device = places[0].device
    if device.type != "cuda":
        return functools.partial(function, *places)
    graph, aside = torch.cuda.CUDAGraph(), side_stream(device)
    with torch.cuda.device(device):  # whose streams are meant in what follows
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what libraries set up for a stream is then no part of the recording
            function(*places)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(graph, stream=aside):
            outputs = function(*places)

    def replay() -> tuple[Tensor, ...]:
        with torch.cuda.device(device):
            graph.replay()
        return outputs

    return replay


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """Where a device records; nothing can be recorded on the stream that everything else runs on."""
    return torch.cuda.Stream(device)
