"""Mix: each document of an epoch is used once, and shares hold, also in resumed runs."""

import gc
import json
import multiprocessing
import random
import re
from collections import Counter
from itertools import islice

import pytest
import torch

from lit_transfusion.data.datamodule import TransfusionData
from lit_transfusion.data.document_set import DocumentSet
from lit_transfusion.data.loader import PackedLoader
from lit_transfusion.data.packing import FlatDocument
from lit_transfusion.data.recipe import Recipe
from lit_transfusion.data.sources import ImageCaptions, Mix, Shards, Source, TextCorpus
from lit_transfusion.data.stream_state import Place
from lit_transfusion.data.types import TEXT, Example, TextExample
from lit_transfusion.data.worker_feed import Feed
from lit_transfusion.errors import InputError
from lit_transfusion.evaluation.metric import Subject
from lit_transfusion.latents import Pixels
from lit_transfusion.prepare.command import prepare
from lit_transfusion.shapes.edits import ShapeEdits
from lit_transfusion.shapes.source import Shapes

LENGTH = 128


class CountedExamples(Source):
    """A source with a length and no examples."""

    def __init__(self, size: int, image_size: int = 2) -> None:
        super().__init__(image_size)
        self.size = size

    def split(self, name):
        return self

    def __len__(self):
        return self.size


class Labelled(DocumentSet):
    """Documents whose first tokens are epoch, index and piece. Every tenth example has three documents."""

    def __getitem__(self, key):
        epoch, index = key
        sizes = random.Random(f"{epoch} {index}")
        documents = []
        for piece in range(3 if index % 10 == 0 else 1):
            tokens = [epoch, index, piece, *[0] * sizes.randrange(4, 24)]
            documents.append(FlatDocument(tokens, [-100] * len(tokens), [TEXT] * len(tokens), []))
        return documents


class Changed:
    """Documents changed by a function."""

    def __init__(self, documents, change):
        self.documents, self.change = documents, change

    def __getitem__(self, key):
        return self.change(self.documents, key)


def labelled_loader(tokenizer, sizes, weights=None, later=None, **options):
    """A loader of a mix of sources of these sizes, named a, b, …"""
    names = "abcdef"[: len(sizes)]
    sources = {name: CountedExamples(size) for name, size in zip(names, sizes, strict=True)}
    by_name = {since: dict(zip(names, weights, strict=True)) for since, weights in (later or {}).items()}
    source = Mix(sources, dict(zip(names, weights, strict=True)) if weights else None, later=by_name)
    documents = Labelled(source, Recipe(), tokenizer, lambda image: 1, 1, LENGTH, 0)
    return PackedLoader(documents, 4, (3, 2, 2), **options)


def places_of(loader) -> list[Place]:
    return [Place(**place) for place in loader._state["streams"]]


def labels(batches) -> list[tuple[int, int, int]]:
    """(epoch, index, piece) of each document."""
    found = []
    for batch in batches:
        for tokens, document_ids, length in zip(batch.tokens, batch.document_ids, batch.lengths, strict=True):
            starts = [i for i in range(length) if i == 0 or document_ids[i] != document_ids[i - 1]]
            found += [tuple(tokens[i : i + 3].tolist()) for i in starts]
    return found


def assert_equal(first, second):
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


# Each document once


