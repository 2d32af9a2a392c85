"""Each document of an epoch is used once over all ranks, workers and stops: real texts, packed and read back from rows.

A document is identified by the hash of its text. Its epoch is appended as one more token, because the epochs of the
ranks overlap: documents in open rows at the end of an epoch appear in batches of the next.
"""

import hashlib
import io
import json
import random
from collections import Counter

import pytest
import torch

from lit_transfusion.data.document_set import DocumentSet
from lit_transfusion.data.loader import PackedLoader
from lit_transfusion.data.recipe import Recipe
from lit_transfusion.data.sources import TextCorpus
from lit_transfusion.data.types import IGNORE_INDEX, TEXT

LENGTH, BATCH_SIZE, RANKS = 256, 8, 2


class Dated(DocumentSet):
    """Documents with their epoch as last token."""

    def __getitem__(self, key):
        return [
            document._replace(
                tokens=[*document.tokens, key[0]],
                labels=[*document.labels, IGNORE_INDEX],
                image_ids=[*document.image_ids, TEXT],
            )
            for document in super().__getitem__(key)
        ]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def corpus(tmp_path):
    """Write different texts of a few words to a .jsonl. Returns its path and the hash of each text."""

    def corpus(count: int) -> tuple[TextCorpus, list[str]]:
        words = random.Random(0)
        texts = [f"{i} {' '.join(words.choices(('red', 'circle', 'two'), k=i % 9))}".strip() for i in range(count)]
        (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return TextCorpus(str(tmp_path / "texts.jsonl"), val_fraction=0.0), [digest(text) for text in texts]

    return corpus


def read_back(batch, tokenizer) -> list[tuple[int, str]]:
    """(epoch, hash of the text) of each document in the rows of a batch."""
    found = []
    for tokens, ids, length in zip(batch.tokens, batch.document_ids, batch.lengths.tolist(), strict=True):
        for document in tokens[:length].split(ids[:length].unique_consecutive(return_counts=True)[1].tolist()):
            *text, epoch = document.tolist()
            assert text[0] == tokenizer.bos and text[-1] == tokenizer.eos
            found.append((epoch, digest(tokenizer.decode(text[1:-1]))))
    return found


def first_epoch(make, rank: int, stops: dict[int, int], num_workers: int, tokenizer) -> list[str]:
    """Read all documents of the first epoch of a rank.

    `stops` maps numbers of batches to numbers of workers: the run stops there, its state is saved to a file, and it
    resumes with this number of workers.
    """
    loader, found, count = make(rank, num_workers), [], 0
    batches = iter(loader)
    while True:
        (state,) = loader.state_dict()["ranks"]
        epochs = {epoch for row in state["open"] for epoch, *_ in row} | {place["epoch"] for place in state["streams"]}
        if 0 not in epochs:
            assert not stops
            return [text for epoch, text in found if epoch == 0]
        if count in stops:
            batches.close()
            file = io.BytesIO()
            torch.save({"ranks": [state] * RANKS}, file)
            file.seek(0)
            loader = make(rank, stops.pop(count))
            loader.load_state_dict(torch.load(file, weights_only=True))
            batches = iter(loader)
        found += read_back(next(batches), tokenizer)
        count += 1


STOPS = {0.1: 2, 0.5: 0, 0.9: 1}  # share of the epoch → number of workers to resume with


@pytest.mark.parametrize(
    ("size", "stops"),
    [
        pytest.param(601, {0.4: 0}, id="601 resumed"),
        pytest.param(20_000, {}, marks=pytest.mark.slow, id="20000"),
        pytest.param(20_000, STOPS, marks=pytest.mark.slow, id="20000 resumed"),
        pytest.param(20_001, STOPS, marks=pytest.mark.slow, id="20001 resumed"),
    ],
)
def test_every_text_of_an_epoch_is_read_once_by_one_of_two_ranks_with_two_workers(corpus, tokenizer, size, stops):
    """With 601 texts, one rank has 301 and the other 300: no text is lost or repeated."""
    source, expected = corpus(size)
    documents = Dated(source, Recipe(), tokenizer, lambda image: 1, 1, LENGTH, seed=3)

    def make(rank, num_workers):
        return PackedLoader(documents, BATCH_SIZE, (3, 2, 2), num_workers=num_workers, rank=rank, world_size=RANKS)

    batches_of_rank = sum(len(documents[0, i][0].tokens) for i in range(0, size, 7)) * 7 / RANKS / LENGTH / BATCH_SIZE
    parts = [
        first_epoch(make, rank, {int(at * batches_of_rank): n for at, n in stops.items()}, 2, tokenizer)
        for rank in range(RANKS)
    ]
    assert [len(part) for part in parts] == [(size + 1) // 2, size // 2]
    assert Counter(parts[0] + parts[1]) == Counter(expected) and len(set(expected)) == size
