"""Pack documents into rows of equal length, and rows into a batch."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch

from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.data.types import IGNORE_INDEX, TEXT, Document, ImageGroup, ImageSegment, ImageValue, PackedBatch
from lit_transfusion.errors import InputError
from lit_transfusion.latents import Raw

Item = TypeVar("Item")
PatchCount = Callable[[ImageSegment], int]  # the number of patches of an image


@dataclass(frozen=True)
class SquarePatches:
    """The `PatchCount` of all patchers, which have square patches.

    Args:
        patch_size: Side of a patch in latent pixels.
        downscale: Pixels for each latent pixel along one side.
    """

    patch_size: int
    downscale: int = 1

    @property
    def side(self) -> int:
        """Side of a patch in pixels."""
        return self.patch_size * self.downscale

    def __call__(self, image: ImageSegment) -> int:
        height, width = tensor_of(image.value).shape[-2:]
        return self.of_pixels(height, width) if isinstance(image.value, Raw) else self.of_latents(height, width)

    def of_pixels(self, height: int, width: int) -> int:
        """Number of patches of a picture; an InputError if it does not consist of whole patches."""
        return self._count(height, width, self.side)

    def of_latents(self, height: int, width: int) -> int:
        """Number of patches of latents; an InputError if they do not consist of whole patches."""
        return self._count(height, width, self.patch_size)

    def _count(self, height: int, width: int, side: int) -> int:
        if height % side or width % side or not height * width:
            raise InputError(
                f"an image of {height}x{width} does not consist of whole patches of {side}x{side}; change "
                "data.image_size or patch_size of model.patcher"
            )
        return (height // side) * (width // side)


class FlatDocument(NamedTuple):
    """A document with one entry for each of its positions in a row."""

    tokens: list[int]
    labels: list[int]
    image_ids: list[int]  # index into the document's own images, TEXT elsewhere
    images: list[ImageSegment]
    cut: bool = False  # as in Document


def flatten(document: Document, tokenizer: Tokenizer, count_patches: PatchCount) -> FlatDocument:
    """Put BOI and EOI around the images, and set the label of each position: the next token, if it is learned.

    Learned (paper, 3.2 and footnote 8): text tokens, and BOI after learned text. Not learned: patches; EOI, because
    the decoder appends it; the position whose input is BOI. The position whose input is EOI predicts the text after it.
    An image with a clean copy has its patches twice between BOI and EOI: noised, then clean. The clean ones have the
    same positions and no loss, and what follows sees only them.
    An empty text segment before an image decides for its BOI only: after a prompt, a learned empty segment makes the
    BOI learned and the prompt not; after learned text, an empty segment that is not learned excludes the BOI.
    """
    tokens: list[int] = []
    learn: list[bool] = []
    image_ids: list[int] = []
    images: list[ImageSegment] = []
    learn_boi = False  # at the start of a document nothing precedes BOI that could predict it
    for segment in document.segments:
        if isinstance(segment, ImageSegment):
            copies = [segment, clean_copy(segment)] if segment.clean_copy else [segment]
            number = count_patches(segment)
            tokens += [tokenizer.boi, *[tokenizer.pad] * (len(copies) * number), tokenizer.eoi]
            learn += [learn_boi, *[False] * (len(copies) * number + 1)]
            ids = [len(images) + copy for copy in range(len(copies)) for _ in range(number)]
            image_ids += [TEXT, *ids, TEXT]
            images += copies
        else:
            tokens += segment.token_ids
            learn += [segment.learn] * len(segment.token_ids)
            image_ids += [TEXT] * len(segment.token_ids)
            learn_boi = segment.learn
    labels = [t if learned else IGNORE_INDEX for t, learned in zip(tokens[1:], learn[1:], strict=True)]
    return FlatDocument(tokens, [*labels, IGNORE_INDEX], image_ids, images, document.cut)


def clean_copy(image: ImageSegment) -> ImageSegment:
    """The clean copy of an image: at timestep 0, as the sampler shows a finished image, and without a loss."""
    return ImageSegment(image.value, max_timestep=0, learn=False)


def room_for_text(length: int, patches_per_image: int, num_images: int) -> int:
    """Positions of a row that remain for text, after BOS, EOS and the images with their BOI and EOI.

    `patches_per_image` is that of the largest image, so that texts are cut alike whatever the size of the image.
    """
    return length - 2 - num_images * (patches_per_image + 2)


class FirstFit(Generic[Item]):
    """Packs items into rows of a fixed length. Each item goes into the first open row with enough space.

    If no row has enough space and `open_rows` rows are open, the fullest row is closed and a new one opened. Items are
    never cut. `rows` contains the open rows, so that packing can resume where it stopped.

    Args:
        length: Positions of a row.
        open_rows: Rows that are open at the same time; more rows waste less space.
    """

    def __init__(self, length: int, open_rows: int) -> None:
        self.length = length
        self.open_rows = open_rows
        self.rows: list[list[tuple[int, Item]]] = []  # (item length, item)

    def add(self, item: Item, length: int) -> list[Item] | None:
        """Add an item. Returns the items of the row that was closed for it, or None."""
        if length > self.length:
            raise ValueError(f"a document of {length} positions does not fit into rows of {self.length}")
        filled = [sum(length for length, _ in row) for row in self.rows]
        for row, taken in zip(self.rows, filled, strict=True):
            if taken + length <= self.length:
                row.append((length, item))
                return None
        closed = None
        if len(self.rows) >= self.open_rows:  # more than that, if a run resumes with fewer open rows
            fullest = filled.index(max(filled))
            closed = [item for _, item in self.rows.pop(fullest)]
        self.rows.append([(length, item)])
        return closed

    def flush(self) -> Iterator[list[Item]]:
        """Close the remaining rows and yield their items."""
        while self.rows:
            yield [item for _, item in self.rows.pop(0)]


def collate(
    rows: Sequence[Sequence[FlatDocument]], length: int, pad: int, latent_shape: tuple[int, int, int]
) -> PackedBatch:
    """Make a PackedBatch with rows of `length` positions.

    If there are no images, the batch has one empty group of latents of `latent_shape` (C, H, W).
    """
    shape = len(rows), length
    tokens, labels, image_ids, private = (np.full(shape, value) for value in (pad, IGNORE_INDEX, TEXT, TEXT))
    positions, document_ids = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    images: list[ImageSegment] = []
    lengths = []
    for i, row in enumerate(rows):
        end = 0
        for number, document in enumerate(row):
            start, end = end, end + len(document.tokens)
            tokens[i, start:end] = document.tokens
            labels[i, start:end] = document.labels
            document_ids[i, start:end] = number
            own = np.array(document.image_ids)
            image_ids[i, start:end] = np.where(own < 0, TEXT, own + len(images))
            is_private = np.isin(own, [n for n, image in enumerate(document.images) if image.clean_copy])
            private[i, start:end] = np.where(is_private, image_ids[i, start:end], TEXT)
            # Noised copies take no positions: a clean copy starts where its noised one does.
            earlier = np.maximum.accumulate(np.where(is_private, 0, is_private.cumsum()))
            positions[i, start:end] = np.arange(end - start) - earlier
            images += document.images
        lengths.append(end)
        # Padding is attended to like text. One long document of padding would cost more than the real documents.
        longest = max((len(document.tokens) for document in row), default=length)
        document_ids[i, end:], positions[i, end:] = np.divmod(np.arange(length - end), longest)
        document_ids[i, end:] += len(row)
    targets = torch.from_numpy(np.flatnonzero(labels != IGNORE_INDEX))
    groups = image_groups(images, image_ids) if images else (empty_group(latent_shape),)
    counts = len(targets), sum(len(g.learned) for g in groups), sum(g.num_learned_patches for g in groups)
    return PackedBatch(
        tokens=torch.from_numpy(tokens),
        labels=torch.from_numpy(labels),
        positions=torch.from_numpy(positions),
        document_ids=torch.from_numpy(document_ids),
        image_ids=torch.from_numpy(image_ids),
        private_ids=torch.from_numpy(private if (private != TEXT).any() else private[:0]),
        image_groups=groups,
        target_positions=targets,
        lengths=torch.tensor(lengths),
        step_counts=torch.tensor(counts),
    )


def empty_group(latent_shape: tuple[int, int, int]) -> ImageGroup:
    """A group without images, so that training runs the patcher in every batch."""
    none = torch.zeros(0, dtype=torch.int64)
    return ImageGroup(torch.zeros(0, *latent_shape), none.view(0, 0), none, none)


def image_groups(images: Sequence[ImageSegment], image_ids: np.ndarray) -> tuple[ImageGroup, ...]:
    """Group images by kind and shape, in the order of their first image. `image_ids` (B, L) are their numbers."""
    if not images:
        return ()
    at = np.flatnonzero(image_ids != TEXT)  # image after image, since they are numbered in row-major order
    places = np.split(at, np.cumsum(np.bincount(image_ids.ravel()[at]))[:-1])
    groups = defaultdict(list)
    for image, patches in zip(images, places, strict=True):
        groups[type(image.value), tensor_of(image.value).shape].append((image, patches))
    made = []
    for (kind, _), members in groups.items():
        values = torch.stack([tensor_of(image.value) for image, _ in members])
        made.append(
            ImageGroup(
                images=values if issubclass(kind, torch.Tensor) else kind(values),
                at=torch.from_numpy(np.stack([patches for _, patches in members])),
                max_timesteps=torch.tensor([image.max_timestep for image, _ in members], dtype=torch.int64),
                learned=torch.tensor([i for i, (image, _) in enumerate(members) if image.learn], dtype=torch.int64),
            )
        )
    return tuple(made)


def tensor_of(value: ImageValue) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else value.tensor
