"""A source that mixes several sources by weight."""

import copy
import math
from bisect import bisect_right
from itertools import accumulate
from typing import Literal

from lit_transfusion.data.sources.base import Encoding, Source, Stream
from lit_transfusion.data.types import EditExample, Example, Skipped, TextExample
from lit_transfusion.errors import InputError


class Mix(Source):
    """Mixes several sources, such as texts and pictures, each with its share of the training data (paper, 4.1).

    Shares are counted in positions of documents, including patches. They hold during the whole run, because the next
    document always comes from the source that is furthest behind its share. Each source has its own epochs, so a small
    source repeats more often. If a run resumes with other weights, the new shares hold from there.

    Weights may change at given points of a run, as for the last 1 % of the paper's largest model (4.4), which saw more
    of the images that look best. Documents in open rows at that time (at most `data.open_rows` rows) are still used.

    A picture file in several sources of captioned pictures (`ImageCaptions`, `Shards`) is held out from all of them or
    from none, if they have the same `val_fraction` and `seed` and more than a few pictures. Other sources are not
    compared. Edits are held out by groups of connected pictures, so do not use pictures of edits in other sources.

    Args:
        sources: The sources, each under a name that you choose.
        weights: The share of each source, in any unit; empty for equal shares. 0 for a source that is used only later.
        image_size: Side of the square pictures of all sources, in pixels; it replaces their own value (set by the data
            module's `image_size`).
        later: New weights after a number of batches, for example {99000: {old: 0, new: 1}}. Batches are counted for one
            process from the start of the run, including resumed parts. With trainer.accumulate_grad_batches k, a step
            is k batches; the number of devices does not matter. 0 stops the use of a source.
    """

    def __init__(
        self,
        sources: dict[str, Source] = {},  # noqa: B006 (never changed; `| None` would hide the errors of sources)
        weights: dict[str, float] | None = None,
        image_size: int = 64,
        later: dict[int | str, dict[str, float]] | None = None,  # with int only, jsonargparse would convert 1.5 to 1
    ) -> None:
        super().__init__(image_size)
        if not sources:
            raise InputError(
                "Mix has no sources; set sources to one or more sources, each under a name that you choose"
            )
        self.weights = weights or dict.fromkeys(sources, 1.0)
        self.later = dict(sorted((batches(since), weights) for since, weights in (later or {}).items()))
        self._check(sources)
        # Pictures first, so that code which shows the first examples shows pictures.
        ordered = sorted(sources, key=lambda name: (sources[name].images_per_example != 1, sources[name].has_texts))
        self.sources = {name: copy.copy(sources[name]) for name in ordered}
        for source in self.sources.values():
            source.image_size = image_size
        self.images_per_example = max(source.images_per_example for source in self.sources.values())
        self.has_texts = any(source.has_texts for source in self.sources.values())

    def set_multiple_of(self, multiple_of: int | None) -> None:
        for source in self.sources.values():
            source.set_multiple_of(multiple_of)

    def split(self, name: Literal["train", "val"]) -> "Mix":
        part = copy.copy(self)
        part.sources = {key: source.split(name) for key, source in self.sources.items()}
        return part

    def __len__(self) -> int:
        return sum(map(len, self.sources.values()))

    def __getitem__(self, index: int) -> Example | EditExample | TextExample | Skipped:
        """An example; indices run through the first source, then through the next."""
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
        all_weights = {"weights": self.weights} | {f"later[{since}]": weights for since, weights in self.later.items()}
        for key, weights in all_weights.items():
            if unknown := weights.keys() - sources.keys():
                raise InputError(
                    f"Mix: {key} names {min(unknown)}, which is not a source; use names from {', '.join(sources)}"
                )
            for name in sources:
                if name not in weights:
                    raise InputError(
                        f"Mix: {key} has no weight for {name}; give each source a weight, 0 for an unused one"
                    )
                if not 0 <= weights[name] < math.inf:
                    raise InputError(f"Mix: in {key}, the weight of {name} is {weights[name]}; set it to 0 or more")
            if not any(weights.values()):
                raise InputError(f"Mix: in {key}, all weights are 0; give at least one source a weight above 0")
        for name, source in sources.items():
            if not any(weights[name] for weights in all_weights.values()):
                raise InputError(f"Mix: the weight of {name} is 0; remove it, or give it a weight in `later`")
            if isinstance(source, Mix):
                raise InputError(f"Mix: {name} is itself a Mix; put its sources directly into this one")


def batches(since: int | str) -> int:
    """Convert a key of `later` to a number; YAML keys may be quoted."""
    if not str(since).isdecimal() or int(since) < 1:
        raise InputError(f"Mix: later[{since}] is not a whole number of batches above 0; use `weights` for the start")
    return int(since)


def share_of(name: str, weights: dict[str, float]) -> float:
    """The weight of a source as a share of all weights."""
    return weights[name] / sum(weights.values())
