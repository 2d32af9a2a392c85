"""The state of one sample during generation, and its result."""

import math
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from lit_transfusion.data.grammar import extended
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.data.types import Document, ImageSegment, TextSegment
from lit_transfusion.generation.settings import Sampling


class StopReason(Enum):
    END_OF_TEXT = "end of text"
    TOKEN_LIMIT = "token limit"
    IMAGE_LIMIT = "image limit"
    LENGTH_LIMIT = "length limit"  # all positions that the model was trained on are used


class Generated(NamedTuple):
    prompt: Document
    added: tuple[TextSegment | ImageSegment, ...]
    stop_reason: StopReason

    @property
    def document(self) -> Document:
        return extended(self.prompt, *self.added)

    @property
    def images(self) -> list[ImageSegment]:
        """The images that were drawn; empty if the model began none."""
        return [segment for segment in self.added if isinstance(segment, ImageSegment)]

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The token ids of all text that was written, without EOS."""
        return tuple(i for segment in self.added if isinstance(segment, TextSegment) for i in segment.token_ids)


class SampleState:
    """A document that grows until it has a stop reason.

    Args:
        prompt: The document that it continues.
        generator: Source of all its random numbers.
        tokenizer: Has the ids of BOI and EOS.
        limits: How much may be written and drawn.
        at_boi: Whether an image begins directly after the prompt.
        latent_shape: (C, H, W) of the images that it draws.
        image_length: Positions of such an image with its BOI and EOI.
        room: Positions that may follow the prompt; inf for no limit.
    """

    def __init__(
        self,
        prompt: Document,
        generator: torch.Generator,
        tokenizer: Tokenizer,
        limits: Sampling,
        at_boi: bool,
        latent_shape: tuple[int, int, int],
        image_length: int,
        room: float = math.inf,
    ) -> None:
        self.prompt = prompt
        self.generator = generator
        self.tokenizer = tokenizer
        self.limits = limits
        self.at_boi = at_boi
        self.latent_shape = latent_shape
        self.image_length = image_length
        self.room = room
        self.stop_reason = None if at_boi or limits.max_new_tokens else StopReason.TOKEN_LIMIT
        self._take(0)
        self._segments: list[TextSegment | ImageSegment] = []
        self._text: list[int] = []  # since the last image
        self._num_tokens = self._num_images = 0

    @property
    def images_so_far(self) -> list[ImageSegment]:
        """The images of the prompt, then those that were drawn."""
        return [*self.prompt.images, *(part for part in self._segments if isinstance(part, ImageSegment))]

    @property
    def writes(self) -> bool:
        return self.stop_reason is None and not self.at_boi

    def add_token(self, token_id: int) -> None:
        if token_id == self.tokenizer.eos:
            self.stop_reason = StopReason.END_OF_TEXT
        elif token_id == self.tokenizer.boi and self._num_images == self.limits.max_images:
            self.stop_reason = StopReason.IMAGE_LIMIT
        elif token_id == self.tokenizer.boi and self.room < self.image_length:
            self.stop_reason = StopReason.LENGTH_LIMIT
        elif token_id == self.tokenizer.boi:
            self.at_boi = True
        else:
            self._text.append(token_id)
            self._num_tokens += 1
            if self._num_tokens == self.limits.max_new_tokens:
                self.stop_reason = StopReason.TOKEN_LIMIT
            self._take(1)

    def add_image(self, latents: Tensor) -> None:
        self._end_text()
        self._segments.append(ImageSegment(latents))
        self._num_images += 1
        self.at_boi = False
        if self.limits.max_new_tokens == 0:  # no text may follow, so no BOI either
            self.stop_reason = StopReason.IMAGE_LIMIT
        self._take(self.image_length)

    def _take(self, positions: int) -> None:
        self.room -= positions
        if self.stop_reason is None and self.room <= 0:
            self.stop_reason = StopReason.LENGTH_LIMIT

    def finished(self) -> Generated:
        if self.stop_reason is None:
            raise ValueError("the sample is not finished: it has no stop reason yet")
        self._end_text()
        return Generated(self.prompt, tuple(self._segments), self.stop_reason)

    def _end_text(self) -> None:
        if self._text:
            self._segments.append(TextSegment(tuple(self._text)))
            self._text = []
