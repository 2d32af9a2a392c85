"""Several sources side by side, each with its share of what is trained on."""

import copy
import math
from bisect import bisect_right
from itertools import accumulate
from typing import Literal

from lit_transfusion.data.document import EditExample, Example, Skipped, TextExample
from lit_transfusion.data.sources.base import Encoding, Source, Stream
from lit_transfusion.errors import InputError


class Mix(Source):
    """Several sources side by side, such as texts and pictures, each with its share of what is trained on (paper, 4.1).

    Shares are of the positions of documents, patches included, and are kept all along: the next document is always
    from the source that is furthest behind. Each source goes through epochs of its own, so that a small one comes round
    more often. Where training goes on from a checkpoint with other weights, the new shares hold from there.

    Args:
        sources: The sources, each by a name of yours.
        weights: The share of each, in any unit; empty for equal shares.
        image_size: Side of the square pictures that all of them yield, in pixels, whatever they themselves say (set by
            the data module's `image_size`).
    """

    def __init__(
        self, sources: dict[str, Source] | None = None, weights: dict[str, float] | None = None, image_size: int = 64
    ) -> None:
        super().__init__(image_size)
        if not sources:
            raise InputError("Mix has no sources: set sources to one or more of them, each under a name of yours")
        self.weights = weights or dict.fromkeys(sources, 1.0)
        if unknown := self.weights.keys() - sources.keys():
            raise InputError(
                f"Mix: weights names {min(unknown)}, and there is no such source; there are {', '.join(sources)}"
            )
        for name, source in sources.items():
            if name not in self.weights:
                raise InputError(f"Mix: weights says nothing of {name}; give each source a weight, or none")
            if not 0 < self.weights[name] < math.inf:
                raise InputError(f"Mix: the weight of {name} is {self.weights[name]}; leave out what is not to be used")
            if isinstance(source, Mix):
                raise InputError(f"Mix: {name} is itself a mix; name its sources beside the others")
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
        total, streams, start = sum(self.weights.values()), [], 0
        for name, source in self.sources.items():
            streams.append(Stream(name, self.weights[name] / total, range(start, start + len(source))))
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
