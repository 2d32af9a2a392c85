"""Reading and writing with a cache against the whole document in one forward pass without one."""

import pytest
import torch

from lit_transfusion.data.document import Document, ImageSegment, TextSegment
from lit_transfusion.data.packing import FlatDocument, flatten
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


def text(*token_ids):
    return FlatDocument(list(token_ids), [], [-1] * len(token_ids), [])


def with_image(piece, latents):
    """The piece, and an image at its end."""
    image_ids = [*piece.image_ids, *[len(piece.images)] * P]
    return piece._replace(tokens=[*piece.tokens, *[0] * P], image_ids=image_ids, images=[*piece.images, latents])


def with_text(piece, *token_ids):
    return piece._replace(tokens=[*piece.tokens, *token_ids], image_ids=[*piece.image_ids, *[-1] * len(token_ids)])


def uncached(pipeline, piece, last_timestep=0):
    """All logits (L, V) and predictions (N, C, H, W) of one document; its last image is at `last_timestep`."""
    tokens, images = torch.tensor([piece.tokens]), [getattr(image, "latents", image) for image in piece.images]
    return pipeline.net(
        tokens,
        torch.arange(tokens.shape[1])[None],
        torch.zeros_like(tokens),
        torch.tensor([piece.image_ids]),
        torch.stack(images) if images else torch.zeros(0, 3, 4, 4),
        torch.tensor([0] * (len(images) - 1) + [last_timestep])[: len(images)],
        logit_positions=torch.arange(tokens.shape[1]),
    )


PROMPTS = [(1, 5, 9, 33), (1,), (1, 70)]


@patchers
@masks
@torch.no_grad()
def test_text_token_by_token(make_pipeline, patcher, mask):
    """Rows of different lengths, that do not grow at the same pace: each is as if it were alone."""
    pipeline = make_pipeline(patcher, mask)
    pieces = [text(*prompt) for prompt in PROMPTS]
    decoder = Decoder(pipeline, 3, capacity=9)
    logits = decoder.read(pieces)
    for row, piece in enumerate(pieces):
        torch.testing.assert_close(logits[row], uncached(pipeline, piece).logits[-1], **TOLERANCE)
    growing = [(1, 1, 1), (1, 0, 1), (0, 0, 1), (0, 1, 0), (1, 1, 1)]
    for step, active in enumerate(growing):
        token_ids = torch.tensor([20, 30, 40]) + step
        logits = decoder.read_tokens(token_ids, torch.tensor(active).bool())
        assert logits.isfinite().all()
        for row in range(3):
            if active[row]:
                pieces[row] = with_text(pieces[row], int(token_ids[row]))
                torch.testing.assert_close(logits[row], uncached(pipeline, pieces[row]).logits[-1], **TOLERANCE)
    assert decoder.lengths.tolist() == [len(piece.tokens) for piece in pieces] == [7, 4, 6]


@patchers
@masks
@torch.no_grad()
def test_documents_with_images_in_them(make_pipeline, tokenizer, patcher, mask):
    """Read at once: none, one and two images beside one another, and text after them."""
    pipeline = make_pipeline(patcher, mask)
    documents = [
        Document((TextSegment((1, 8, 9)),)),
        Document((TextSegment((1, 5)), ImageSegment(picture(0)), TextSegment((7,)), ImageSegment(picture(1)))),
        Document((TextSegment((1,)), ImageSegment(picture(2)), TextSegment((11, 12)))),
    ]
    pieces = [flatten(document, tokenizer, P) for document in documents]
    decoder = Decoder(pipeline, 3, capacity=20)
    logits = decoder.read(pieces)
    for row, piece in enumerate(pieces):
        torch.testing.assert_close(logits[row], uncached(pipeline, piece).logits[-1], **TOLERANCE)
    logits = decoder.read_tokens(torch.tensor([60, 61, 62]), torch.ones(3, dtype=torch.bool))
    for row, piece in enumerate(pieces):
        torch.testing.assert_close(logits[row], uncached(pipeline, with_text(piece, 60 + row)).logits[-1], **TOLERANCE)


