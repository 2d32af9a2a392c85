"""Packing against padding: how much of what is computed is real, and what a real token costs."""

import random

from benchmarks.batches import CHANNELS, MARKERS, flat, pairs
from benchmarks.report import Table
from benchmarks.timing import interleave, show
from benchmarks.training import new_net, new_step
from lit_transfusion.data.document import Document, TextSegment
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
    """The same documents, text among pairs, as rows of their own and packed."""
    count, size, length = (8, SIZES["nano"], 512) if quick else (32, SIZES["tiny"], 2048)
    numbers = random.Random(0)
    mixed = [
        document
        if i % 3 == 0
        else Document((TextSegment(tuple(numbers.randrange(5, 8192) for _ in range(numbers.randint(5, 200)))),))
        for i, document in enumerate(pairs(count, side=8 if quick else 16))
    ]
    documents = [flat(document) for document in mixed]
    longest = max(len(document.tokens) for document in documents)
    shape = (CHANNELS, *next(d.images[0].latents.shape[1:] for d in mixed if d.images))
    batches = {
        "padded": collate([[document] for document in documents], longest, MARKERS.pad, shape),
        "packed": collate(first_fit(documents, length), length, MARKERS.pad, shape),
    }
    timing = interleave(
        {name: new_step(new_net(size), batch) for name, batch in batches.items()}, rounds=3 if quick else 5
    )
    table = Table(
        f"A training step, {count} documents: a third pairs with {shape[1] ** 2} patches, the rest text of 5 to 200",
        ["", "rows x positions", "ms", "real tokens/s", "ratio"],
    )
    for name, batch in batches.items():
        tokens = int(batch.lengths.sum())
        ratio = timing["padded"].median / timing[name].median
        shape = "x".join(map(str, batch.tokens.shape))
        table.add(name, shape, timing[name], show(tokens / timing[name].median), f"**{ratio:.2f}x**")
    return table


def first_fit(documents: list[FlatDocument], length: int) -> list[list[FlatDocument]]:
    packer = FirstFit(length, open_rows=16)
    closed = [row for document in documents if (row := packer.add(document, len(document.tokens)))]
    return [*closed, *packer.flush()]
