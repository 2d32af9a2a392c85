"""The base class of metrics, and the subject that they measure: a metric returns named numbers for a subject.

subject = Subject(pipeline, source, num_examples=200)
Perplexity()(subject)                        # {"perplexity": 3.1, "bits_per_byte": 0.4}
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, ClassVar

from lit_transfusion.errors import InputError
from lit_transfusion.generation.settings import Sampling
from lit_transfusion.progress import OnProgress, silent
from lit_transfusion.wording import counted

# Metrics import torch and the other parts of the package only when they measure, so that `evaluate --help` is quick.
if TYPE_CHECKING:
    from torch import Tensor

    from lit_transfusion.data.sources.base import Source
    from lit_transfusion.data.types import Example, TextExample
    from lit_transfusion.generation.pipeline import Pipeline


class Unavailable(Exception):
    """Raised with the reason if one metric cannot be measured, such as missing weights. Other metrics still can be."""


@dataclass
class Subject:
    """A trained model and the examples to measure it on. Metrics share its pictures and captions, generated only once.

    Args:
        pipeline: The model.
        source: Its held-out split has the examples and texts.
        num_examples: The most examples, and the most texts, to use: the first valid ones.
        sampling: How pictures and captions are sampled.
        batch_size: Number of samples or documents to process together.
        on_progress: Called with the progress of the slow parts.
        each: Column → score of each picture or prompt, set by metrics that are means of such scores.
    """

    pipeline: "Pipeline"
    source: "Source"
    num_examples: int = 200
    sampling: Sampling = field(default_factory=lambda: Sampling(num_inference_steps=25))
    batch_size: int = 64
    on_progress: OnProgress = silent
    each: dict[str, list[float]] = field(default_factory=dict)

    @cached_property
    def examples(self) -> "list[Example]":
        """The held-out pictures with their captions.

        Raises:
            Unavailable: The source has no captioned pictures.
            InputError: There are fewer than two.
        """
        from lit_transfusion.data.types import Example

        if self.source.pictures.images_per_example != 1:
            name = type(self.source.pictures).__name__
            raise Unavailable(f"it needs captioned pictures, but data.source {name} has none")
        held_out = [part.pictures.split("val") for part in self.source.parts.values()]
        every = (part[index] for part in held_out for index in range(len(part)))
        examples = list(islice((example for example in every if isinstance(example, Example)), self.num_examples))
        if len(examples) < 2:
            found = counted(len(examples), "captioned picture")
            raise InputError(
                f"the held-out split of data.source {type(self.source).__name__} has {found}, but at least 2 are "
                "needed; use a larger held-out split"
            )
        return examples

    @cached_property
    def texts(self) -> "list[TextExample]":
        """The held-out texts.

        Raises:
            Unavailable: There are none.
        """
        from lit_transfusion.data.types import TextExample

        held_out = [part.split("val") for part in self.source.parts.values() if part.has_texts]
        every = (part[index] for part in held_out for index in range(len(part)))
        texts = list(islice((example for example in every if isinstance(example, TextExample)), self.num_examples))
        if not texts:
            raise Unavailable("it needs held-out texts, but data.source has none (its val_fraction holds some out)")
        return texts

    @cached_property
    def pictures(self) -> "list[Tensor]":
        """The pictures of the examples, each (3, height, width) in [-1, 1]."""
        return [example.image for example in self.examples]

    @cached_property
    def prompts(self) -> list[str]:
        """One caption of each example, the same for every model."""
        return [Random(i).choice(example.captions) for i, example in enumerate(self.examples)]

    @cached_property
    def drawn(self) -> "list[Tensor]":
        """A drawn picture for each prompt, each (3, height, width) in [-1, 1]."""
        return self.draw(self.prompts)

    @cached_property
    def written(self) -> list[str]:
        """A written caption for each picture of the examples."""
        return self.write(self.pictures)

    def draw(self, prompts: Sequence[str]) -> "list[Tensor]":
        """Draw a picture (3, height, width) in [-1, 1] for each prompt.

        Picture i depends only on prompt i and seed + i. Prompts that are too long for a training row are cut as in
        training.
        """
        from lit_transfusion.generation.engine import draw

        drawn: list[Tensor] = []
        for rows in self.batches(len(prompts)):
            done = rows.start

            def on_step(step: int, _: "Tensor", done: int = done, count: int = len(rows)) -> None:
                drawn_now = done + count * (step + 1) / self.sampling.num_inference_steps
                self.on_progress("drawing", drawn_now, len(prompts))

            seeds = [self.sampling.seed + i for i in rows]
            texts = [prompts[i] for i in rows]
            pictures = draw(self.pipeline, texts, self.sampling, on_step, seeds, cut=True)
            drawn += [picture.cpu() for picture in pictures]
        return drawn

    def write(self, pictures: "Sequence[Tensor]") -> list[str]:
        """Write a caption for each picture (3, height, width) in [-1, 1]."""
        from lit_transfusion.generation.engine import write

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
    """Base class of metrics, named in YAML and on the command line by their short class names.

    To add a metric, write a subclass. `columns` has the names of its numbers, each with whether "more" or "less" is
    better, or "neither". `samples` is whether they depend on how pictures and captions are sampled; a sweep over
    guidance scales measures the other metrics only once.

    If a column is the mean of a score for each picture or prompt, set `subject.each[column]` to these scores, in the
    same order for all models: studies use them to compute the uncertainty of a difference.
    """

    columns: ClassVar[dict[str, str]]
    samples: ClassVar[bool] = True

    def __call__(self, subject: Subject) -> dict[str, float]:
        """Measure the subject: column → number.

        Raises:
            Unavailable: The metric cannot be measured here.
        """
        raise NotImplementedError

    def baselines(self, subject: Subject) -> dict[str, dict[str, float]]:
        """Results without a model, such as for noise: name → column → number. There are none by default."""
        return {}
