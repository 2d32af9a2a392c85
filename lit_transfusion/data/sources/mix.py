"""Several sources side by side, each with its share of what is trained on."""

import copy
import math
from bisect import bisect_right
from itertools import accumulate
from typing import Literal

from lit_transfusion.data.sources.base import Encoding, Source, Stream
from lit_transfusion.data.types import EditExample, Example, Skipped, TextExample
from lit_transfusion.errors import InputError


class Mix(Source):
    """Several sources side by side, such as texts and pictures, each with its share of what is trained on (paper, 4.1).

    Shares are of the positions of documents, patches included, and are kept all along: the next document is always
    from the source that is furthest behind. Each source goes through epochs of its own, so that a small one comes round
    more often. Where training goes on from a checkpoint with other weights, the new shares hold from there.

    Weights may change at given points of a run, as for the last 1 % of the paper's largest model (4.4), which saw more
    of the images that look best. Documents that waited in open rows by then, `data.open_rows` rows of them at most, are
    still handed out after it.

    A picture file that is in several sources of captioned pictures (`ImageCaptions`, `Shards`) is held out of all or
    none, if they have the same `val_fraction` and `seed` and more than a few pictures. Nothing else is compared between
    sources: edits are held out by families of pictures, so keep pictures of edits out of the other sources.

    Args:
        sources: The sources, each by a name of yours.
        weights: The share of each, in any unit; empty for equal shares. 0 for one that is used only later.
        image_size: Side of the square pictures that all of them yield, in pixels, whatever they themselves say (set by
            the data module's `image_size`).
        later: Weights that take over after so many batches of a process, counted from the start of the run, also over
            a stop: {99000: {old: 0, new: 1}}. With trainer.accumulate_grad_batches k, a step is k batches; the number
            of devices does not matter. 0 leaves a source out from there.
    """

    def __init__(
        self,
        sources: dict[str, Source] = {},  # noqa: B006 (never written to; `| None` would hide the errors of sources)
        weights: dict[str, float] | None = None,
        image_size: int = 64,
        later: dict[int | str, dict[str, float]] | None = None,  # of int alone, jsonargparse would make 1 of 1.5
    ) -> None:
        super().__init__(image_size)
        if not sources:
            raise InputError("Mix has no sources: set sources to one or more of them, each under a name of yours")
        self.weights = weights or dict.fromkeys(sources, 1.0)
        self.later = dict(sorted((batches(since), weights) for since, weights in (later or {}).items()))
        self._check(sources)
        # Pictures come first, so that whoever looks at the first examples sees them.
        ordered = sorted(sources, key=lambda name: (sources[name].images_per_example != 1, sources[name].has_texts))
        self.sources = {name: copy.copy(sources[name]) for name in ordered}
        for source in self.sources.values():
            source.image_size = image_size
        self.images_per_example = max(source.images_per_example for source in self.sources.values())
        self.has_texts = any(source.has_texts for source in self.sources.values())

    def split(self, name: Literal["train", "val"]) -> "Mix":
        part = copy.copy(self)
        part.sources = {key: source.split(name) for key, source in self.sources.items()}
        return part

    def __len__(self) -> int:
        return sum(map(len, self.sources.values()))

    def __getitem__(self, index: int) -> Example | EditExample | TextExample | Skipped:
        """The examples of the first source, then those of the next."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} examples")
        ends = list(accumulate(map(len, self.sources.values())))
        number = bisect_right(ends, index)
        source = list(self.sources.values())[number]
        return source[index - ends[number] + len(source)]

    def captions(self) -> list[str]:
        return [caption for source in self.sources.values() for caption in source.captions()]

    def streams(self) -> list[Stream]:
        streams, start = [], 0
        for name, source in self.sources.items():
            later = tuple((since, share_of(name, weights)) for since, weights in self.later.items())
            indices = range(start, start + len(source))
            streams.append(Stream(name, share_of(name, self.weights), indices, later))
            start += len(source)
        return streams

    @property
    def parts(self) -> dict[str, Source]:
        return self.sources

    @property
    def encoding(self) -> Encoding | None:
        return next(iter(self.sources.values())).encoding

    @property
    def pictures(self) -> Source:
        return next(iter(self.sources.values())).pictures

    def _check(self, sources: dict[str, Source]) -> None:
        told = {"weights": self.weights} | {f"later[{since}]": weights for since, weights in self.later.items()}
        for key, weights in told.items():
            if unknown := weights.keys() - sources.keys():
                raise InputError(
                    f"Mix: {key} names {min(unknown)}, and there is no such source; there are {', '.join(sources)}"
                )
            for name in sources:
                if name not in weights:
                    raise InputError(f"Mix: {key} says nothing of {name}; give each source a weight, 0 to leave it out")
                if not 0 <= weights[name] < math.inf:
                    raise InputError(f"Mix: in {key}, the weight of {name} is {weights[name]}; set it to 0 or more")
            if not any(weights.values()):
                raise InputError(f"Mix: in {key}, all weights are 0; give one source at least a weight above 0")
        for name, source in sources.items():
            if not any(weights[name] for weights in told.values()):
                raise InputError(f"Mix: the weight of {name} is 0; leave it out, or give it one in `later`")
            if isinstance(source, Mix):
                raise InputError(f"Mix: {name} is itself a mix; name its sources beside the others")


def batches(since: int | str) -> int:
    """The number that a key of `later` is, which may stand in quotes."""
    if not str(since).isdecimal() or int(since) < 1:
        raise InputError(f"Mix: later[{since}] is not a whole number of batches above 0; see weights for the start")
    return int(since)


def share_of(name: str, weights: dict[str, float]) -> float:
    return weights[name] / sum(weights.values())
