"""Decoding with a cache against one forward pass over the whole document without a cache."""

import pytest
import torch
from slow_decoder import read_all

from lit_transfusion.data.packing import FlatDocument, flatten
from lit_transfusion.data.types import Document, ImageSegment, TextSegment
from lit_transfusion.generation.decoder import Decoder
from lit_transfusion.model import Bidirectional, Causal, Visibility

P = 4
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
patchers = pytest.mark.parametrize("patcher", ["linear", "unet"])
masks = pytest.mark.parametrize("mask", [Bidirectional(), Causal()], ids=["bidirectional", "causal"])


class Window(Visibility):
    """Text and patches see the last three positions of their document."""

    def intervals(self, document_ids, image_ids):
        lo, hi = Causal().intervals(document_ids, image_ids)
        return torch.maximum(lo, hi - 3), hi


def picture(seed):
    return torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(seed))


def words(*token_ids):
    return Document((TextSegment(token_ids),))


def longer(document, *segments):
    return Document((*document.segments, *segments))


PROMPTS = [  # 4, 1, 15 and 9 positions long
    words(1, 5, 9, 33),
    words(1),
    Document((TextSegment((1, 5)), ImageSegment(picture(0)), TextSegment((7,)), ImageSegment(picture(1)))),
    Document((TextSegment((1,)), ImageSegment(picture(2)), TextSegment((11, 12)))),
]


@pytest.fixture
def read(tokenizer):
    """Makes a decoder that has read several documents, one in each row."""

    def read(pipeline, documents, capacity=40):
        decoder = Decoder(pipeline, len(documents), capacity)
        decoder.read([flatten(document, tokenizer, lambda image: P) for document in documents])
        return decoder

    return read


def assert_logits(decoder, documents, rows=None):
    """Asserts that the logits of the given rows equal those of each document read alone from its start."""
    for row in range(len(documents)) if rows is None else rows:
        expected = read_all(decoder.pipeline, documents[row]).logits
        torch.testing.assert_close(decoder.logits[row], expected[-1], **TOLERANCE)
        assert decoder.lengths[row] == len(expected)


@patchers
@masks
@torch.no_grad()
def test_text_token_by_token(make_pipeline, read, patcher, mask):
    """Rows have different lengths, with and without images, and do not all grow in each step."""
    documents = list(PROMPTS)
    decoder = read(make_pipeline(patcher, mask), documents)
    assert_logits(decoder, documents)
    for step, growing in enumerate([(0, 2, 3), (0, 2), (2,), (1, 3), (0, 1, 2, 3)]):
        token_ids = [20 + 10 * row + step if row in growing else None for row in range(4)]
        decoder.read_tokens(token_ids)
        for row in growing:
            documents[row] = longer(documents[row], TextSegment((token_ids[row],)))
        assert_logits(decoder, documents, growing)


@patchers
@masks
@torch.no_grad()
def test_images_in_some_rows_and_text_after_them(make_pipeline, read, tokenizer, patcher, mask):
    """Two rows branch off, each with a null prompt, draw an image, and are merged back."""
    pipeline, documents = make_pipeline(patcher, mask), list(PROMPTS)
    decoder = read(pipeline, documents)
    decoder.read_tokens([None, tokenizer.boi, tokenizer.boi, None])
    null = read(pipeline, [words(1, tokenizer.boi)] * 2, capacity=2)
    branch = decoder.branch([1, 2], null, room=P + 1)
    for timestep in (999, 500, 0):
        noisy = torch.stack([picture(timestep + row) for row in range(4)])
        prediction = branch.predict_images(noisy, timestep)
        before = [documents[1], documents[2], words(1), words(1)]
        for i in range(4):
            expected = read_all(pipeline, longer(before[i], ImageSegment(noisy[i])), timestep).image_prediction
            torch.testing.assert_close(prediction[i], expected[-1], **TOLERANCE)
        torch.testing.assert_close(branch.predict_images(noisy[:2], timestep), prediction[:2], **TOLERANCE)

    clean = [ImageSegment(picture(row)) for row in range(2)]
    tokens, image_ids = [0] * P + [tokenizer.eoi], [0] * P + [-1]
    branch.read([FlatDocument(tokens, [], image_ids, [image]) for image in clean])
    decoder.merge([1, 2], branch)
    documents[1], documents[2] = longer(documents[1], clean[0]), longer(documents[2], clean[1])
    assert_logits(decoder, documents, rows=[1, 2])
    decoder.read_tokens([60, 61, 62, 63])
    documents = [longer(document, TextSegment((60 + row,))) for row, document in enumerate(documents)]
    assert_logits(decoder, documents)


