"""Tests of the Transformer: parameter counts of the paper, rotary positions, and a block against plain loops."""

import cmath
import math
from dataclasses import replace

import pytest
import torch

from lit_transfusion.model import SIZES, Bidirectional, LinearPatcher, Transformer, TransformerConfig, Transfusion
from lit_transfusion.model.attention import BACKENDS
from lit_transfusion.model.config import llama_hidden_dim
from lit_transfusion.model.rotary import rotary_angles, rotate

SMALL = TransformerConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=24)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "millions", "linear_percent"),
    [("0.16B", 162.4, 0.5), ("0.37B", 373.9, 0.4), ("0.76B", 777.9, 0.4), ("1.4B", 1364.3, 0.4), ("7B", 6738.4, 0.3)],
)
def test_sizes_have_the_parameter_counts_of_the_paper(name, millions, linear_percent):
    """Table 2 with the 32,000 tokens of Llama, and the share of the linear patcher at 8 channels (Table 7)."""
    size = SIZES[name]
    with torch.device("meta"):
        patcher = LinearPatcher(latent_channels=8, dim=size.dim, patch_size=2)
        net = Transfusion(32_000, size, patcher, Bidirectional())
    images = count(net.patcher) + count(net.time_embedding)
    text = count(net) - images
    assert text == pytest.approx(millions * 1e6, rel=1e-3)
    assert round(100 * images / text, 1) == linear_percent


def test_hidden_dim_follows_the_rule_of_llama():
    assert [llama_hidden_dim(dim, 256) for dim in (768, 4096, 5120)] == [2048, 11008, 13824]
    assert llama_hidden_dim(768, 256) == 8 * 768 // 3  # already a multiple
    size = TransformerConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=20)
    assert Transformer(size).blocks[0].feed_forward.down.in_features == 20


@pytest.mark.parametrize(("dim", "n_heads"), [(30, 4), (12, 4)])
def test_heads_must_divide_the_width_into_pairs(dim, n_heads):
    with pytest.raises(ValueError, match=f"dim {dim} is not a multiple of twice the {n_heads} heads"):
        Transformer(TransformerConfig(dim=dim, n_layers=1, n_heads=n_heads))


def test_rotation_equals_a_product_of_complex_numbers():
    """Pair i of a vector at position p is rotated by p · θ^(-2i / head_dim)."""
    positions = torch.tensor([[0, 1, 7], [1000, 3, 2]])
    x = torch.randn(2, 4, 3, 8)
    turned = rotate(x, rotary_angles(positions[..., None], head_dim=8, theta=500.0))
    for i in range(4):
        turns = [[cmath.exp(1j * p * 500.0 ** (-2 * i / 8)) for p in row] for row in positions.tolist()]
        expected = torch.complex(x[..., i], x[..., i + 4]) * torch.tensor(turns)[:, None]
        torch.testing.assert_close(torch.complex(turned[..., i], turned[..., i + 4]), expected, atol=1e-4, rtol=1e-4)


def test_rotation_keeps_the_norm_and_does_not_change_position_zero():
    x = torch.randn(1, 2, 5, 8)
    turned = rotate(x, rotary_angles(torch.tensor([[0, 1, 50, 999, 4095]])[..., None], 8, 10_000.0))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(turned[:, :, 0], x[:, :, 0])
    assert (turned[:, :, 1:] - x[:, :, 1:]).abs().amax(-1).min() > 0.1


