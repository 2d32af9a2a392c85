"""Tests of the attention backends against softmax in loops, and against each other."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_transfusion.model.attention import BACKENDS, fastest
from lit_transfusion.model.visibility import Bidirectional, Causal, dense_mask

row = st.lists(st.sampled_from(["t", "ttt", "AAAA", "BB", "|"]), max_size=6).map("".join)
rows = st.lists(row, min_size=1, max_size=3)
masks = st.sampled_from([Bidirectional(), Causal()])


def qkv(B, L, heads=2, head_dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, heads, L, head_dim, generator=generator).requires_grad_() for _ in range(3)]


@given(rows=rows, mask=masks)
@settings(max_examples=10, deadline=None)
def test_eager_is_softmax_over_the_visible_keys(lay_out, rows, mask):
    lo, hi = mask.intervals(*lay_out(*rows, length=1))
    q, k, v = (x.detach() for x in qkv(*lo.shape))
    expected = torch.empty_like(v)
    for b, visible in enumerate(dense_mask(lo, hi)):
        for h in range(2):
            for i, keys in enumerate(visible):
                seen = keys.nonzero()[:, 0].tolist()
                weights = [math.exp(q[b, h, i].double() @ k[b, h, j].double() / math.sqrt(8)) for j in seen]
                expected[b, h, i] = sum(w * v[b, h, j] for w, j in zip(weights, seen, strict=True)) / sum(weights)
    torch.testing.assert_close(BACKENDS["eager"](lo, hi)(q, k, v), expected, atol=1e-5, rtol=1e-5)


@given(rows=rows, mask=masks, seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_eager_dense_and_split_agree_in_outputs_and_gradients(lay_out, rows, mask, seed):
    lo, hi = mask.intervals(*lay_out(*rows, length=1))
    inputs = qkv(*lo.shape, seed=seed)
    weight = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(seed + 1))
    results = {}
    for name in ("eager", "dense", "split"):
        output = BACKENDS[name](lo, hi)(*inputs)
        results[name] = [output.detach(), *torch.autograd.grad(output, inputs, weight)]
    for name in ("dense", "split"):
        torch.testing.assert_close(results[name], results["eager"], atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_flex_equals_eager(lay_out):
    """Two rows of 2 × 2 blocks: full, partial and hidden ones. FlexAttention has no backward pass on a CPU."""
    ids = lay_out("t" * 20 + "A" * 150 + "t|tt" + "B" * 64, "t" * 140 + "|" + "C" * 100 + "|t", length=256)
    for mask in (Bidirectional(), Causal()):
        lo, hi = mask.intervals(*ids)
        inputs = [x.detach() for x in qkv(2, 256, head_dim=16)]
        expected = BACKENDS["eager"](lo, hi)(*inputs)
        torch.testing.assert_close(BACKENDS["flex"](lo, hi)(*inputs), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("length", [1, 127, 130, 192])
def test_flex_on_rows_that_are_no_multiple_of_the_tile_is_an_error(length):
    lo, hi = Causal().intervals(*torch.zeros(2, 1, length, dtype=torch.int64))
    with pytest.raises(ValueError, match=f"multiple of 128 positions, not {length}"):
        BACKENDS["flex"](lo, hi)


@pytest.mark.parametrize(
    ("device", "length", "dtype", "chosen"),
    [
        ("cpu", 128, torch.float32, "dense"),
        ("cpu", 256, torch.float32, "split"),
        ("cpu", 1024, torch.float32, "split"),  # the fastest with a backward pass
        ("cuda", 128, torch.bfloat16, "dense"),
        ("cuda", 896, torch.bfloat16, "dense"),
        ("cuda", 1024, torch.bfloat16, "flex"),
        ("cuda", 1024, torch.float64, "dense"),  # flex does not support it
        ("cuda", 1100, torch.bfloat16, "dense"),  # an error with flex
    ],
)
def test_auto_chooses_by_device_length_and_dtype(caplog, device, length, dtype, chosen):
    fastest.cache_clear()
    with caplog.at_level("INFO"):
        assert [fastest(device, length, dtype) for _ in range(2)] == [chosen] * 2
    assert [record.message.split(",")[0] for record in caplog.records] == [f"attention: {chosen}"]  # logged once


@pytest.mark.parametrize("name", ["eager", "dense", "split"])
def test_documents_do_not_affect_each_other(lay_out, name):
    """A document does not change the output of another by one bit, and gets no gradient from it."""
    lo, hi = Bidirectional().intervals(*lay_out("tAAAAt|tBBt|tt"))
    attend = BACKENDS[name](lo, hi)
    q, k, v = qkv(1, 12)
    second = slice(6, 10)
    before = attend(q, k, v)[:, :, second]
    for gradient in torch.autograd.grad(before.square().sum(), (q, k, v)):
        assert gradient[:, :, second].any()
        assert not gradient[:, :, :6].any() and not gradient[:, :, 10:].any()
    with torch.no_grad():
        for x in (q, k, v):
            x[:, :, :6] = 50 * torch.randn_like(x[:, :, :6])
            x[:, :, 10:] *= -3
        assert torch.equal(attend(q, k, v)[:, :, second], before)


@pytest.mark.filterwarnings("ignore")
def test_documents_do_not_affect_each_other_with_flex(lay_out):
    """The boundary is in the middle of a tile."""
    attend = BACKENDS["flex"](*Bidirectional().intervals(*lay_out("t" * 50 + "|" + "A" * 78)))
    q, k, v = (x.detach() for x in qkv(1, 128, head_dim=16))
    before = attend(q, k, v)[:, :, 50:]
    for x in (q, k, v):
        x[:, :, :50] = 50 * torch.randn_like(x[:, :, :50])
    assert torch.equal(attend(q, k, v)[:, :, 50:], before)
