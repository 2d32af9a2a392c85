"""Random documents and batches for the benchmarks, packed by lit_transfusion."""

import random
from types import SimpleNamespace

import torch

from lit_transfusion.data.packing import FlatDocument, SquarePatches, collate, flatten
from lit_transfusion.data.types import Document, ImageSegment, PackedBatch, TextSegment

CHANNELS = 16  # channels of a latent image; a patch is one latent pixel
MARKERS = SimpleNamespace(pad=0, bos=1, eos=2, boi=3, eoi=4, encode=lambda text: ())  # a tokenizer without text


def pairs(count: int, side: int, vocab_size: int = 8192, seed: int = 0) -> list[Document]:
    """Captions of 5 to 40 tokens, each followed by an image of `side` x `side` patches."""
    numbers, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    documents = []
    for _ in range(count):
        words = (1, *(numbers.randrange(5, vocab_size) for _ in range(numbers.randint(5, 40))))
        image = torch.randn(CHANNELS, side, side, generator=generator)
        documents.append(Document((TextSegment(words), ImageSegment(image), TextSegment((2,)))))
    return documents


def one_long_document(length: int, side: int, vocab_size: int = 8192, seed: int = 0) -> Document:
    """One document of at most `length` positions, with alternating captions and images."""
    segments, taken = [], 0
    for document in pairs(length // side**2 + 1, side, vocab_size, seed):
        caption, image, _ = document.segments
        taken += len(caption.token_ids) + side**2 + 2
        if taken > length:
            break
        segments += [caption, image]
    return Document(tuple(segments))


def flat(document: Document) -> FlatDocument:
    return flatten(document, MARKERS, SquarePatches(patch_size=1))


def packed(length: int, rows: int, side: int, vocab_size: int = 8192, seed: int = 0, long: bool = False) -> PackedBatch:
    """A batch whose rows contain pairs, or one long document each."""
    if long:
        filled = [[flat(one_long_document(length, side, vocab_size, seed + row))] for row in range(rows)]
        return collate(filled, length, MARKERS.pad, (CHANNELS, side, side))
    documents = iter(pairs(rows * (length // side**2 + 1), side, vocab_size, seed))
    filled, waiting = [], flat(next(documents))
    for _ in range(rows):
        row: list[FlatDocument] = []
        while sum(len(document.tokens) for document in row) + len(waiting.tokens) <= length:
            row.append(waiting)
            waiting = flat(next(documents))
        filled.append(row)
    return collate(filled, length, MARKERS.pad, (CHANNELS, side, side))