def test_attention_scores_depend_on_relative_positions_only():
    q, k = torch.randn(2, 1, 2, 6, 8)
    positions = torch.tensor([[0, 1, 2, 5, 11, 40]])

    def scores(positions):
        rope = rotary_angles(positions[..., None], 8, 10_000.0)
        return rotate(q, rope) @ rotate(k, rope).mT

    torch.testing.assert_close(scores(positions + 777), scores(positions), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(scores(2 * positions), scores(positions), atol=1e-1)


def test_permuting_patches_does_not_just_permute_the_output():
    """Patches that all see each other differ only by their positions."""
    torch.manual_seed(0)
    net = Transformer(SMALL)
    attend = BACKENDS["eager"](torch.zeros(1, 6, dtype=torch.int64), torch.full((1, 6), 6))
    x, order = torch.randn(1, 6, 16), torch.tensor([3, 0, 5, 1, 4, 2])
    positions = torch.arange(6)[None, :, None]
    is_patch = torch.ones(1, 6, dtype=torch.bool)
    output = net(x, positions, is_patch, attend)
    assert not torch.allclose(net(x[:, order], positions, is_patch, attend), output[:, order], atol=1e-2)
    torch.testing.assert_close(
        net(x[:, order], positions[:, order], is_patch, attend), output[:, order]
    )  # if they move, too


@torch.no_grad()
def test_block_equals_a_plain_implementation_of_llamas():
    """The reference computes one position, one head and one pair at a time, in float64."""
    torch.manual_seed(0)
    net = Transformer(replace(SMALL, rope_theta=100.0, norm_eps=1e-3))
    for norm in (net.norm, net.blocks[0].attention_norm, net.blocks[0].feed_forward_norm):
        norm.weight.uniform_(0.5, 1.5)
    x = torch.randn(1, 5, 16)
    positions = torch.tensor([[0, 1, 2, 0, 1]])  # two documents
    sees = [[0], [0, 1, 2], [0, 1, 2], [3], [3, 4]]  # the first with an image of two patches
    lo, hi = torch.tensor([[0, 0, 0, 3, 3]]), torch.tensor([[1, 3, 3, 4, 5]])

    block = net.blocks[0].double()
    w_q, w_k, w_v = block.attention.qkv.weight.split(16)
    w_gate, w_up = block.feed_forward.gate_up.weight.split(24)

    def rms_norm(vector, norm):
        return vector / (vector.square().mean() + 1e-3).sqrt() * norm.weight.double()

    def turn(vector, position):  # (8,)
        turned = vector.clone()
        for i in range(4):
            angle = position * 100.0 ** (-2 * i / 8)
            turned[i] = vector[i] * math.cos(angle) - vector[i + 4] * math.sin(angle)
            turned[i + 4] = vector[i] * math.sin(angle) + vector[i + 4] * math.cos(angle)
        return turned

    stream = x[0].double()
    normed = [rms_norm(vector, block.attention_norm) for vector in stream]
    attended = []
    for i, keys in enumerate(sees):
        heads = []
        for head in (slice(0, 8), slice(8, 16)):
            query = turn((w_q @ normed[i])[head], positions[0, i].item())
            scores = [query @ turn((w_k @ normed[j])[head], positions[0, j].item()) / math.sqrt(8) for j in keys]
            weights = torch.stack(scores).softmax(0)
            heads.append(sum(w * (w_v @ normed[j])[head] for w, j in zip(weights, keys, strict=True)))
        attended.append(stream[i] + block.attention.out.weight @ torch.cat(heads))
    expected = []
    for vector in attended:
        normed_vector = rms_norm(vector, block.feed_forward_norm)
        gate = w_gate @ normed_vector
        hidden = gate * torch.sigmoid(gate) * (w_up @ normed_vector)
        expected.append(rms_norm(vector + block.feed_forward.down.weight @ hidden, net.norm))

    output = net.float()(x, positions[..., None], hi > hi, BACKENDS["eager"](lo, hi))
    torch.testing.assert_close(output[0].double(), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_layers_that_write_into_the_residual_stream_start_smaller():
    """They are smaller by √(2 · n_layers), so that two of them in each layer do not increase its variance."""
    net = Transformer(TransformerConfig(dim=128, n_layers=8, n_heads=2, hidden_dim=128))
    net.reset_parameters()
    for block in net.blocks:
        attention, feed_forward = block.attention, block.feed_forward
        for inner, into_stream in ((attention.qkv, attention.out), (feed_forward.gate_up, feed_forward.down)):
            assert (inner.weight.std() * math.sqrt(128)).item() == pytest.approx(1, abs=0.05)
            assert (inner.weight.std() / into_stream.weight.std()).item() == pytest.approx(4, rel=0.05)