@torch.no_grad()
def test_slots_beyond_the_end_of_a_row_are_never_seen(make_pipeline, read):
    """Padding, skipped rows and noisy images leave values in these slots, which must not change the logits."""
    decoders = [read(make_pipeline(), PROMPTS) for _ in range(2)]
    for decoder in decoders:
        decoder.read_tokens([20, None, None, 21])
    for row, length in enumerate(decoders[1].lengths):
        decoders[1].cache.buffers[:, :, row, :, length:] = 1e3
        decoders[1].cache.ids[:, row, length:] = 1000
    for decoder in decoders:
        decoder.read_tokens([22, 23, None, 24])
    for row in (0, 1, 3):
        assert torch.equal(decoders[0].logits[row], decoders[1].logits[row])
    noisy = torch.stack([picture(row) for row in range(4)])
    assert torch.equal(*(decoder.predict_images(noisy, 300) for decoder in decoders))


@torch.no_grad()
def test_denoising_computes_only_patches_and_does_not_extend_rows(make_pipeline, read, record):
    decoder = read(make_pipeline(), PROMPTS)
    recorder, noisy = record(decoder.pipeline.net), torch.stack([picture(row) for row in range(4)])
    first = decoder.predict_images(noisy, 800)
    decoder.predict_images(-noisy, 20)
    assert torch.equal(decoder.predict_images(noisy, 800), first)
    assert recorder.tokens == [[[-1] * P] * 4] * 3
    assert decoder.lengths == [4, 1, 15, 9]


@torch.no_grad()
def test_each_image_of_a_row_has_its_own_id(make_pipeline, read):
    """For users' own masks: in the cache, the id of an image is the position of its first patch."""
    decoder = read(make_pipeline(), PROMPTS)
    decoder.predict_images(torch.stack([picture(row) for row in range(4)]), 500)
    ids = [sorted(set(row.tolist())) for row in decoder.cache.ids[0]]
    assert ids == [[-1, 4], [-1, 1], [-1, 3, 10, 15], [-1, 2, 9]]


@torch.no_grad()
def test_a_full_cache_is_an_error(make_pipeline, read):
    decoder = read(make_pipeline(), [words(1, 5, 6)], capacity=3)
    with pytest.raises(ValueError, match=r"cache .*3 positions.* 4 "):
        decoder.read_tokens([7])


@torch.no_grad()
def test_a_users_own_mask_applies_to_decoding(make_pipeline, read):
    """The `lo` of a subclass of Visibility may differ from the start of the document."""
    documents = [words(1, 5, 6, 7, 8), words(1, 5)]
    decoder = read(make_pipeline(mask=Window()), documents)
    assert_logits(decoder, documents)
    for token_id in (20, 21):
        documents = [longer(document, TextSegment((token_id,))) for document in documents]
        decoder.read_tokens([token_id] * 2)
        assert_logits(decoder, documents)


@torch.no_grad()
def test_under_autocast_keys_and_values_have_its_precision(make_pipeline, read):
    """A run in bf16-mixed shows samples and predicts under autocast."""
    pipeline, noisy = make_pipeline(), torch.stack([picture(row) for row in range(4)])
    expected = read(pipeline, PROMPTS)
    with torch.autocast("cpu", torch.bfloat16):
        decoder = read(pipeline, PROMPTS)
        prediction = decoder.predict_images(noisy, 500)
    assert decoder.cache.buffers.dtype == torch.bfloat16
    assert decoder.logits.dtype == prediction.dtype == torch.float32
    torch.testing.assert_close(decoder.logits, expected.logits, atol=0.05, rtol=0.05)
    torch.testing.assert_close(prediction, expected.predict_images(noisy, 500), atol=0.05, rtol=0.05)
