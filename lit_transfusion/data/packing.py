"""Documents → rows of equal length → one batch."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Generic, NamedTuple, TypeVar

import torch

from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.data.types import IGNORE_INDEX, TEXT, Document, ImageSegment, PackedBatch

Item = TypeVar("Item")


class FlatDocument(NamedTuple):
    """A document as it stands in a row: one entry for each position."""

    tokens: list[int]
    labels: list[int]
    image_ids: list[int]  # index into the document's own images, TEXT elsewhere
    images: list[ImageSegment]
    cut: bool = False  # as in Document


def flatten(document: Document, tokenizer: Tokenizer, patches_per_image: int) -> FlatDocument:
    """Put BOI and EOI around the images, and the next token, where it is to be learned, at each position.

    What is learned (paper, 3.2 and footnote 8): text tokens and the BOI after learned text. What is not: patches; EOI,
    since it is the decoder that appends it; anything at an input BOI. An EOI as input predicts the text after it.
    A text without tokens before an image decides for its BOI alone: after a prompt, one that is learned makes the BOI
    learned and nothing of the prompt; after a learned text, one that is not learned leaves the BOI out.
    """
    tokens: list[int] = []
    learn: list[bool] = []
    image_ids: list[int] = []
    images: list[ImageSegment] = []
    learn_boi = False  # at the start of a document nothing precedes BOI that could predict it
    for segment in document.segments:
        if isinstance(segment, ImageSegment):
            tokens += [tokenizer.boi, *[tokenizer.pad] * patches_per_image, tokenizer.eoi]
            learn += [learn_boi, *[False] * (patches_per_image + 1)]
            image_ids += [TEXT, *[len(images)] * patches_per_image, TEXT]
            images.append(segment)
        else:
            tokens += segment.token_ids
            learn += [segment.learn] * len(segment.token_ids)
            image_ids += [TEXT] * len(segment.token_ids)
            learn_boi = segment.learn
    labels = [t if learned else IGNORE_INDEX for t, learned in zip(tokens[1:], learn[1:], strict=True)]
    return FlatDocument(tokens, [*labels, IGNORE_INDEX], image_ids, images, document.cut)


def room_for_text(length: int, patches_per_image: int, num_images: int) -> int:
    """Positions of a row that are left for text beside BOS, EOS and images with their BOI and EOI."""
    return length - 2 - num_images * (patches_per_image + 2)


class FirstFit(Generic[Item]):
    """Packs items into rows of a fixed length: each goes into the first open row that has room.

    When no row has room and `open_rows` are open, the fullest is closed to make place for a new one. Items are never
    cut. What is still open is in `rows`, so that packing can be taken up again where it stopped.

    Args:
        length: Positions of a row.
        open_rows: Rows that are kept open at once; more waste less.
    """

    def __init__(self, length: int, open_rows: int) -> None:
        self.length = length
        self.open_rows = open_rows
        self.rows: list[list[tuple[int, Item]]] = []  # (item length, item)

    def add(self, item: Item, length: int) -> list[Item] | None:
        """Take an item; returns the items of a row if one had to be closed."""
        if length > self.length:
            raise ValueError(f"a document of {length} positions does not fit into rows of {self.length}")
        filled = [sum(length for length, _ in row) for row in self.rows]
        for row, taken in zip(self.rows, filled, strict=True):
            if taken + length <= self.length:
                row.append((length, item))
                return None
        closed = None
        if len(self.rows) >= self.open_rows:  # more, where a run goes on with fewer open rows
            fullest = filled.index(max(filled))
            closed = [item for _, item in self.rows.pop(fullest)]
        self.rows.append([(length, item)])
        return closed

    def flush(self) -> Iterator[list[Item]]:
        """Close the rows that are left."""
        while self.rows:
            yield [item for _, item in self.rows.pop(0)]


def collate(
    rows: Sequence[Sequence[FlatDocument]], length: int, pad: int, image_shape: tuple[int, int, int]
) -> PackedBatch:
    """Rows of documents → PackedBatch of rows of `length` positions. `image_shape` is (C, H, W), for want of images."""
    names = ("tokens", "labels", "positions", "document_ids", "image_ids")
    columns: dict[str, list[list[int]]] = {name: [] for name in names}
    images: list[ImageSegment] = []
    lengths = []
    for row in rows:
        tokens: list[int] = []
        labels: list[int] = []
        positions: list[int] = []
        document_ids: list[int] = []
        image_ids: list[int] = []
        for number, document in enumerate(row):
            tokens += document.tokens
            labels += document.labels
            positions += range(len(document.tokens))
            document_ids += [number] * len(document.tokens)
            image_ids += [TEXT if i < 0 else i + len(images) for i in document.image_ids]
            images += document.images
        # Padding is attended to like text. As one long document it would cost more than the documents beside it.
        lengths.append(len(tokens))
        padding = length - len(tokens)
        longest = max((len(document.tokens) for document in row), default=length)
        tokens += [pad] * padding
        labels += [IGNORE_INDEX] * padding
        positions += [i % longest for i in range(padding)]
        document_ids += [len(row) + i // longest for i in range(padding)]
        image_ids += [TEXT] * padding
        for column, values in zip(columns.values(), (tokens, labels, positions, document_ids, image_ids), strict=True):
            column.append(values)
    learned = [i for i, image in enumerate(images) if image.learn]
    targets = [i for i, label in enumerate(chain.from_iterable(columns["labels"])) if label != IGNORE_INDEX]
    return PackedBatch(
        **{name: torch.tensor(column) for name, column in columns.items()},
        images=torch.stack([image.latents for image in images]) if images else torch.zeros(0, *image_shape),
        max_timesteps=torch.tensor([image.max_timestep for image in images], dtype=torch.int64),
        learned_images=torch.tensor(learned, dtype=torch.int64),
        target_positions=torch.tensor(targets, dtype=torch.int64),
        lengths=torch.tensor(lengths),
        step_counts=torch.tensor([len(targets), len(learned)]),
    )
