"""The types that pass between the rooms, and the one legend of dimension letters.

    B  rows of a batch               N  images in the batch
    L  positions of a row            P  patches of one image
    T  positions with a text target  M  images with a diffusion loss
    D  width of the Transformer      C, H, W  channels, height and width of an image in latent space
    V  vocabulary size

All are NamedTuples: Lightning moves them to a device, torch pins their memory, and `_replace` makes the next one.
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

IGNORE_INDEX = -100  # the label of a position that has no text target
TEXT = -1  # the image id of a position that is not a patch
NO_LIMIT = 1_000_000  # `max_timestep` of an image whose noise is not capped; the noise process knows the true end


class Example(NamedTuple):
    """What a source yields: a picture and the captions that describe it."""

    image: Tensor  # (3, height, width) float32 in [-1, 1]; or a codec's moments (K, h, w) float16, if it is encoded
    captions: tuple[str, ...]  # at least one, none empty
    mirror_image: Tensor | None = None  # like `image`, if it is encoded; of pixels it need not be kept

    def mirrored(self) -> "Example":
        """With left and right exchanged in the picture."""
        return self._replace(image=self.image.flip(-1) if self.mirror_image is None else self.mirror_image)

    @property
    def num_images(self) -> int:
        return 1


class EditExample(NamedTuple):
    """What a source of edits yields: a picture, instructions that all ask for one change, and what it leads to."""

    input_image: Tensor  # (3, height, width) float32 in [-1, 1]
    instructions: tuple[str, ...]  # at least one, none empty
    output_image: Tensor  # (3, height, width) float32 in [-1, 1]

    def mirrored(self) -> "EditExample":
        """With left and right exchanged in both pictures."""
        return self._replace(input_image=self.input_image.flip(-1), output_image=self.output_image.flip(-1))

    @property
    def num_images(self) -> int:
        return 2


class TextExample(NamedTuple):
    """What a source of text yields: a text of any length, or a part of one."""

    text: str
    complete: bool = True  # False: it goes on in another example, so that no end of it is learned here

    @property
    def num_images(self) -> int:
        return 0


class ExampleBatch(NamedTuple):
    """Examples side by side, for drawing their captions and describing their pictures."""

    images: Tensor  # (N, 3, S, S) in [-1, 1]
    captions: list[str]  # one for each picture


class Skipped(NamedTuple):
    """What a source yields in place of an example that cannot be used."""

    name: str  # of the picture, as its owner would look for it
    reason: str  # short, and the same for all of one kind, so that reasons can be counted


def in_words(reasons: Mapping[str, tuple[int, str]]) -> str:
    """How many were left out for each reason, and the name of the first."""
    return ", ".join(f"{count} {reason} (first: {first})" for reason, (count, first) in reasons.items())


class TextSegment(NamedTuple):
    """A run of text tokens in a document."""

    token_ids: tuple[int, ...]
    learn: bool = True  # False: a prompt, no loss on these tokens nor on the BOI that follows them


class ImageSegment(NamedTuple):
    """An image in a document. BOI and EOI are put around it when the document is packed."""

    latents: Tensor  # (C, H, W); until the codec has made them: pixels, or its moments (K, h, w)
    max_timestep: int = NO_LIMIT  # the largest timestep t that training may draw for this image (paper, Table 8)
    learn: bool = True  # False: a prompt, no diffusion loss on this image


class Document(NamedTuple):
    """Segments in reading order. Nothing outside a document is ever visible from inside it."""

    segments: tuple[TextSegment | ImageSegment, ...]
    cut: bool = False  # whether a text was longer than there was room for, and its end is missing

    @property
    def images(self) -> list[ImageSegment]:
        return [segment for segment in self.segments if isinstance(segment, ImageSegment)]


class PackedBatch(NamedTuple):
    """Documents packed into rows of equal length."""

    tokens: Tensor  # (B, L) int64; the pad token at patches
    labels: Tensor  # (B, L) int64; the next token, IGNORE_INDEX where there is none to learn
    positions: Tensor  # (B, L) int64; restart at 0 in each document
    document_ids: Tensor  # (B, L) int64; rising along a row; padding is cut into short documents of its own
    image_ids: Tensor  # (B, L) int64; the index into `images`, TEXT elsewhere
    images: Tensor  # (N, C, H, W) clean, of the whole batch in row-major order; pixels or moments as in ImageSegment
    max_timesteps: Tensor  # (N,) int64; upper bound of t for each image, inclusive
    learned_images: Tensor  # (M,) int64; into `images`, those that have a diffusion loss
    target_positions: Tensor  # (T,) int64; into the flattened (B · L) labels; a GPU would have to wait to find them
    lengths: Tensor  # (B,) int64; positions of each row that hold a document, the rest is padding
    step_counts: Tensor  # (2,) int64; T and M of all this process's batches of the same optimiser step, this one too
