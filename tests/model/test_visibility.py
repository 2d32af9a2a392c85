"""Tests of the visibility rules against the paper's rule in loops, and of all mask forms against the dense one."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

from lit_transfusion.model.visibility import (
    FLEX_BLOCK,
    Bidirectional,
    Causal,
    Visibility,
    block_mask,
    cuts,
    dense_mask,
    mask_mod,
)

both = pytest.mark.parametrize("mask", [Bidirectional(), Causal()], ids=["bidirectional", "causal"])
row = st.lists(st.sampled_from(["t", "ttt", "AAAA", "BB", "C", "|"]), max_size=8).map("".join)
rows = st.lists(row, min_size=1, max_size=3)


class Window(Visibility):
    """Each query sees the last three positions, so that its `lo` is not the start of its document."""

    def intervals(self, document_ids, image_ids):
        lo, hi = Causal().intervals(document_ids, image_ids)
        return torch.maximum(lo, hi - 3), hi


def papers_rule(mask, document_ids, image_ids):
    """Compute the mask in loops: same document, and earlier or (bidirectional) in the same image."""
    B, L = document_ids.shape
    visible = torch.zeros(B, L, L, dtype=torch.bool)
    for b in range(B):
        for q in range(L):
            for k in range(L):
                same_document = document_ids[b, q] == document_ids[b, k]
                same_image = image_ids[b, q] >= 0 and image_ids[b, q] == image_ids[b, k]
                visible[b, q, k] = same_document and (k <= q or (same_image and isinstance(mask, Bidirectional)))
    return visible


@both
@given(rows=rows)
@settings(max_examples=50, deadline=None)
def test_dense_mask_is_the_papers_rule(lay_out, mask, rows):
    ids = lay_out(*rows, length=1)
    assert torch.equal(dense_mask(*mask.intervals(*ids)), papers_rule(mask, *ids))


def test_the_papers_figure_4(lay_out):
    """Text, an image, text, an image, then another document."""
    expected = """
        #......
        ###....
        ###....
        ####...
        ######.
        ######.
        ......#"""
    visible = dense_mask(*Bidirectional().intervals(*lay_out("tAAtBB|t")))[0]
    assert ["".join(".#"[k] for k in query) for query in visible.long().tolist()] == expected.split()


@both
@given(rows=rows)
@settings(max_examples=50, deadline=None)
def test_every_query_sees_itself(lay_out, mask, rows):
    """This includes padding: softmax over no key is NaN."""
    lo, hi = mask.intervals(*lay_out(*rows, length=1))
    index = torch.arange(lo.shape[1])
    assert (lo <= index).all() and (index < hi).all() and (lo >= 0).all() and (hi <= lo.shape[1]).all()


@both
def test_earlier_image_does_not_see_a_later_one(lay_out, mask):
    """Each image of a document is a separate bidirectional set."""
    visible = dense_mask(*mask.intervals(*lay_out("ttAAAABBBBttCCCCt")))[0]
    spans = [(0, 2), (2, 6), (6, 10), (10, 12), (12, 16), (16, 17)]
    for i, (start, end) in enumerate(spans):
        assert not visible[start:end, end:].any()
        assert visible[end:, start:end].all()
        if 0 < i < 3:
            assert visible[start:end, start:end].all() == isinstance(mask, Bidirectional)


