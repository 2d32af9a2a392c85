"""Packing compared with padding: the share of computed positions that are real, and the cost of a real token."""

import random
from itertools import islice

from benchmarks.batches import MARKERS, flat, pairs
from benchmarks.report import Table
from benchmarks.timing import interleave, show
from benchmarks.training import new_net, new_step
from lit_transfusion.data.packing import FirstFit, FlatDocument, collate
from lit_transfusion.data.types import Document, TextSegment
from lit_transfusion.model import SIZES


def run(quick: bool, device: str = "cpu") -> list[Table]:
    return [shares(2_000 if quick else 20_000), seconds(quick)]


def lengths(mix: str, count: int) -> list[int]:
    """Positions of random documents: captions of 5 to 40 tokens and images with their markers, or text alone."""
    numbers = random.Random(0)
    caption = [numbers.randint(5, 40) for _ in range(count)]
    if mix == "caption + 64 patches":
        return [words + 66 for words in caption]
    if mix == "caption + 256 patches":
        return [words + 258 for words in caption]
    if mix == "caption + 64, 144 or 256 patches":
        return [words + numbers.choice((64, 144, 256)) + 2 for words in caption]
    return [numbers.randint(5, 200) if numbers.random() < 0.7 else words + 258 for words in caption]


def shares(count: int) -> Table:
    table = Table(
        f"Share of the computed positions that hold a token or patch, {count} documents",
        ["documents", "padded, 8 a batch", "padded, 32", "sorted, 32", "first fit, L=1024", "first fit, L=4096"],
    )
    for mix in (
        "caption + 64 patches",
        "caption + 256 patches",
        "caption + 64, 144 or 256 patches",
        "70 % text of 5 to 200, 30 % caption + 256 patches",
    ):
        documents = lengths(mix, count)
        padded = [padded_share(documents, 8), padded_share(documents, 32), padded_share(sorted(documents), 32)]
        fits = [first_fit_share(documents, length) for length in (1024, 4096)]
        table.add(mix, *(f"{share:.1%}" for share in (*padded, *fits)))
    return table


def padded_share(documents: list[int], batch: int) -> float:
    batches = [documents[start : start + batch] for start in range(0, len(documents), batch)]
    return sum(documents) / sum(max(rows) * len(rows) for rows in batches)


def first_fit_share(documents: list[int], length: int) -> float:
    packer = FirstFit(length, open_rows=16)
    rows = sum(packer.add(None, size) is not None for size in documents) + len(list(packer.rows))
    return sum(documents) / (rows * length)


def seconds(quick: bool) -> Table:
    """Time of a training step on the documents of two rows, padded (one document per row) and packed."""
    count, size, length, sides = (200, SIZES["nano"], 512, (4, 8)) if quick else (800, SIZES["tiny"], 2048, (8, 16))
    small, large = (pairs(count, side) for side in sides)
    mixes = {
        f"caption + {sides[0] ** 2} patches": small,
        f"caption + {sides[1] ** 2} patches": large,
        f"70 % text of 5 to 200, 30 % caption + {sides[1] ** 2} patches": [
            text if i % 10 < 7 else pair for i, (text, pair) in enumerate(zip(texts(count), large, strict=True))
        ],
        f"caption + {', '.join(str(side**2) for side in sides)} patches, mixed": [
            pair for both in zip(small, large, strict=True) for pair in both
        ],
    }
    table = Table(
        "A training step on the documents of two rows",
        ["documents", "", "rows x positions", "filled", "ms", "real tokens/s", "ratio"],
    )
    for mix, documents in mixes.items():
        rows = two_rows(documents, length)
        image_shape = tuple(next(image.latents.shape for row in rows for one in row for image in one.images))
        alone = [[document] for row in rows for document in row]
        longest = max(len(document.tokens) for (document,) in alone)
        batches = {
            "padded": collate(alone, longest, MARKERS.pad, image_shape),
            "packed": collate(rows, length, MARKERS.pad, image_shape),
        }
        timing = interleave(
            {name: new_step(new_net(size), batch) for name, batch in batches.items()}, rounds=3 if quick else 5
        )
        for name, batch in batches.items():
            tokens = int(batch.lengths.sum())
            ratio = timing["padded"].median / timing[name].median
            shape = "x".join(map(str, batch.tokens.shape))
            filled = f"{tokens / batch.tokens.numel():.1%}"
            speed = show(tokens / timing[name].median)
            table.add(mix, name, shape, filled, timing[name], speed, f"**{ratio:.2f}x**")
    return table


def two_rows(documents: list[Document], length: int) -> list[list[FlatDocument]]:
    """The first two rows that first-fit packing completes."""
    packer = FirstFit(length, open_rows=16)
    closed = (packer.add(document, len(document.tokens)) for document in map(flat, documents))
    return list(islice(filter(None, closed), 2))


def texts(count: int) -> list[Document]:
    numbers = random.Random(0)
    return [
        Document((TextSegment(tuple(numbers.randrange(5, 8192) for _ in range(numbers.randint(5, 200)))),))
        for _ in range(count)
    ]
