"""PackedLoader: equal batches for any number of workers, division among ranks, and resuming at any batch."""

import json
import logging
from itertools import islice

import pytest
import torch

from lit_transfusion.data.document_set import DocumentSet
from lit_transfusion.data.loader import PackedLoader
from lit_transfusion.data.permutation import hash_of
from lit_transfusion.data.recipe import Recipe
from lit_transfusion.data.sources.base import Source
from lit_transfusion.data.types import Example, Skipped
from lit_transfusion.errors import InputError

SIDE = 2  # a picture is 2 × 2 pixels, and one patch in a row
PATCHES = 1
WORDS = ("a red circle", "two blue squares above a red circle", "a green cross is left of two red circles")
UNUSABLE = {3: "cannot be read", 5: "cannot be read", 6: "does not exist"}


class Numbered(Source):
    """A source whose pictures are filled with their number, which identifies them in a batch."""

    def __init__(self, size: int, captions=WORDS, unusable=()) -> None:
        super().__init__(SIDE)
        self.size = size
        self.given_captions = captions
        self.unusable = dict(unusable)

    def split(self, name):
        return self

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index in self.unusable:
            return Skipped(f"picture {index}", self.unusable[index])
        return Example(torch.full((3, SIDE, SIDE), float(index)), self.given_captions)

    def captions(self):
        return list(self.given_captions)


@pytest.fixture
def make_loader(tokenizer):
    def make_loader(source, *, length=48, batch_size=2, seed=0, **options):
        recipe = Recipe(image_first_max_timestep=500)
        documents = DocumentSet(source, recipe, tokenizer, lambda image: PATCHES, PATCHES, length, seed)
        return PackedLoader(documents, batch_size, (3, SIDE, SIDE), **{"open_rows": 3} | options)

    return make_loader


@pytest.fixture
def make_sequence(make_loader, tokenizer):
    """Make loaders with one document in each batch, so that batches are in the order of the documents."""
    caption = "a red circle"

    def make_sequence(source, **options):
        source.given_captions = (caption,)
        loader = make_loader(source, length=4 + PATCHES + len(tokenizer.encode(caption)), batch_size=1, **options)
        loader.documents.recipe = Recipe(caption_dropout=0.0)
        loader.open_rows = 1
        return loader

    return make_sequence


def numbers(batches) -> list[int]:
    return [int(n) for batch in batches for n in batch.image_groups[0].images.tensor[:, 0, 0, 0]]