@pytest.mark.parametrize("mask", [Bidirectional(), Causal(), Window()], ids=["bidirectional", "causal", "window"])
@given(rows=st.lists(st.integers(1, 300), min_size=1, max_size=6), letters=st.permutations("tABtC|"))
@settings(max_examples=8, deadline=None)
def test_block_mask_equals_that_of_torch(lay_out, mask, rows, letters):
    """Compares full blocks, partial blocks and every element, for 3 × 3 blocks and two rows."""
    length = 3 * FLEX_BLOCK
    row = "".join(letter * n for letter, n in zip(letters, rows, strict=False) if letter != "|" or n % 2)[:length]
    lo, hi = mask.intervals(*lay_out(row, row[::-1], length=length))
    ours = block_mask(lo, hi)
    torchs = create_block_mask(mask_mod(lo, hi), B=2, H=None, Q_LEN=length, KV_LEN=length, device="cpu")

    def blocks(count, indices):
        return [set(row[:n]) for n, row in zip(count.flatten().tolist(), indices.flatten(0, 2).tolist(), strict=True)]

    full = blocks(ours.full_kv_num_blocks, ours.full_kv_indices)
    partial = blocks(ours.kv_num_blocks, ours.kv_indices)
    assert full == blocks(torchs.full_kv_num_blocks, torchs.full_kv_indices)
    assert partial == blocks(torchs.kv_num_blocks, torchs.kv_indices)
    assert torch.equal(ours.to_dense(), torchs.to_dense())

    dense = dense_mask(lo, hi).unflatten(2, (3, FLEX_BLOCK)).unflatten(1, (3, FLEX_BLOCK)).transpose(2, 3)
    for sees, some, every in zip(dense.flatten(0, 1), partial, full, strict=True):  # (k blocks, 128, 128)
        for k, block in enumerate(sees):
            assert block.all() if k in every else block.any() == (k in some)


@both
@given(rows=rows)
@settings(max_examples=50, deadline=None)
def test_mask_mod_is_dense_mask(lay_out, mask, rows):
    lo, hi = mask.intervals(*lay_out(*rows, length=1))
    (B, L), visible = lo.shape, mask_mod(lo, hi)
    b, q, k = torch.arange(B)[:, None, None], torch.arange(L)[:, None], torch.arange(L)
    assert torch.equal(visible(b, torch.tensor(0), q, k), dense_mask(lo, hi))


@both
@given(rows=rows)
@settings(max_examples=50, deadline=None)
def test_the_pieces_between_cuts_are_the_documents(lay_out, mask, rows):
    document_ids, image_ids = lay_out(*rows, length=1)
    lengths = [n for row in document_ids for n in row.unique_consecutive(return_counts=True)[1].tolist()]
    assert cuts(*mask.intervals(document_ids, image_ids)) == lengths


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_cuts_are_where_no_interval_crosses_and_nowhere_else(data):
    """This holds for any rule: the drawn intervals only need to contain their query."""
    L = data.draw(st.integers(1, 8))
    near = st.integers(0, 2)
    rows = [[(max(0, q - data.draw(near)), min(L, q + 1 + data.draw(near))) for q in range(L)] for _ in range(2)]
    lo, hi = torch.tensor(rows).unbind(-1)
    expected = [b * L + s for b, row in enumerate(rows) for s in range(L) if not any(lo < s < hi for lo, hi in row)]
    lengths = cuts(lo, hi)
    assert [sum(lengths[:i]) for i in range(len(lengths))] == expected
    assert sum(lengths) == 2 * L


def test_the_window_in_the_readme_has_the_given_size(lay_out):
    """Each text position sees `size` keys including itself, or all that exist; patches see what they always see."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n# my_masks\.py\n(.*?)```", readme, re.DOTALL)
    exec(code, names := {})
    document_ids, image_ids = lay_out("t" * 40 + "AAAA" + "t" * 4)
    for size in (1, 16):
        lo, hi = names["Window"](size).intervals(document_ids, image_ids)
        seen = dense_mask(lo, hi)[0].sum(1).tolist()
        text = [min(q + 1, size) for q in range(40)]
        assert seen == [*text, *[44] * 4, *[size] * 4]


def test_window_is_not_cut_inside_a_document(lay_out):
    """Sliding windows overlap, so the only cuts are between documents."""
    assert cuts(*Window().intervals(*lay_out("tttttt|ttt|tAAt"))) == [6, 3, 4]
