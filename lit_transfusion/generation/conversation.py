"""The code behind `Pipeline.generate`: texts and PIL pictures in, texts and PIL pictures out."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from lit_transfusion.data.images import square, to_rgb, to_unit_range
from lit_transfusion.data.types import TextSegment
from lit_transfusion.errors import InputError
from lit_transfusion.generation.engine import Images, generate
from lit_transfusion.generation.pictures import to_pil
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.prompts import interleaved
from lit_transfusion.generation.sample_state import Generated
from lit_transfusion.generation.settings import Sampling


def continue_prompt(
    pipeline: Pipeline, prompt: Sequence[str | Image.Image], images: str, **sampling: Any
) -> list[str | Image.Image]:
    """Continue a prompt with texts and pictures; see `Pipeline.generate`."""
    if images.upper() not in Images.__members__:
        raise InputError(f"images {images!r} is invalid: use one of {', '.join(Images.__members__).lower()}")
    begin, settings = Images[images.upper()], Sampling(**sampling)
    size = pipeline.image_size
    parts = [part if isinstance(part, str) else to_unit_range(square(to_rgb(part), size)) for part in prompt]
    if begin is Images.FORCED:
        settings = settings.one_image()
    (sample,) = generate(pipeline, [interleaved(pipeline, parts)], settings, None, begin)
    return added_parts(pipeline, sample)


def added_parts(pipeline: Pipeline, sample: Generated) -> list[str | Image.Image]:
    """The generated parts of a sample, decoded to strings and PIL pictures."""
    return [
        pipeline.tokenizer.decode(segment.token_ids)
        if isinstance(segment, TextSegment)
        else to_pil(pipeline.codec.decode(segment.latents[None])[0])
        for segment in sample.added
    ]