def assert_equal(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


# Documents


def test_document_of_an_epoch_is_always_the_same_and_epochs_differ(make_loader):
    documents = make_loader(Numbered(8)).documents
    tokens = [[document.tokens for i in range(8) for document in documents[epoch, i]] for epoch in (0, 0, 1)]
    assert tokens[0] == tokens[1] != tokens[2]


def test_seed_gives_another_stream(make_loader):
    streams = [list(islice(make_loader(Numbered(40), seed=seed), 6)) for seed in (0, 0, 1)]
    assert_equal(streams[0], streams[1])
    assert numbers(streams[0]) != numbers(streams[2])


def test_longest_document_fills_a_row_exactly(make_loader, tokenizer):
    source = Numbered(4, captions=("a red circle " * 50,))
    loader = make_loader(source, batch_size=1, endless=False)
    loader.documents.recipe = Recipe(caption_first=1.0, caption_dropout=0.0)  # the image first: no EOS after a cut
    batches = list(loader)
    assert numbers(batches) == [0, 1, 2, 3] and all(batch.lengths.item() == loader.length for batch in batches)


def test_neighbouring_numbers_have_unrelated_hashes():
    seeds = [hash_of(seed, epoch, index) for seed in range(5) for epoch in range(5) for index in range(200)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert hash_of(0, 1) != hash_of(1, 0) and hash_of(0) != hash_of(0, 0)
    streams = torch.stack([torch.rand(2, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    assert torch.corrcoef(torch.cat([streams[:-1], streams[1:]], 1).T).fill_diagonal_(0).abs().max() < 0.06


# Order


def test_workers_do_not_change_the_batches(make_loader):
    source = Numbered(30, unusable=UNUSABLE)
    assert_equal(
        list(islice(make_loader(source, num_workers=2), 12)), list(islice(make_loader(source, num_workers=0), 12))
    )


def test_each_epoch_holds_each_document_once_in_a_new_order(make_sequence):
    order = numbers(islice(make_sequence(Numbered(20)), 60))
    epochs = order[:20], order[20:40], order[40:]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert list(range(20)) not in epochs


@pytest.mark.parametrize("size", [20, 21])
def test_ranks_share_the_documents_of_an_epoch(make_sequence, size):
    ranks = [make_sequence(Numbered(size), rank=rank, world_size=2) for rank in (0, 1)]
    sizes = [(size + 1) // 2, size // 2]
    streams = [numbers(islice(loader, 2 * count)) for loader, count in zip(ranks, sizes, strict=True)]
    for epoch in (0, 1):
        parts = [stream[epoch * n : epoch * n + n] for stream, n in zip(streams, sizes, strict=True)]
        assert sorted(parts[0] + parts[1]) == list(range(size))


def test_fewer_documents_than_ranks_are_an_error_on_every_rank(make_loader):
    """A rank without documents would block the others."""
    for rank in range(3):
        with pytest.raises(InputError, match="2 examples cannot be divided among 3 processes"):
            make_loader(Numbered(2), rank=rank, world_size=3)


def test_no_document_is_lost_or_doubled_in_packed_batches(make_loader):
    seen = numbers(islice(make_loader(Numbered(25)), 100))
    counts = torch.tensor(seen).bincount()
    assert len(counts) == 25 and counts.max() - counts.min() <= 2  # but for what is still in open rows


# Optimiser steps of several batches


def test_batches_of_a_step_are_those_of_a_loader_without_steps(make_loader):
    source = Numbered(30)
    assert_equal(
        [b._replace(step_counts=0) for b in islice(make_loader(source, batches_per_step=3), 12)],
        [b._replace(step_counts=0) for b in islice(make_loader(source), 12)],
    )


def test_each_batch_knows_the_counts_of_its_step(make_loader):
    batches = list(islice(make_loader(Numbered(30), batches_per_step=3), 9))
    for step in (batches[:3], batches[3:6], batches[6:]):
        targets, images, patches = (
            sum(map(count, step))
            for count in (
                lambda b: len(b.target_positions),
                lambda b: len(b.image_groups[0].learned),
                lambda b: b.num_learned_patches,
            )
        )
        counts = [targets, images, patches]
        assert all(b.step_counts.tolist() == counts for b in step)
    assert len({tuple(b.step_counts.tolist()) for b in batches}) == 3


@pytest.mark.parametrize("given_back", [False, True])
@pytest.mark.parametrize("taken", range(1, 8))
def test_state_advances_by_whole_steps(make_loader, taken, given_back):
    """A step whose batches were not all yielded, or that was given back, is repeated."""
    source = Numbered(30)
    first, second = (make_loader(source, batches_per_step=3) for _ in range(2))
    expected = list(islice(make_loader(source, batches_per_step=3), 15))
    batches = list(islice(first, taken))
    if given_back:
        first.give_back()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    done = taken - 3 * given_back if taken % 3 == 0 else taken // 3 * 3
    assert_equal(batches[:done] + list(islice(second, 15 - done)), expected)


def test_step_pieces_name_the_documents_of_each_batch(make_sequence):
    loader = make_sequence(Numbered(20), batches_per_step=2)
    for number, batch in enumerate(islice(loader, 6)):
        assert len(loader.step_pieces) == number % 2 + 1
        ((piece,),) = loader.step_pieces[-1]
        assert numbers([batch]) == [piece[1]]


# Validation


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_validation_reads_everything_once(make_loader, world_size, num_workers):
    source = Numbered(13)
    ranks = [
        list(
            make_loader(source, endless=False, rank=rank, world_size=world_size, batch_size=3, num_workers=num_workers)
        )
        for rank in range(world_size)
    ]
    assert sorted(numbers(batch for batches in ranks for batch in batches)) == list(range(13))
    assert all(len(batch.tokens) == 3 for batches in ranks for batch in batches[:-1])


def test_validation_is_the_same_each_time(make_loader):
    """Lightning iterates over the same loader again. A pass may also end early (limit_val_batches)."""
    loader = make_loader(Numbered(30), endless=False)
    whole = list(loader)
    assert len(whole) > 3
    assert_equal(list(islice(loader, 3)), whole[:3])
    assert_equal(list(loader), whole)


# Resuming


def resumed(loader, fresh, stop, count, through_json=True):
    """`count` batches of `fresh`, which resumes from the state of `loader` after `stop` batches."""
    iterator = iter(loader)
    before = [next(iterator) for _ in range(stop)]
    state = loader.state_dict()
    fresh.load_state_dict(json.loads(json.dumps(state)) if through_json else state)
    return before + list(islice(fresh, count))


@pytest.mark.parametrize("stop", [0, 1, 2, 5, 9, 14])
def test_stream_resumes_exactly_where_it_stopped(make_loader, stop):
    """Also across epochs: 23 documents are about 5 batches."""
    source = Numbered(23, unusable=UNUSABLE)
    whole = list(islice(make_loader(source), 20))
    assert_equal(resumed(make_loader(source), make_loader(source), stop, 20 - stop), whole)


@pytest.mark.parametrize("stop", [19, 20, 21])
def test_stream_resumes_at_the_border_of_an_epoch(make_sequence, stop):
    whole = list(islice(make_sequence(Numbered(20)), 45))
    assert_equal(resumed(make_sequence(Numbered(20)), make_sequence(Numbered(20)), stop, 45 - stop), whole)


def test_stream_can_stop_twice(make_loader):
    source = Numbered(23)
    whole = list(islice(make_loader(source), 12))
    second = make_loader(source)
    start = resumed(make_loader(source), second, 4, 3)
    third = make_loader(source)
    third.load_state_dict(second.state_dict())
    assert_equal(start + list(islice(third, 5)), whole)


def test_workers_may_change_when_a_run_resumes(make_loader):
    source = Numbered(23, unusable=UNUSABLE)
    whole = list(islice(make_loader(source), 10))
    assert_equal(resumed(make_loader(source, num_workers=2), make_loader(source), 4, 6), whole)
    assert_equal(resumed(make_loader(source), make_loader(source, num_workers=2), 4, 6), whole)


@pytest.mark.parametrize("open_rows", [1, 2, 7])
def test_open_rows_may_change_when_a_run_resumes(make_loader, open_rows):
    source = Numbered(23)
    fresh = make_loader(source, open_rows=open_rows)
    seen = numbers(resumed(make_loader(source, open_rows=5), fresh, 4, 30))
    waiting = [piece[1] for row in fresh.state_dict()["ranks"][0]["open"] for piece in row]
    counts = torch.tensor(seen + waiting).bincount()
    assert len(counts) == 23 and counts.max() - counts.min() <= 1


def test_batch_that_was_made_but_not_taken_is_not_lost(make_loader):
    """The state is that of the last batch that was yielded."""
    loader = make_loader(Numbered(23))
    iterator = iter(loader)
    taken = [next(iterator) for _ in range(3)]
    states = [loader.state_dict() for _ in range(2)]
    assert states[0] == states[1]
    fresh = make_loader(Numbered(23))
    fresh.load_state_dict(states[0])
    assert_equal([*taken, next(iter(fresh))], list(islice(make_loader(Numbered(23)), 4)))


def test_rows_beyond_fewer_open_ones_are_closed(make_loader):
    """A comparison for equality with `open_rows` would never close a row here."""
    loader = make_loader(Numbered(23), open_rows=6)
    before = list(islice(loader, 1))
    fresh = make_loader(Numbered(23), open_rows=2)
    fresh.load_state_dict(loader.state_dict())
    counts = torch.tensor(numbers(before + list(islice(fresh, 30)))).bincount()
    assert len(counts) == 23 and counts.max() - counts.min() <= 2


def test_each_rank_takes_its_own_state(make_loader):
    source = Numbered(23)
    loaders = [make_loader(source, rank=rank, world_size=2) for rank in (0, 1)]
    for loader, count in zip(loaders, (3, 5), strict=True):  # ranks pack at different speeds
        list(islice(loader, count))
    state = {"ranks": [loader.state_dict()["ranks"][0] for loader in loaders]}
    for rank, count in ((0, 3), (1, 5)):
        fresh = make_loader(source, rank=rank, world_size=2)
        fresh.load_state_dict(state)
        whole = list(islice(make_loader(source, rank=rank, world_size=2), count + 4))
        assert_equal(list(islice(fresh, 4)), whole[count:])


# What cannot be used


def test_unusable_examples_are_skipped_counted_and_reported_once_for_each_reason(make_loader, caplog):
    loader = make_loader(Numbered(10, unusable=UNUSABLE), endless=False)
    with caplog.at_level(logging.WARNING, "lit_transfusion"):
        batches = list(loader)
    assert sorted(numbers(batches)) == [0, 1, 2, 4, 7, 8, 9]
    assert loader.report.skipped == {"cannot be read": 2, "does not exist": 1}
    first, second, summary = caplog.messages
    assert "picture 3" in first and "cannot be read" in first
    assert "picture 6" in second and "does not exist" in second
    assert "10 examples" in summary and "cannot be read: 2" in summary and "does not exist: 1" in summary


def test_reason_is_not_reported_again_in_later_epochs(make_sequence, caplog):
    with caplog.at_level(logging.WARNING, "lit_transfusion"):
        list(islice(make_sequence(Numbered(10, unusable={4: "cannot be read"})), 25))
    assert sum("picture 4" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("endless", [True, False])
def test_source_without_a_usable_example_is_an_error(make_loader, endless):
    source = Numbered(4, unusable=dict.fromkeys(range(4), "cannot be read"))
    with pytest.raises(InputError, match=r"none of the 4 examples can be used.*cannot be read: 4"):
        next(iter(make_loader(source, endless=endless)))


def test_source_without_examples_is_an_error(make_loader):
    with pytest.raises(InputError, match="no examples"):
        next(iter(make_loader(Numbered(0))))


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resumed_run_with_only_unusable_examples_left_does_not_fail(make_sequence, stop):
    """Documents used before the stop count as usable."""
    source = Numbered(4)
    order = numbers(islice(make_sequence(source), 4))
    source.unusable = dict.fromkeys(order[2:], "cannot be read")
    whole = list(islice(make_sequence(source), 5))
    assert_equal(resumed(make_sequence(source), make_sequence(source), stop, 5 - stop), whole)


def test_captions_that_are_cut_are_counted_and_reported_once(make_loader, caplog, tokenizer):
    source = Numbered(10, captions=("a red circle " * 50,))
    loader = make_loader(source, endless=False)
    loader.documents.recipe = Recipe(caption_dropout=0.0)
    with caplog.at_level(logging.WARNING, "lit_transfusion"):
        batches = list(loader)
    assert sorted(numbers(batches)) == list(range(10)) and loader.report.cut == 10 and not loader.report.skipped
    first, summary = caplog.messages
    assert "text of example 0 is cut" in first and "data.sequence_length" in first
    assert "10 examples" in summary and "cut: 10" in summary


def test_skips_of_an_epoch_are_reported_once(make_loader, caplog):
    loader = make_loader(Numbered(23, unusable=UNUSABLE))
    with caplog.at_level(logging.WARNING, "lit_transfusion"):
        batches = iter(loader)
        while loader._state["streams"][0]["epoch"] < 3:
            next(batches)
    (summary,) = [message for message in caplog.messages if message.startswith("epoch")]
    assert summary.startswith("epoch 0: of 23 examples, skipped: ")
    counts = [int(part.rpartition(": ")[2]) for part in summary.rpartition("skipped: ")[2].split(", ")]
    assert sum(counts) == len(UNUSABLE) and loader.report.skipped.total() >= 3 * len(UNUSABLE)


@pytest.mark.parametrize("part", ["batches", "used"])
def test_state_of_another_version_is_an_error(make_loader, part):
    (state,) = make_loader(Numbered(5)).state_dict()["ranks"]
    for known in (state, state["streams"][0]):
        known.pop(part, None)
    with pytest.raises(InputError, match=r"another version of lit_transfusion.*model\.init_from"):
        make_loader(Numbered(5)).load_state_dict({"ranks": [state]})


# More skipped than is allowed


def damaged(source, order, places):
    """Make the examples unusable at these places of the first epoch's order."""
    source.unusable = dict.fromkeys((order[place] for place in places), "cannot be read")
    return source


@pytest.fixture
def order(make_sequence):
    """The order of the first epoch of 40 pictures."""
    return numbers(islice(make_sequence(Numbered(40)), 40))


def test_allowed_share_may_be_skipped_in_each_epoch(make_sequence, order):
    loader = make_sequence(damaged(Numbered(40), order, (3, 4)), max_skipped=0.05)
    assert len(list(islice(loader, 3 * 38))) == 3 * 38 and loader.report.skipped == {"cannot be read": 6}


def test_one_skip_too_many_stops_the_run(make_sequence, order):
    source = damaged(Numbered(40), order, (3, 6, 9))
    source.unusable[order[6]] = "does not exist"
    seen = []
    with pytest.raises(InputError) as caught:
        seen.extend(make_sequence(source, max_skipped=0.05))
    assert numbers(seen) == [n for n in order[:8] if n not in source.unusable]  # one more waits in an open row
    message = str(caught.value)
    assert "3 of the 40 examples cannot be used" in message and "data.max_skipped 0.05" in message
    assert f"2 cannot be read (first: picture {order[3]}), 1 does not exist (first: picture {order[6]})" in message
    assert "--ckpt_path last" in message


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_skips_before_a_stop_count(make_sequence, order, stop):
    def make(max_skipped=0.05):
        return make_sequence(damaged(Numbered(40), order, (3, 4, 12)), max_skipped=max_skipped)

    message = rf"3 cannot be read \(first: picture {order[3]}\)"
    with pytest.raises(InputError, match=message):
        resumed(make(), make(), stop, 40)
    seen = numbers(resumed(make(), make(max_skipped=0.075), stop, 37 - stop))  # a higher limit lets it resume
    assert sorted(seen) == sorted(set(order) - {order[3], order[4], order[12]})


def test_each_rank_counts_its_own_share(make_sequence, order):
    source = damaged(Numbered(40), order, (0, 2))  # both belong to the 20 of rank 0
    assert len(list(islice(make_sequence(source, rank=1, world_size=2, max_skipped=0.05), 19))) == 19
    with pytest.raises(InputError, match=r"2 of the 40 examples \(20 of them for this process\) cannot be used"):
        next(iter(make_sequence(source, rank=0, world_size=2, max_skipped=0.05)))


def test_all_but_one_may_be_skipped_if_that_is_allowed_and_validation_only_counts(make_loader):
    source = Numbered(40, unusable=dict.fromkeys(range(39), "cannot be read"))
    assert set(numbers(islice(make_loader(source, max_skipped=1.0), 3))) == {39}
    assert numbers(make_loader(source, max_skipped=0.0, endless=False)) == [39]


def test_picture_that_waits_in_an_open_row_and_vanishes_is_left_out(make_loader):
    """The other documents of the row are still used."""
    loader = make_loader(Numbered(23))
    before = numbers(islice(loader, 2))
    waiting = [index for row in loader.state_dict()["ranks"][0]["open"] for _, index, _ in row]
    fresh = make_loader(Numbered(23, unusable={waiting[0]: "does not exist"}))
    fresh.load_state_dict(loader.state_dict())
    after = numbers(islice(fresh, 8))
    assert fresh.report.skipped["does not exist"] >= 1
    assert set(before + after) == set(range(23)) - {waiting[0]}
