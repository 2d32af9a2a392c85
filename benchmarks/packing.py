"""Packing against padding: how much of what is computed is real, and what a real token costs."""

import random

from benchmarks.batches import MARKERS, flat, pairs
from benchmarks.report import Table
from benchmarks.timing import interleave, show
from benchmarks.training import new_net, new_step
from lit_transfusion.data.document import Document, PackedBatch, TextSegment
from lit_transfusion.data.packing import FirstFit, FlatDocument, collate
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
    """The same documents as rows of their own and packed."""
    count, size, length, sides = (8, SIZES["nano"], 512, (4, 8)) if quick else (32, SIZES["tiny"], 2048, (8, 16))
    small, large = (pairs(count, side) for side in sides)
    mixes = {
        f"caption + {sides[0] ** 2} patches": small,
        f"caption + {sides[1] ** 2} patches": large,
        f"70 % text of 5 to 200, 30 % caption + {sides[1] ** 2} patches": [
            text if i % 10 < 7 else pair for i, (text, pair) in enumerate(zip(texts(count), large, strict=True))
        ],
    }
    table = Table(
        f"A training step, {count} documents",
        ["documents", "", "rows x positions", "ms", "real tokens/s", "ratio"],
        notes=["A batch holds images of one size, so that the mix of sizes above has no step of its own."],
    )
    for mix, documents in mixes.items():
        batches = {"padded": padded(documents), "packed": packed(documents, length)}
        timing = interleave(
            {name: new_step(new_net(size), batch) for name, batch in batches.items()}, rounds=3 if quick else 5
        )
        tokens = int(batches["padded"].lengths.sum())
        assert tokens == int(batches["packed"].lengths.sum())
        for name, batch in batches.items():
            ratio = timing["padded"].median / timing[name].median
            shape = "x".join(map(str, batch.tokens.shape))
            table.add(mix, name, shape, timing[name], show(tokens / timing[name].median), f"**{ratio:.2f}x**")
    return table


def texts(count: int) -> list[Document]:
    numbers = random.Random(0)
    return [
        Document((TextSegment(tuple(numbers.randrange(5, 8192) for _ in range(numbers.randint(5, 200)))),))
        for _ in range(count)
    ]


def padded(documents: list[Document]) -> PackedBatch:
    rows = [flat(document) for document in documents]
    return collate([[row] for row in rows], max(len(row.tokens) for row in rows), MARKERS.pad, image_shape(documents))


def packed(documents: list[Document], length: int) -> PackedBatch:
    rows = first_fit([flat(document) for document in documents], length)
    return collate(rows, length, MARKERS.pad, image_shape(documents))


def image_shape(documents: list[Document]) -> tuple[int, int, int]:
    return tuple(next(document.images[0].latents.shape for document in documents if document.images))


def first_fit(documents: list[FlatDocument], length: int) -> list[list[FlatDocument]]:
    packer = FirstFit(length, open_rows=16)
    closed = [row for document in documents if (row := packer.add(document, len(document.tokens)))]
    return [*closed, *packer.flush()]
