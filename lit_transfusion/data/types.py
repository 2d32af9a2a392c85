"""The types that the packages exchange, and the meaning of all dimension letters.

    B  rows of a batch               N  images of one shape in the batch
    L  positions of a row            P  patches of each of them
    T  positions with a text target  M  images of them with a loss
    D  width of the Transformer      C, H, W  channels, height and width of an image in latent space
    V  vocabulary size               K  codes of the images with a loss, if images are tokens

All are NamedTuples: Lightning moves them to a device, and `_replace` makes changed copies.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_transfusion.latents import Moments, Raw

# An image: latents (C, H, W), or what a codec makes them of. In a batch of N images each has one more dimension, first.
ImageValue = Tensor | Raw | Moments

IGNORE_INDEX = -100  # the label of a position that has no text target
TEXT = -1  # the image id of a position that is not a patch
NO_LIMIT = 1_000_000  # `max_timestep` of an image without a cap; the noise process knows the true limit


class Example(NamedTuple):
    """A captioned picture, as a source yields it."""

    image: Tensor | Moments  # (3, height, width) float32 in [-1, 1]; or the moments (K, h, w) float16 of a codec
    captions: tuple[str, ...]  # at least one, none empty
    mirror_image: Moments | None = None  # of the mirror image; None for pixels

    def mirrored(self) -> "Example":
        """A copy with left and right of the picture exchanged."""
        if isinstance(self.image, Tensor):
            return self._replace(image=self.image.flip(-1))
        if self.mirror_image is None:
            raise TypeError("the moments of the mirror image are missing")
        return self._replace(image=self.mirror_image)

    @property
    def num_images(self) -> int:
        return 1


class EditExample(NamedTuple):
    """An edit, as a source yields it: a picture, several wordings of one instruction, and the result."""

    input_image: Tensor  # (3, height, width) float32 in [-1, 1]
    instructions: tuple[str, ...]  # at least one, none empty
    output_image: Tensor  # (3, height, width) float32 in [-1, 1]

    def mirrored(self) -> "EditExample":
        """A copy with left and right of both pictures exchanged."""
        return self._replace(input_image=self.input_image.flip(-1), output_image=self.output_image.flip(-1))

    @property
    def num_images(self) -> int:
        return 2


class TextExample(NamedTuple):
    """A text of any length or a part of one, as a source yields it."""

    text: str
    complete: bool = True  # False: it continues in another example, so its end is not learned here

    @property
    def num_images(self) -> int:
        return 0


class ExampleBatch(NamedTuple):
    """Several captioned pictures, as input of prediction."""

    images: list[Tensor]  # each (3, height, width) in [-1, 1]
    captions: list[str]  # one for each picture


class Skipped(NamedTuple):
    """An example that cannot be used, with the reason. A source yields it in place of the example."""

    name: str  # of the picture, such that the user can find it
    reason: str  # short, and the same for all examples of one kind, so that reasons can be counted


def format_reasons(reasons: Mapping[str, tuple[int, str]]) -> str:
    """Format counts for a message. `reasons` maps each reason to (count, name of the first)."""
    return ", ".join(f"{count} {reason} (first: {first})" for reason, (count, first) in reasons.items())


def count_reasons(skipped: Iterable[Skipped]) -> dict[str, tuple[int, str]]:
    """Map each reason to (count, name of the first), most frequent reason first."""
    counts: dict[str, tuple[int, str]] = {}
    for name, reason in skipped:
        count, first = counts.get(reason, (0, name))
        counts[reason] = count + 1, first
    return dict(sorted(counts.items(), key=lambda item: -item[1][0]))


def format_skipped(skipped: Iterable[Skipped]) -> str:
    """Format the counts of examples by reason for a message."""
    return format_reasons(count_reasons(skipped))


class TextSegment(NamedTuple):
    """A run of text tokens in a document."""

    token_ids: tuple[int, ...]
    learn: bool = True  # False: a prompt, no loss on these tokens and on the BOI after them


class ImageSegment(NamedTuple):
    """An image in a document. Packing puts BOI and EOI around it."""

    value: ImageValue
    max_timestep: int = NO_LIMIT  # the largest timestep t that training may draw for this image (paper, Table 8)
    learn: bool = True  # False: a prompt, no loss on this image
    clean_copy: bool = False  # True: packing adds a clean copy, and what follows sees only that

    @property
    def latents(self) -> Tensor:
        """The value of an image of which the codec has made latents, as in generation and evaluation."""
        if not isinstance(self.value, Tensor):
            raise TypeError(f"the value is {type(self.value).__name__}, not latents; use Codec.latents")
        return self.value


class Document(NamedTuple):
    """Segments in reading order. Positions of a document never see other documents."""

    segments: tuple[TextSegment | ImageSegment, ...]
    cut: bool = False  # whether a text was too long and its end is missing

    @property
    def images(self) -> list[ImageSegment]:
        return [segment for segment in self.segments if isinstance(segment, ImageSegment)]


class ImageGroup(NamedTuple):
    """The images of a batch that have the same kind and shape, in row-major order over the batch."""

    images: ImageValue  # of N images
    at: Tensor  # (N, P) int64; indices of their patches into the flattened (B · L) positions
    max_timesteps: Tensor  # (N,) int64; upper bound of t for each image, inclusive
    learned: Tensor  # (M,) int64; indices of the images with a loss

    @property
    def num_learned_patches(self) -> int:
        return len(self.learned) * self.at.shape[1]


class PackedBatch(NamedTuple):
    """Documents packed into rows of equal length. Their images may have several shapes."""

    tokens: Tensor  # (B, L) int64; the pad token at patches
    labels: Tensor  # (B, L) int64; the next token, IGNORE_INDEX where none is learned
    positions: Tensor  # (B, L) int64; restart at 0 in each document; two copies of an image have the same
    document_ids: Tensor  # (B, L) int64; rising along a row; padding is several short documents
    image_ids: Tensor  # (B, L) int64; the number of the image in the batch at its patches, TEXT elsewhere
    private_ids: Tensor  # (B, L) int64; `image_ids` at patches with a clean copy, else TEXT; (0, L) if there are none
    image_groups: tuple[ImageGroup, ...]  # at least one, which is empty (N = 0) if there are no images
    target_positions: (
        Tensor  # (T,) int64; indices into the flattened (B · L) labels; found here, as a GPU would have to wait
    )
    lengths: Tensor  # (B,) int64; positions of each row that contain documents; the rest is padding
    step_counts: (
        Tensor  # (3,) int64; sums of T, of all M, and of their patches, over this process's batches of the same step
    )

    @property
    def private(self) -> Tensor | None:
        """`private_ids`, or None if no image is private: masks then need not compare them."""
        return self.private_ids if len(self.private_ids) else None

    @property
    def num_images(self) -> int:
        return sum(len(group.at) for group in self.image_groups)

    @property
    def num_learned_patches(self) -> int:
        return sum(group.num_learned_patches for group in self.image_groups)

    def to(self, device: torch.device | str) -> "PackedBatch":
        """A copy on a device. A copy to a GPU does not wait, as when Lightning moves tensors."""
        non_blocking = torch.device(device).type != "cpu"

        def moved(part: Any) -> Any:
            if isinstance(part, Tensor):
                return part.to(device, non_blocking=non_blocking)
            return type(part)(*map(moved, part)) if hasattr(part, "_fields") else tuple(map(moved, part))

        return moved(self)
