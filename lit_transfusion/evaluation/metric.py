"""What is measured, and on what: a metric takes a subject, and says some numbers of it by name.

subject = Subject(pipeline, source, num_examples=200)
Perplexity()(subject)                        # {"perplexity": 3.1, "bits_per_byte": 0.4}
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from random import Random
from typing import ClassVar

import torch
from torch import Tensor

from lit_transfusion.data.sources.base import Source
from lit_transfusion.data.types import Example
from lit_transfusion.errors import InputError
from lit_transfusion.generation.engine import draw, write
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.settings import Sampling
from lit_transfusion.progress import OnProgress, silent
from lit_transfusion.wording import counted


class Unavailable(Exception):
    """Why a metric cannot be measured here, such as weights that cannot be had. The others still can."""


@dataclass
class Subject:
    """A trained model and what it is judged on. What several metrics need is drawn and written once.

    Args:
        pipeline: The model.
        source: Its held-out split has the examples.
        num_examples: Examples to judge on at most: the first that can be used.
        sampling: How pictures and captions are sampled.
        batch_size: Samples, or documents, at once.
        on_progress: Told how far the slow parts are.
        each: Column → score of each picture or prompt, from the metrics that count.
    """

    pipeline: Pipeline
    source: Source
    num_examples: int = 200
    sampling: Sampling = field(default_factory=lambda: Sampling(num_inference_steps=25))
    batch_size: int = 64
    on_progress: OnProgress = silent
    each: dict[str, list[float]] = field(default_factory=dict)

    @cached_property
    def examples(self) -> list[Example]:
        """The held-out pictures with their captions, at least two."""
        held_out = [part.pictures.split("val") for part in self.source.parts.values()]
        every = (part[index] for part in held_out for index in range(len(part)))
        examples = list(islice((example for example in every if isinstance(example, Example)), self.num_examples))
        if len(examples) < 2:
            found = counted(len(examples), "captioned picture")
            raise InputError(f"{type(self.source).__name__} holds out {found}; at least 2 are needed")
        return examples

    @cached_property
    def pictures(self) -> Tensor:
        """(N, 3, S, S) in [-1, 1], those of the examples."""
        return torch.stack([example.image for example in self.examples])

    @cached_property
    def prompts(self) -> list[str]:
        """One caption of each example, the same for every model."""
        return [Random(i).choice(example.captions) for i, example in enumerate(self.examples)]

    @cached_property
    def drawn(self) -> Tensor:
        """(N, 3, S, S) in [-1, 1]: a picture for each prompt."""
        return self.draw(self.prompts)

    @cached_property
    def written(self) -> list[str]:
        """A caption for each picture of the examples."""
        return self.write(self.pictures)

    def draw(self, prompts: Sequence[str]) -> Tensor:
        """(N, 3, S, S) in [-1, 1]: a picture for each prompt; that of prompt i depends on seed + i alone.

        A prompt that has no room in a row of training is cut as there.
        """
        drawn = []
        for rows in self.batches(len(prompts)):
            done = rows.start

            def on_step(step: int, _: Tensor, done: int = done, count: int = len(rows)) -> None:
                drawn_now = done + count * (step + 1) / self.sampling.num_inference_steps
                self.on_progress("drawing", drawn_now, len(prompts))

            seeds = [self.sampling.seed + i for i in rows]
            texts = [prompts[i] for i in rows]
            drawn.append(draw(self.pipeline, texts, self.sampling, on_step, seeds, cut=True).cpu())
        return torch.cat(drawn)

    def write(self, pictures: Tensor) -> list[str]:
        """A caption for each picture (N, 3, S, S) in [-1, 1]."""
        written = []
        for rows in self.batches(len(pictures)):
            self.on_progress("writing", rows.start, len(pictures))
            seeds = [self.sampling.seed + i for i in rows]
            written += write(self.pipeline, pictures[rows.start : rows.stop], self.sampling, seeds)
        return written

    def batches(self, count: int) -> Iterator[range]:
        for start in range(0, count, self.batch_size):
            yield range(start, min(start + self.batch_size, count))


class Metric:
    """One measure, named in YAML and on the command line by its short class name. To add one, write a subclass.

    `columns` are the names of the numbers that it gives, each with whether "more" or "less" of it is better, or
    "neither". `samples` says whether they depend on how pictures and captions are sampled, so that a sweep over
    guidance measures the others once.

    Where a column is the mean of a score of each picture or prompt, `subject.each[column]` should be set to those
    scores, in an order that is the same for all models: studies need them to tell how sure a difference is.
    """

    columns: ClassVar[dict[str, str]]
    samples: ClassVar[bool] = True

    def __call__(self, subject: Subject) -> dict[str, float]:
        """The numbers, by column; `Unavailable` where they cannot be had."""
        raise NotImplementedError

    def baselines(self, subject: Subject) -> dict[str, dict[str, float]]:
        """What is reached without a model, such as by noise: name → column → number. None by default."""
        return {}
