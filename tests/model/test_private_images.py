"""Tests of private images, which only their own patches see, in all forms of the mask, in the net and in the cache."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from single_shape import run
from torch.nn.attention.flex_attention import create_block_mask

from lit_transfusion.model import Bidirectional, Causal, LinearPatcher, TransformerConfig, Transfusion
from lit_transfusion.model import query_blocks as blocks_module
from lit_transfusion.model.attention import BACKENDS
from lit_transfusion.model.flops import visible_pairs
from lit_transfusion.model.visibility import block_mask, dense_mask, mask_mod

row = st.lists(st.sampled_from(["t", "ttt", "AAAA", "BB", "|"]), max_size=6).map("".join)
rows = st.lists(row, min_size=1, max_size=3)
masks = st.sampled_from([Bidirectional(), Causal()])


def layout(lay_out, rows, mask, every, length=1):
    """Intervals of the rows, and the private images: those whose number is a multiple of `every`."""
    document_ids, image_ids = lay_out(*rows, length=length)
    lo, hi = mask.intervals(document_ids, image_ids)
    return lo, hi, torch.where((image_ids >= 0) & (image_ids % every == 0), image_ids, -1)


def by_definition(lo, hi, private):
    seen = torch.zeros(*lo.shape, lo.shape[1], dtype=torch.bool)
    for b, q, k in torch.cartesian_prod(*map(torch.arange, seen.shape)).tolist():
        seen[b, q, k] = lo[b, q] <= k < hi[b, q] and (private[b, k] < 0 or private[b, k] == private[b, q])
    return seen


@given(rows=rows, mask=masks, every=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_masks_and_counts_follow_the_definition(lay_out, rows, mask, every):
    lo, hi, private = layout(lay_out, rows, mask, every)
    expected = by_definition(lo, hi, private)
    assert torch.equal(dense_mask(lo, hi, private), expected)
    B, L = lo.shape
    b, q, k = torch.meshgrid(torch.arange(B), torch.arange(L), torch.arange(L), indexing="ij")
    assert torch.equal(mask_mod(lo, hi, private)(b, torch.tensor(0), q, k), expected)
    lengths = torch.full((B,), L)
    assert visible_pairs(lo, hi, lengths, private) == expected.sum()


@given(rows=rows, mask=masks, every=st.integers(1, 3), longest=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_backends_agree_in_outputs_and_gradients(lay_out, rows, mask, every, longest, seed):
    """`split` has blocks of a few queries here, so that most documents are several blocks."""
    arguments = layout(lay_out, rows, mask, every)
    generator = torch.Generator().manual_seed(seed)
    *inputs, weight = (torch.randn(*arguments[0].shape, 16, generator=generator) for _ in range(4))
    inputs = [x.unflatten(2, (2, 8)).transpose(1, 2).requires_grad_() for x in inputs]
    results = {}
    before = blocks_module.BLOCK, blocks_module.LONGEST
    blocks_module.BLOCK, blocks_module.LONGEST = longest, longest
    try:
        for name in ("eager", "dense", "split"):
            output = BACKENDS[name](*arguments)(*inputs)
            gradients = torch.autograd.grad(output, inputs, weight.unflatten(2, (2, 8)).transpose(1, 2))
            results[name] = [output.detach(), *gradients]
    finally:
        blocks_module.BLOCK, blocks_module.LONGEST = before
    for name in ("dense", "split"):
        torch.testing.assert_close(results[name], results["eager"], atol=1e-5, rtol=1e-4)


ROWS = "t" * 20 + "A" * 150 + "t|tt" + "B" * 64, "t" * 140 + "|" + "C" * 100 + "|t"


@pytest.mark.parametrize("every", [1, 2])
def test_a_block_with_private_keys_is_never_full(lay_out, every):
    arguments = layout(lay_out, ROWS, Bidirectional(), every, length=256)
    ours = block_mask(*arguments)
    torchs = create_block_mask(mask_mod(*arguments), B=2, H=None, Q_LEN=256, KV_LEN=256, device="cpu")
    assert (ours.to_dense() >= torchs.to_dense()).all()  # no visible block is left out
    full = torch.zeros(2, 2, 2, dtype=torch.bool)
    for b, q in torch.cartesian_prod(torch.arange(2), torch.arange(2)).tolist():
        number = ours.full_kv_num_blocks[b, 0, q]
        full[b, q, ours.full_kv_indices[b, 0, q, :number].long()] = True
    seen = dense_mask(*arguments).unflatten(2, (2, 128)).unflatten(1, (2, 128)).transpose(2, 3).flatten(3).all(3)
    assert not (full & ~seen).any()


@pytest.mark.filterwarnings("ignore")
def test_flex_equals_eager(lay_out):
    arguments = layout(lay_out, ROWS, Bidirectional(), 1, length=256)
    q, k, v = torch.randn(3, 2, 2, 256, 16)
    expected = BACKENDS["eager"](*arguments)(q, k, v)
    torch.testing.assert_close(BACKENDS["flex"](*arguments)(q, k, v), expected, atol=1e-5, rtol=1e-4)


# A document with a noised copy and a clean copy of one image of 2 × 2 patches, at the same positions: text, BOI, noised
# copy, clean copy, EOI, text.
IMAGE_IDS = torch.tensor([[-1, -1, 0, 0, 0, 0, 1, 1, 1, 1, -1, -1]])
PRIVATE = torch.where(IMAGE_IDS == 0, 0, -1)
POSITIONS = torch.tensor([[0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7]])


@pytest.fixture(params=["1d", "2d"])
def net(request):
    torch.manual_seed(0)
    config = TransformerConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=48, rope=request.param)
    return Transfusion(50, config, LinearPatcher(3, 32, 2), Bidirectional()).eval()


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(50, (1, 12), generator=generator), torch.randn(2, 3, 4, 4, generator=generator)


def test_text_and_clean_copy_do_not_depend_on_the_noised_copy(net):
    tokens, images = inputs()
    images.requires_grad_()
    zeros, times = torch.zeros_like(tokens), torch.tensor([500, 0])
    output = run(net, tokens, POSITIONS, zeros, IMAGE_IDS, images, times, torch.arange(12), private=PRIVATE)
    is_seen = PRIVATE[0] < 0
    (gradient,) = torch.autograd.grad(output.logits[is_seen].square().sum(), images, retain_graph=True)
    assert not gradient[0].any() and gradient[1].any()
    (gradient,) = torch.autograd.grad(output.image_prediction[1].square().sum(), images, retain_graph=True)
    assert not gradient[0].any() and gradient[1].any()
    (gradient,) = torch.autograd.grad(output.image_prediction[0].square().sum(), images)
    assert gradient[0].any()


@torch.no_grad()
def test_the_clean_copy_alone_gives_the_same(net):
    """This is what sampling keeps: without the noised copy, all else stays at its positions."""
    tokens, images = inputs()
    zeros, times = torch.zeros_like(tokens), torch.tensor([500, 0])
    both = run(net, tokens, POSITIONS, zeros, IMAGE_IDS, images, times, torch.arange(12), private=PRIVATE)
    kept = PRIVATE[0] < 0
    alone = run(
        net,
        tokens[:, kept],
        POSITIONS[:, kept],
        zeros[:, kept],
        IMAGE_IDS[:, kept] - 1,
        images[1:],
        times[1:],
        torch.arange(8),
    )
    torch.testing.assert_close(alone.logits, both.logits[kept], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone.image_prediction[0], both.image_prediction[1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mask", [Bidirectional(), Causal()])
def test_cached_equals_recomputed(net, mask):
    """Slots are the order in the row; the two copies have the same positions."""
    net.mask = mask
    tokens, images = inputs()
    zeros, times = torch.zeros_like(tokens), torch.tensor([500, 0])
    full = run(net, tokens, POSITIONS, zeros, IMAGE_IDS, images, times, torch.arange(12), private=PRIVATE)
    cache, logits, predictions = net.new_cache(1, 12), [], []
    for start, stop, shown in ((0, 2, []), (2, 6, [0]), (6, 10, [1]), (10, 12, [])):
        part = slice(start, stop)
        ids = torch.where(IMAGE_IDS[:, part] >= 0, 0, -1)
        output = run(
            net,
            *(tokens[:, part], POSITIONS[:, part], zeros[:, part], ids, images[shown], times[shown]),
            torch.arange(stop - start),
            cache.first(1, stop),
            slots=torch.arange(start, stop)[None],
            private=torch.where(PRIVATE[:, part] >= 0, 0, -1),
        )
        logits.append(output.logits)
        predictions += [output.image_prediction] * bool(shown)
    torch.testing.assert_close(torch.cat(logits), full.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat(predictions), full.image_prediction, atol=1e-5, rtol=1e-5)
