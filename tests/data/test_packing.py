"""Flat documents, packing of rows, and batches."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lit_transfusion.data.grammar import caption_first, image_first, unconditional
from lit_transfusion.data.packing import FirstFit, FlatDocument, collate, flatten, room_for_text
from lit_transfusion.data.types import IGNORE_INDEX, TEXT, Document, ImageSegment, TextSegment

NO = IGNORE_INDEX
PAD = 99
SHAPE = (3, 2, 2)


class Markers:
    """The ids of a tokenizer, easy to distinguish. Text is 10, 11, 12."""

    bos, eos, boi, eoi, pad = 1, 2, 7, 8, PAD


def image(value: float = 0.0, max_timestep: int = 1000) -> ImageSegment:
    return ImageSegment(torch.full(SHAPE, float(value)), max_timestep)


def flat(document: Document, patches: int = 2):
    return flatten(document, Markers, lambda image: patches)


# One document


def test_caption_first():
    document = flat(caption_first((10, 11), image().latents, Markers))
    assert document.tokens == [1, 10, 11, 7, PAD, PAD, 8, 2]
    assert document.labels == [10, 11, 7, NO, NO, NO, 2, NO]
    assert document.image_ids == [TEXT, TEXT, TEXT, TEXT, 0, 0, TEXT, TEXT]


def test_image_first():
    document = flat(image_first((10, 11), image().latents, Markers, max_timestep=500))
    assert document.tokens == [1, 7, PAD, PAD, 8, 10, 11, 2]
    assert document.labels == [7, NO, NO, NO, 10, 11, 2, NO]
    assert document.image_ids == [TEXT, TEXT, 0, 0, TEXT, TEXT, TEXT, TEXT]
    assert [i.max_timestep for i in document.images] == [500]


def test_unconditional():
    document = flat(unconditional(image().latents, Markers))
    assert document.tokens == [1, 7, PAD, PAD, 8, 2]
    assert document.labels == [NO] * 6
    assert document.image_ids == [TEXT, TEXT, 0, 0, TEXT, TEXT]


def test_two_images_with_text_between_them():
    segments = TextSegment((1, 10)), image(1), TextSegment((11,)), image(2), TextSegment((12, 2))
    document = flat(Document(segments))
    assert document.tokens == [1, 10, 7, PAD, PAD, 8, 11, 7, PAD, PAD, 8, 12, 2]
    assert document.labels == [10, 7, NO, NO, NO, 11, 7, NO, NO, NO, 12, 2, NO]
    assert document.image_ids == [TEXT, TEXT, TEXT, 0, 0, TEXT, TEXT, TEXT, 1, 1, TEXT, TEXT, TEXT]
    assert [i.latents.mean() for i in document.images] == [1, 2]


def test_edit_learns_what_comes_after_its_prompt():
    """In image, instruction, image, the instruction is a prompt, and so is the BOI after it."""
    segments = TextSegment((1,), learn=False), image(), TextSegment((10, 11), learn=False), image(), TextSegment((2,))
    document = flat(Document(segments), patches=1)
    assert document.tokens == [1, 7, PAD, 8, 10, 11, 7, PAD, 8, 2]
    assert document.labels == [NO, NO, NO, NO, NO, NO, NO, NO, 2, NO]


def test_boi_after_a_prompt_is_learned_after_an_empty_learned_text():
    segments = TextSegment((1, 10), learn=False), TextSegment(()), image(), TextSegment((2,))
    assert flat(Document(segments), patches=1).labels == [NO, 7, NO, NO, 2, NO]


def test_boi_after_learned_text_is_not_learned_after_an_empty_text_that_is_not_learned():
    segments = TextSegment((1, 10)), TextSegment((), learn=False), image(), TextSegment((2,))
    assert flat(Document(segments), patches=1).labels == [10, NO, NO, NO, 2, NO]


def test_image_at_the_start_is_not_predicted():
    document = flat(Document((image(), TextSegment((10, 2)))), patches=1)
    assert document.tokens == [7, PAD, 8, 10, 2]
    assert document.labels == [NO, NO, 10, 2, NO]


def test_second_of_two_adjacent_images_is_predicted_by_the_end_of_the_first():
    document = flat(Document((TextSegment((1, 10)), image(), image(), TextSegment((2,)))), patches=1)
    assert document.tokens == [1, 10, 7, PAD, 8, 7, PAD, 8, 2]
    assert document.labels == [10, 7, NO, NO, 7, NO, NO, 2, NO]


def test_text_alone():
    document = flat(Document((TextSegment((1, 10, 11, 2)),)))
    assert document == FlatDocument([1, 10, 11, 2], [10, 11, 2, NO], [TEXT] * 4, [])


segments = st.lists(
    st.one_of(
        st.builds(TextSegment, st.lists(st.integers(10, 20), max_size=4).map(tuple), st.booleans()),
        st.builds(image),
    ),
    max_size=5,
)


@given(segments.map(tuple), st.integers(1, 4))
@settings(deadline=None)
def test_rules_of_labels_hold_for_any_document(segments, patches):
    document = flat(Document(segments), patches)
    assume(document.tokens)
    assert len(document.tokens) == len(document.labels) == len(document.image_ids)
    for q, (token, label) in enumerate(zip(document.tokens, document.labels, strict=True)):
        assert label != Markers.eoi and label != PAD  # the decoder appends EOI; a patch is not text
        if label != NO:
            assert label == document.tokens[q + 1]
        if token == Markers.boi or document.image_ids[q] != TEXT:
            assert label == NO
    for i in range(len(document.images)):
        assert document.image_ids.count(i) == patches


# Rows


def pack(lengths, length, open_rows):
    packer = FirstFit(length, open_rows)
    rows = [row for i, n in enumerate(lengths) if (row := packer.add(i, n)) is not None]
    return rows + list(packer.flush())


@given(st.lists(st.integers(1, 20), max_size=60), st.integers(1, 5))
@settings(deadline=None)
def test_no_item_is_lost_or_doubled_and_no_row_is_too_long(lengths, open_rows):
    rows = pack(lengths, 20, open_rows)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    for row in rows:
        assert row and sum(lengths[i] for i in row) <= 20
        assert row == sorted(row)  # in the order of their arrival


@given(st.lists(st.integers(1, 20), max_size=40), st.integers(1, 4))
@settings(deadline=None)
def test_packing_can_resume_where_it_stopped(lengths, open_rows):
    packer, rows = FirstFit(20, open_rows), []
    for i, n in enumerate(lengths):
        row = packer.add(i, n)
        rows += [] if row is None else [row]
        assert len(packer.rows) <= open_rows and all(sum(n for n, _ in row) <= 20 for row in packer.rows)
        packer, state = FirstFit(20, open_rows), packer.rows
        packer.rows = [list(row) for row in state]
    assert rows + list(packer.flush()) == pack(lengths, 20, open_rows)


def test_more_open_rows_waste_less():
    """One open row is next-fit: an item that does not fit closes it."""
    lengths = torch.randint(30, 71, (500,), generator=torch.Generator().manual_seed(0)).tolist()
    fill = {rows: sum(lengths) / (100 * len(pack(lengths, 100, rows))) for rows in (1, 4, 16)}
    assert fill[16] > fill[4] > fill[1] + 0.05
    assert fill[16] > 0.9


def test_first_row_with_room_is_taken_and_the_fullest_is_closed():
    packer = FirstFit(10, 2)
    assert packer.add("a", 6) is None
    assert packer.add("b", 7) is None
    assert packer.add("c", 3) is None  # beside a
    assert packer.add("d", 8) == ["a", "c"]
    assert list(packer.flush()) == [["b"], ["d"]]


def test_exact_fit():
    packer = FirstFit(10, 1)
    packer.add("a", 6)
    assert packer.add("b", 4) is None
    assert packer.add("c", 1) == ["a", "b"]


def test_too_long_is_an_error_and_changes_nothing():
    packer = FirstFit(10, 1)
    packer.add("a", 6)
    with pytest.raises(ValueError, match="11 positions does not fit into rows of 10"):
        packer.add("b", 11)
    assert list(packer.flush()) == [["a"]]


# A batch


def text(*ids):
    return flat(Document((TextSegment(ids),)))


def test_two_rows_with_images_and_padding():
    first = flat(image_first((10,), image(1).latents, Markers, max_timestep=5))  # 1 7 . . 8 10 2
    second = flat(caption_first((11,), image(2).latents, Markers))  # 1 11 7 . . 8 2
    third = flat(Document((image(3), image(4))), patches=2)  # 7 . . 8 7 . . 8
    batch = collate([[first, text(1, 12, 2)], [second, third]], 16, PAD, SHAPE)

    assert batch.tokens.tolist() == [
        [1, 7, PAD, PAD, 8, 10, 2, 1, 12, 2, *[PAD] * 6],
        [1, 11, 7, PAD, PAD, 8, 2, 7, PAD, PAD, 8, 7, PAD, PAD, 8, PAD],
    ]
    assert batch.labels.tolist() == [
        [7, NO, NO, NO, 10, 2, NO, 12, 2, NO, *[NO] * 6],
        [11, 7, NO, NO, NO, 2, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO],
    ]
    assert batch.positions.tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 0, 1, 2, 3, 4, 5],
        [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 7, 0],
    ]
    assert batch.document_ids.tolist() == [
        [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2],
        [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2],
    ]
    assert batch.image_ids.tolist() == [
        [-1, -1, 0, 0, *[-1] * 12],
        [-1, -1, -1, 1, 1, -1, -1, -1, 2, 2, -1, -1, 3, 3, -1, -1],
    ]
    assert batch.image_groups[0].images.mean((1, 2, 3)).tolist() == [1, 2, 3, 4]
    assert batch.image_groups[0].max_timesteps.tolist()[0] == 5 and len(batch.image_groups[0].max_timesteps) == 4
    assert batch.lengths.tolist() == [10, 15]
    assert (
        all(t.dtype == torch.int64 for t in (*batch[:5], batch.target_positions, batch.lengths))
        and batch.image_groups[0].max_timesteps.dtype == torch.int64
    )


def test_images_that_are_not_learned_are_marked():
    prompt = flat(Document((TextSegment((1,)), image(1)._replace(learn=False), image(2))))
    batch = collate([[prompt], [flat(Document((image(3),)))]], 16, PAD, SHAPE)
    assert batch.image_groups[0].learned.tolist() == [1, 2]
    none = collate([[text(1, 2)]], 4, PAD, SHAPE).image_groups[0].learned
    assert none.shape == (0,) and none.dtype == torch.int64


@pytest.mark.parametrize("num_images", [1, 2])
def test_room_for_text_is_what_fills_a_row(num_images):
    room = room_for_text(40, 3, num_images)
    segments = [TextSegment((1,)), *[image()] * num_images, TextSegment((*[10] * room, 2))]
    assert len(flat(Document(tuple(segments)), patches=3).tokens) == 40


def test_padding_documents_are_no_longer_than_the_longest_document():
    batch = collate([[text(1, 2), text(1, 10, 2)]], 13, PAD, SHAPE)
    assert batch.document_ids.tolist() == [[0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4]]
    assert batch.positions.tolist() == [[0, 1, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]]
    assert batch.lengths.tolist() == [5]


def test_batch_without_images():
    batch = collate([[text(1, 10, 2)]], 4, PAD, SHAPE)
    assert batch.image_groups[0].images.shape == (0, *SHAPE) and batch.image_groups[0].max_timesteps.shape == (0,)
    assert (
        batch.image_groups[0].images.dtype == torch.float32 and batch.image_groups[0].max_timesteps.dtype == torch.int64
    )
    assert (batch.image_ids == TEXT).all()


rows_of_documents = st.lists(st.lists(segments.map(tuple), max_size=3), min_size=1, max_size=3)


@given(rows_of_documents)
@settings(deadline=None, max_examples=60)
def test_every_batch_can_be_read_back(rows):
    rows = [[document for segments in row if (document := flat(Document(segments))).tokens] for row in rows]
    length = max(sum(len(document.tokens) for document in row) for row in rows) + 3
    batch = collate(rows, length, PAD, SHAPE)
    images = []
    for r, row in enumerate(rows):
        starts = (batch.positions[r] == 0).nonzero().squeeze(1).tolist()
        ids = batch.document_ids[r]
        assert (ids.diff() >= 0).all() and (ids.diff().nonzero().squeeze(1) + 1).tolist() == starts[1:]
        assert (batch.positions[r, 1:] - batch.positions[r, :-1] == 1).logical_or(ids.diff() > 0).all()
        for document, start in zip(row, starts, strict=False):
            here = slice(start, start + len(document.tokens))
            assert batch.tokens[r, here].tolist() == document.tokens
            assert batch.labels[r, here].tolist() == document.labels
            assert [i >= 0 for i in batch.image_ids[r, here]] == [i >= 0 for i in document.image_ids]
            images += document.images
        used = sum(len(document.tokens) for document in row)
        assert (batch.labels[r, used:] == NO).all() and (batch.image_ids[r, used:] == TEXT).all()
        longest = max((len(document.tokens) for document in row), default=length)
        assert ids[used:].unique(return_counts=True)[1].max() <= longest
    assert batch.num_images == len(images) and len(batch.image_groups[0].max_timesteps) == len(images)
    in_order = batch.image_ids[batch.image_ids >= 0]
    assert in_order.unique().tolist() == list(range(len(images))) and (in_order.diff() >= 0).all()
    assert batch.lengths.tolist() == [sum(len(document.tokens) for document in row) for row in rows]
    assert batch.target_positions.tolist() == (batch.labels.flatten() != NO).nonzero()[:, 0].tolist()