def whole_epoch(loader, resume_at=(), make=None) -> list[tuple[int, int, int]]:
    """The documents of the first epoch of each source, in batches and in the rows still open at its end."""
    batches, iterator = [], iter(loader)
    while min(place["epoch"] for place in loader._state["streams"]) < 1:
        batches.append(next(iterator))
        if len(batches) in resume_at:
            state = json.loads(json.dumps(loader.state_dict()))
            loader = make()
            loader.load_state_dict({"ranks": state["ranks"] * loader.world_size})
            iterator = iter(loader)
    waiting = [tuple(piece) for row in loader._state["open"] for piece in row]
    return [label for label in labels(batches) + waiting if label[0] == 0]


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize(("size", "num_workers"), [(300, 0), (300, 2), pytest.param(20_000, 2, marks=pytest.mark.slow)])
def test_each_document_of_an_epoch_comes_once(tokenizer, size, num_workers, resumed):
    sizes = [size // 2, size // 5, size - size // 2 - size // 5]
    expected = [(0, index, piece) for index in range(size) for piece in range(3 if index % 10 == 0 else 1)]
    found = []
    for rank in (0, 1):

        def make(rank=rank):
            return labelled_loader(tokenizer, sizes, (0.5, 0.2, 0.3), num_workers=num_workers, rank=rank, world_size=2)

        found += [*whole_epoch(make(), (1, 4, size // 80) if resumed else (), make)]
    assert Counter(found) == Counter(expected)


def documents_of_runs(tokenizer, sizes, numbers_of_rows) -> list[tuple[int, int, int]]:
    """The documents of the first epoch of each source, read by several groups of processes, one after another.

    `numbers_of_rows` has one list for each group, with the number of rows for each process. The last group reads until
    the epoch is complete (None).
    """
    found, state = [], None
    for numbers in numbers_of_rows:
        ranks = range(len(numbers))
        loaders = [labelled_loader(tokenizer, sizes, rank=rank, world_size=len(ranks)) for rank in ranks]
        for loader, number in zip(loaders, numbers, strict=True):
            loader.batch_size, loader.open_rows = 1, 3
            if state is not None:
                loader.load_state_dict(json.loads(json.dumps(state)))
            batches = iter(loader)
            while left(loader) if number is None else number > 0:
                found += labels([next(batches)])
                number = None if number is None else number - 1
        state = {"ranks": [loader.state_dict()["ranks"][0] for loader in loaders]}
    return [label for label in found if label[0] == 0]


def left(loader) -> bool:
    """Whether some documents of the first epoch are not used yet."""
    (state,) = loader.state_dict()["ranks"]
    to_come = [item for row in state["open"] for item in row]
    to_come += [item for place in state["streams"] for item in place["todo"]]
    epochs = {place["epoch"] for place in state["streams"]} | {epoch for epoch, *_ in to_come}
    return 0 in epochs


@pytest.mark.parametrize("seed", range(8))
def test_each_document_of_an_epoch_comes_once_when_the_number_of_processes_changes(tokenizer, seed):
    """Processes stop within an example, an epoch ahead of others, or before leftovers of others are used."""
    draws, sizes = random.Random(seed), (240, 130)  # about 60 rows
    most = 40 if seed % 4 == 0 else 10  # largest number of rows of a process
    numbers = [[draws.randint(0, most) for _ in range(draws.randint(1, 3))] for _ in range(draws.randint(1, 3))]
    numbers.append([None] * (len(numbers[-1]) % 3 + 1))
    expected = [(0, index, piece) for index in range(sum(sizes)) for piece in range(3 if index % 10 == 0 else 1)]
    assert Counter(documents_of_runs(tokenizer, sizes, numbers)) == Counter(expected)


def test_short_source_repeats_and_a_long_one_does_not_wait(tokenizer):
    found = labels(islice(labelled_loader(tokenizer, (11, 500)), 30))
    short = Counter((epoch, index) for epoch, index, piece in found if index < 11 and piece == 0)
    assert set(short.values()) == {1} and max(epoch for epoch, _ in short) > 10
    assert {epoch for epoch, index, _ in found if index >= 11} == {0}


def test_sources_of_one_size_have_different_orders(tokenizer):
    loader = labelled_loader(tokenizer, (50, 50))
    orders = [list(islice(keys, 50)) for keys in map(loader._keys, loader.streams, places_of(loader))]
    assert [index for _, index in orders[0]] != [index - 50 for _, index in orders[1]]


def test_each_source_is_divided_among_all_ranks(tokenizer):
    with pytest.raises(InputError, match="2 examples of b cannot be divided among 3 processes"):
        labelled_loader(tokenizer, (50, 2), world_size=3)


def test_few_documents_are_made_in_advance(tokenizer):
    """This holds also for very unequal use of the streams."""
    loader = labelled_loader(tokenizer, (1000, 1000))
    keys = list(map(loader._keys, loader.streams, places_of(loader)))
    feed = Feed(loader.documents, keys, num_workers=2)
    taken = [feed.take(0).key for _ in range(300)]
    assert len(set(taken)) > 200  # some have three pieces
    assert sum(map(len, feed._ready)) <= 3 * 16 * 2
    assert feed.take(1).key[1] >= 1000


def test_workers_end_when_a_pass_is_closed(tokenizer):
    """They end immediately, without garbage collection."""
    before = set(multiprocessing.active_children())
    gc.disable()
    try:
        batches = iter(labelled_loader(tokenizer, (100, 100), num_workers=2))
        next(batches)
        assert len(set(multiprocessing.active_children()) - before) == 2
        batches.close()
        assert not set(multiprocessing.active_children()) - before
    finally:
        gc.enable()


# Shares


def shares(batches, loader) -> list[float]:
    """The share of each source in the positions of the batches."""
    counts = [0] * len(loader.streams)
    for batch in batches:
        for tokens, document_ids, length in zip(batch.tokens, batch.document_ids, batch.lengths, strict=True):
            for number in document_ids[:length].unique():
                inside = document_ids[:length] == number
                index = int(tokens[:length][inside][1])
                stream = next(i for i, stream in enumerate(loader.streams) if index in stream.indices)
                counts[stream] += int(inside.sum())
    return [count / sum(counts) for count in counts]


@pytest.mark.parametrize("weights", [(0.5, 0.5), (3, 1, 1), (0.9, 0.1)])
def test_shares_are_kept_and_rows_are_full(tokenizer, weights):
    loader = labelled_loader(tokenizer, [400] * len(weights), weights)
    batches = list(islice(loader, 60))  # 240 rows of about 8 documents
    wanted = [weight / sum(weights) for weight in weights]
    assert shares(batches, loader) == pytest.approx(wanted, abs=0.01)
    assert list(loader.shares().values()) == pytest.approx(wanted, abs=0.002)
    assert sum(int(batch.lengths.sum()) for batch in batches) / (240 * LENGTH) > 0.97


def test_run_resumed_with_other_weights_has_the_new_shares_immediately(tokenizer):
    first = labelled_loader(tokenizer, (300, 300), (0.9, 0.1))
    list(islice(first, 60))
    second = labelled_loader(tokenizer, (300, 300), (0.1, 0.9))
    second.load_state_dict(first.state_dict())
    assert shares(islice(second, 60), second) == pytest.approx([0.1, 0.9], abs=0.05)  # open rows contain the old shares
    assert list(second.shares().values()) == pytest.approx([0.1, 0.9], abs=0.002)


# Weights that change

CHANGES = [
    ((0.9, 0.1), {40: (0.2, 0.8)}),
    ((1, 0), {40: (0.5, 0.5)}),  # b is used only later
    ((3, 1), {40: (0, 1)}),  # a is not used any more
    ((0, 1), {20: (2, 3), 40: (1, 0)}),
]


@pytest.mark.parametrize(("weights", "later"), CHANGES)
def test_shares_are_kept_on_both_sides_of_a_change(tokenizer, weights, later):
    """Documents in open rows at the change are an exception."""
    loader = labelled_loader(tokenizer, (900, 700), weights, later, open_rows=2)
    iterator = iter(loader)
    begins = [0, *later]
    for begin, end, wanted in zip(begins, [*begins[1:], 110], [weights, *later.values()], strict=True):
        batches = [next(iterator) for _ in range(begin, end)]
        wanted = [weight / sum(wanted) for weight in wanted]
        assert shares(batches[3 if begin else 0 :], loader) == pytest.approx(wanted, abs=0.01)
        assert list(loader.shares().values()) == pytest.approx(wanted, abs=0.01)  # since the change


@pytest.mark.parametrize("num_workers", [0, 2])
def test_source_of_weight_0_is_never_served(tokenizer, num_workers):
    later = {5: (1, 1, 0), 12: (0, 1, 1)}
    loader = labelled_loader(tokenizer, (300, 200, 100), (1, 0, 0), later, num_workers=num_workers)
    iterator, waited = iter(loader), []
    for in_use, count in (({0}, 5), ({0, 1}, 7), ({1, 2}, 9)):
        found = labels(next(iterator) for _ in range(count))
        stream = {label: next(i for i, s in enumerate(loader.streams) if label[1] in s.indices) for label in found}
        assert {stream[label] for label in found if label not in waited} == in_use
        waited = [tuple(piece) for row in loader._state["open"] for piece in row]


def test_source_used_later_does_not_catch_up(tokenizer):
    """This holds also for a source that was used before and then unused for a while."""
    loader = labelled_loader(tokenizer, (300, 300), (1, 1), {20: (1, 0), 60: (1, 1)}, open_rows=1)
    iterator = iter(loader)
    list(islice(iterator, 63))
    assert shares(islice(iterator, 6), loader) == pytest.approx([0.5, 0.5], abs=0.03)


@pytest.mark.parametrize(
    ("stop", "num_workers"), [(0, 0), (1, 0), (11, 0), (12, 0), (13, 0), (14, 0), (19, 0), (20, 0), (29, 0), (12, 2)]
)
def test_run_resumes_exactly_around_a_change(tokenizer, stop, num_workers):
    def make(num_workers=0):
        later = {12: (1, 2, 0), 20: (0, 1, 3)}
        return labelled_loader(tokenizer, (120, 30, 70), (1, 1, 0), later, num_workers=num_workers)

    whole = list(islice(make(), 32))
    first, second = make(), make(num_workers)
    before = list(islice(first, stop))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert_equal(before + list(islice(second, 32 - stop)), whole)


def test_change_equals_a_stop_and_resume_with_other_weights(tokenizer):
    sizes, first, second = (120, 80), (3, 1), (1, 4)
    changing = labelled_loader(tokenizer, sizes, first, {9: second})
    stopped, other = labelled_loader(tokenizer, sizes, first), labelled_loader(tokenizer, sizes, second)
    batches = list(islice(stopped, 9))
    other.load_state_dict(stopped.state_dict())
    assert_equal(batches + list(islice(other, 20)), list(islice(changing, 29)))


def test_batch_that_is_given_back_is_not_counted(tokenizer):
    def make():
        return labelled_loader(tokenizer, (120, 80), (1, 0), {6: (0, 1)})

    first, second = make(), make()
    batches = list(islice(first, 6))  # the last one is not used
    first.give_back()
    second.load_state_dict(first.state_dict())
    assert_equal(batches[:5] + list(islice(second, 9)), list(islice(make(), 14)))


def test_each_rank_counts_its_own_batches(tokenizer):
    for rank in (0, 1):
        loader = labelled_loader(tokenizer, (120, 80), (1, 0), {3: (0, 1)}, rank=rank, world_size=2, open_rows=1)
        batches = list(islice(loader, 6))
        assert shares(batches[:3], loader) == [1, 0] and shares(batches[4:], loader) == [0, 1]


def test_source_without_examples_is_named_before_it_is_used(tokenizer):
    for sizes in ((5, 0), (0, 5)):
        name = "ab"[sizes.index(0)]
        weights = [float(size > 0) for size in sizes]
        with pytest.raises(InputError, match=f"none of the 0 examples of {name} can be used"):
            next(iter(labelled_loader(tokenizer, sizes, weights, {9: (1, 1)})))


@pytest.mark.parametrize(
    ("weights", "later", "message"),
    [
        ((1, 1), {0: {"a": 1, "b": 1}}, r"later\[0\] is not a whole number of batches above 0; .*weights"),
        ((1, 1), {-5: {"a": 1, "b": 1}}, r"later\[-5\] is not a whole number of batches"),
        ((1, 1), {1.5: {"a": 1, "b": 1}}, r"later\[1\.5\] is not a whole number of batches"),
        ((1, 1), {"abc": {"a": 1, "b": 1}}, r"later\[abc\] is not a whole number of batches"),
        ((1, 1), {9: {"a": 1, "c": 1}}, r"later\[9\] names c, .*a, b"),
        ((1, 1), {9: {"a": 1}}, r"later\[9\] has no weight for b; give each source a weight"),
        ((1, 1), {9: {"a": 1, "b": -1}}, r"in later\[9\], the weight of b is -1"),
        ((1, 1), {9: {"a": 1, "b": float("nan")}}, r"in later\[9\], the weight of b is nan"),
        ((1, 1), {9: {"a": 0, "b": 0}}, r"in later\[9\], all weights are 0"),
        ((0, 0), {9: {"a": 1, "b": 1}}, "in weights, all weights are 0"),
        ((1, 0), {9: {"a": 1, "b": 0}}, "the weight of b is 0; remove it, or .*`later`"),
    ],
)
def test_invalid_change_is_an_error(weights, later, message):
    with pytest.raises(InputError, match=message):
        Mix({"a": CountedExamples(3), "b": CountedExamples(3)}, dict(zip("ab", weights, strict=True)), later=later)


# Texts and pictures, as they are trained on


@pytest.fixture
def corpus(tmp_path):
    """Sixty texts of 1 to about 200 words; the longest are several documents."""
    words = ["a", "red", "circle", "and", "two", "blue", "squares\nare", "left", "of", "", "cross\n\nin", "the"]
    texts = random.Random(0)
    path = tmp_path / "texts.jsonl"
    with path.open("w") as file:
        for number in range(60):
            text = " ".join(texts.choices(words, k=min(200, int(texts.lognormvariate(2.5, 1)) + 1)))
            file.write(json.dumps({"text": f"{number} {text}"}) + "\n")
    return TextCorpus(str(path), 16, val_fraction=0.1)


@pytest.fixture
def data(corpus):
    def data(**options) -> TransfusionData:
        sources = {"text": corpus, "pairs": Shapes(num_examples=40, num_val_examples=9)}
        options = dict(image_size=16, patch_size=4, sequence_length=96, batch_size=2, vocab_size=320) | options
        source = options.pop("source", None) or Mix(sources, {"text": 0.5, "pairs": 0.5}, 16)
        return TransfusionData(source, Pixels(), **options)

    return data


def test_workers_do_not_change_the_batches(data):
    assert_equal(*(list(islice(data(num_workers=n).train_dataloader(), 25)) for n in (0, 2)))


@pytest.mark.parametrize("stop", [1, 13, "in a text"])
def test_stream_resumes_exactly_where_it_stopped(data, stop):
    made = data()
    whole = list(islice(made.train_dataloader(), 30))
    first, second = made.train_dataloader(), made.train_dataloader()
    iterator, before = iter(first), []
    while len(before) != stop:
        before.append(next(iterator))
        if stop == "in a text" and any(place["pieces"] for place in first._state["streams"]):
            break
    state, stop = first.state_dict(), len(before)
    second.load_state_dict(json.loads(json.dumps(state)))
    assert_equal(before + list(islice(second, 30 - stop)), whole)


def test_texts_and_pairs_share_rows_and_every_token_of_a_text_is_learned_once(data, corpus):
    made = data()
    loader = made.val_dataloader()[1]
    assert loader.name == "text"
    pieces, learned = [], 0
    for batch in loader:
        assert not batch.num_images
        for row in range(len(batch.tokens)):
            ids = batch.document_ids[row, : batch.lengths[row]]
            pieces += [batch.tokens[row, : len(ids)][ids == number].tolist() for number in ids.unique()]
        learned += len(batch.target_positions)
    held_out = corpus.split("val")
    texts = [made.tokenizer.encode(held_out[i].text) for i in range(len(held_out))]
    assert learned == sum(len(text) + 1 for text in texts)  # and EOS
    bos, eos = made.tokenizer.bos, made.tokenizer.eos
    assert all(piece[0] == bos and piece.count(eos) <= 1 for piece in pieces)
    assert sorted(t for piece in pieces for t in piece[1:] if t != eos) == sorted(t for text in texts for t in text)
    kinds = set()  # for each row, whether its documents have an image
    for batch in islice(made.train_dataloader(), 20):
        for ids, images, length in zip(batch.document_ids, batch.image_ids, batch.lengths, strict=True):
            kinds.add(frozenset(bool((images[:length][ids[:length] == n] >= 0).any()) for n in ids[:length].unique()))
    assert {True, False} in kinds


def test_tokenizer_is_of_both_and_keeps_lines_and_spaces(data):
    tokenizer = data().tokenizer
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in ("a  b\n\n\tc ", "ﬁ ½\r\n", "日本"))
    assert len(tokenizer.encode("circle")) == 1


def test_pictures_are_shown_and_measured(data, make_pipeline):
    made = data()
    batch = next(iter(made.predict_dataloader()))
    assert [image.shape for image in batch.images] == [(3, 16, 16)] * 9 and len(batch.captions) == 9
    assert isinstance(made.source.pictures, Shapes) and made.source.pictures.image_size == 16
    subject = Subject(make_pipeline(), made.source, num_examples=5)
    assert len(subject.examples) == 5


def test_held_out_texts_and_pairs_have_separate_loaders(data, corpus, caplog):
    pairs, text = data().val_dataloader()
    assert (pairs.name, text.name) == ("pairs", "text")
    assert sum(batch.num_images for batch in pairs) == 9 and not any(batch.num_images for batch in text)
    corpus._table = corpus._table._replace(num_examples={"train": len(corpus), "val": 0})
    assert not caplog.messages and data().val_dataloader().name == "pairs"
    assert caplog.messages == ["no examples of text are held out: no validation on it"]


def test_texts_alone_are_trained_on_too(data, corpus):
    made = data(source=corpus, sequence_length=16)
    batch = next(iter(made.train_dataloader()))
    assert batch.tokens.shape == (2, 16) and not batch.num_images
    assert made.val_dataloader().name == ""
    with pytest.raises(InputError, match=r"data\.source.*TextCorpus.*captioned pictures"):
        made.predict_dataloader()


def test_row_must_hold_the_largest_example_of_any_source(data, corpus):
    mixed = Mix({"text": corpus, "pairs": Shapes(), "edits": ShapeEdits(16)}, image_size=16)
    with pytest.raises(InputError, match=r"sequence_length 38 .* 2 x 16 patches .*at least 39$"):
        data(source=mixed, sequence_length=38)
    batches = list(islice(data(source=mixed, sequence_length=39).train_dataloader(), 20))
    rows = [set(ids.tolist()) - {TEXT} for batch in batches for ids in batch.image_ids]
    assert {len(images) for images in rows} == {0, 1, 2}  # a row of texts, of a pair, of an edit


def test_caption_has_the_space_of_a_pair_and_not_of_an_edit(data, corpus):
    mixed = Mix({"pairs": Shapes(), "edits": ShapeEdits(16)}, image_size=16)
    loader = data(source=mixed, sequence_length=60, vocab_size=300).train_dataloader()
    assert max(len(loader.documents[0, i][0].tokens) for i in range(40)) > 60 - 18


# Errors


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        ("", None, "Mix has no sources"),
        ("ab", {"a": 1, "c": 1}, "weights names c, .*a, b"),
        ("ab", {"a": 1}, "weights has no weight for b"),
        ("ab", {"a": 1, "b": 0}, "the weight of b is 0; remove it"),
        ("ab", {"a": 1, "b": -1}, "the weight of b is -1"),
        ("ab", {"a": 1, "b": float("nan")}, "the weight of b is nan"),
        ("ab", {"a": 1, "b": float("inf")}, "the weight of b is inf"),
    ],
)
def test_errors_name_key_value_and_fix(names, weights, message):
    with pytest.raises(InputError, match=message):
        Mix({name: CountedExamples(3) for name in names}, weights)


def test_mix_in_a_mix_is_an_error():
    with pytest.raises(InputError, match="b is itself a Mix"):
        Mix({"a": CountedExamples(1), "b": Mix({"c": CountedExamples(1)})})


def test_source_without_examples_is_named(tokenizer):
    with pytest.raises(InputError, match="none of the 0 examples of b can be used"):
        next(iter(labelled_loader(tokenizer, (5, 0))))


def test_checkpoint_of_other_sources_is_an_error(tokenizer):
    state = labelled_loader(tokenizer, (5, 5)).state_dict()
    with pytest.raises(InputError, match=r"a mix of a, b but this run has a mix of a, b, c.*model\.init_from"):
        labelled_loader(tokenizer, (5, 5, 5)).load_state_dict(state)


@pytest.mark.parametrize("sizes", [(5, 6), (4, 5)])
def test_checkpoint_of_more_or_fewer_examples_is_an_error(tokenizer, sizes):
    state = labelled_loader(tokenizer, (5, 5)).state_dict()
    with pytest.raises(InputError, match=r"5 examples but this run has [46] examples of [ab].*model\.init_from"):
        labelled_loader(tokenizer, sizes).load_state_dict(state)


def test_changed_examples_of_equal_number_are_reported_on_resume(data, make_pictures, tmp_path, caplog):
    folder, text = make_pictures(tmp_path / "pictures", 6), tmp_path / "one.txt"
    text.write_text("words")
    prepare([str(folder)], str(tmp_path / "first"), image_size=16, num_workers=0)

    def loader():
        sources = {
            "text": TextCorpus(str(text)),
            "pairs": ImageCaptions(str(folder), 16),
            "shards": Shards(str(tmp_path / "first"), 16),
            "shapes": Shapes(num_examples=40),
        }
        return data(source=Mix(sources, image_size=16)).train_dataloader()

    state = loader().state_dict()
    for known in (state, {"ranks": state["ranks"]}):  # the latter is from an earlier version
        loader().load_state_dict(known)
    assert not caplog.messages
    text.write_text("others")
    for caption in folder.glob("*.txt"):
        caption.write_text("another caption")
    prepare([str(folder)], str(tmp_path / "second"), image_size=16, num_workers=0)
    (tmp_path / "first").rename(tmp_path / "before")
    (tmp_path / "second").rename(tmp_path / "first")
    loader().load_state_dict(state)
    assert {re.match(r"the examples of (\w+) have changed", message)[1] for message in caplog.messages} == {
        *("text", "pairs", "shards")
    }


@pytest.mark.parametrize("change", ["longer", "fewer"])
def test_checkpoint_of_other_documents_is_an_error(tokenizer, change):
    """Documents in open rows are made again."""
    before, after = labelled_loader(tokenizer, (50,)), labelled_loader(tokenizer, (50,))
    next(iter(before))
    after.load_state_dict(before.state_dict())
    changed = {
        "longer": lambda documents, key: [document._replace(tokens=[0] * LENGTH) for document in documents[key]],
        "fewer": lambda documents, key: [],
    }
    after.documents = Changed(after.documents, changed[change])
    with pytest.raises(
        InputError, match=r"documents in open rows have changed.*data\.sequence_length.*model\.init_from"
    ):
        next(iter(after))


def test_examples_of_a_mix_are_those_of_its_sources_pictures_first(corpus):
    mixed = Mix({"text": corpus, "pairs": Shapes(num_examples=7)}, image_size=16)
    assert [type(mixed[i]) for i in (0, 6, 7, len(mixed) - 1)] == [Example, Example, TextExample, TextExample]
    assert mixed[7] == corpus[0] and mixed[6].captions == Shapes(16, num_examples=7)[6].captions
    assert mixed[0].image.shape == (3, 16, 16)
    assert [stream.indices for stream in mixed.streams()] == [range(7), range(7, 7 + len(corpus))]
    with pytest.raises(IndexError):
        mixed[len(mixed)]