@patchers
@masks
@torch.no_grad()
def test_an_image_and_the_text_after_it(make_pipeline, tokenizer, patcher, mask):
    pipeline = make_pipeline(patcher, mask)
    pieces = [text(*prompt, tokenizer.boi) for prompt in PROMPTS]
    decoder = Decoder(pipeline, 3, capacity=5 + P + 2)
    decoder.read(pieces)
    for timestep in (999, 500, 0):
        noisy = torch.stack([picture(timestep + row) for row in range(3)])
        prediction = decoder.predict_image(noisy, timestep)
        for row, piece in enumerate(pieces):
            expected = uncached(pipeline, with_image(piece, noisy[row]), timestep).image_prediction[0]
            torch.testing.assert_close(prediction[row], expected, **TOLERANCE)

    clean, active = torch.stack([picture(row) for row in range(3)]), torch.tensor([True, False, True])
    decoder.read_image(clean, active)
    pieces = [with_image(piece, image) if on else piece for piece, image, on in zip(pieces, clean, active, strict=True)]
    for token_ids in (torch.full((3,), tokenizer.eoi), torch.tensor([14, 15, 16])):
        logits = decoder.read_tokens(token_ids, torch.ones(3, dtype=torch.bool))
        pieces = [with_text(piece, int(token)) for piece, token in zip(pieces, token_ids, strict=True)]
        for row, piece in enumerate(pieces):
            torch.testing.assert_close(logits[row], uncached(pipeline, piece).logits[-1], **TOLERANCE)


@torch.no_grad()
def test_denoising_leaves_the_cache_as_it_was(make_pipeline, tokenizer):
    decoder = Decoder(make_pipeline(), 2, capacity=3 + P)
    decoder.read([text(1, 5, tokenizer.boi), text(1, tokenizer.boi)])
    noisy = torch.stack([picture(0), picture(1)])
    first = decoder.predict_image(noisy, 800)
    buffers, positions = decoder.cache.buffers[..., :3, :].clone(), decoder.cache.positions[:, :3].clone()
    decoder.predict_image(-noisy, 20)
    assert decoder.cache.length == 3
    assert decoder.lengths.tolist() == [3, 2]
    assert torch.equal(decoder.cache.buffers[..., :3, :], buffers)
    assert torch.equal(decoder.cache.positions[:, :3], positions)
    assert torch.equal(decoder.predict_image(noisy, 800), first)


@torch.no_grad()
def test_rewind_forgets(make_pipeline, tokenizer):
    """What was read after the point each row goes back to leaves no trace."""
    pipeline, everyone = make_pipeline(), torch.ones(2, dtype=torch.bool)
    decoder = Decoder(pipeline, 2, capacity=20)
    pieces = [text(1, 5, 6), text(1, 7)]
    decoder.read(pieces)
    decoder.read_tokens(torch.tensor([50, 51]), everyone)
    decoder.read_tokens(torch.tensor([tokenizer.boi] * 2), everyone)
    decoder.read_image(torch.stack([picture(0), picture(1)]), everyone)
    decoder.rewind(torch.tensor([4, 1]))  # the first keeps its new token, the second not even all of its prompt
    assert decoder.lengths.tolist() == [4, 1]
    logits = decoder.read_tokens(torch.tensor([60, 61]), everyone)
    torch.testing.assert_close(logits[0], uncached(pipeline, text(1, 5, 6, 50, 60)).logits[-1], **TOLERANCE)
    torch.testing.assert_close(logits[1], uncached(pipeline, text(1, 61)).logits[-1], **TOLERANCE)


@torch.no_grad()
def test_a_full_cache_says_so(make_pipeline):
    decoder = Decoder(make_pipeline(), 1, capacity=3)
    decoder.read([text(1, 5, 6)])
    with pytest.raises(ValueError, match="the cache holds 3 positions, 4 are needed"):
        decoder.read_tokens(torch.tensor([7]), torch.tensor([True]))


@torch.no_grad()
def test_a_mask_of_ones_own_holds_in_decoding_too(make_pipeline):
    """A rule whose `lo` is not the start of the document, as any subclass of Visibility may have."""
    pipeline = make_pipeline(mask=Window())
    decoder, piece = Decoder(pipeline, 1, capacity=8), text(1, 5, 6, 7, 8)
    logits = decoder.read([piece])
    torch.testing.assert_close(logits[0], uncached(pipeline, piece).logits[-1], **TOLERANCE)
    for token_id in (20, 21):
        piece = with_text(piece, token_id)
        logits = decoder.read_tokens(torch.tensor([token_id]), torch.tensor([True]))
        torch.testing.assert_close(logits[0], uncached(pipeline, piece).logits[-1], **TOLERANCE)
