"""Tests of the variants of the Transformer: against transformers' models with the same weights, and slow references."""

import itertools
from dataclasses import replace

import pytest
import torch
from single_shape import run

from lit_transfusion.model import Bidirectional, LinearPatcher, TransformerConfig, Transfusion, UNetPatcher
from lit_transfusion.model.attention import BACKENDS
from lit_transfusion.model.block import Block, attend_heads
from lit_transfusion.model.flops import Flops
from lit_transfusion.model.llama import text_weights
from lit_transfusion.model.rotary import rotary_angles, rows_and_columns

transformers = pytest.importorskip("transformers")

VOCAB = 50
SMALL = TransformerConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48)


def new_net(config, patcher=None, seed=0):
    torch.manual_seed(seed)
    net = Transfusion(VOCAB, config, patcher or LinearPatcher(3, config.dim, 2), Bidirectional()).eval()
    for name, parameter in net.named_parameters():  # norms start at one; other values show that they are used
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return net


def text_logits(net, tokens):
    """(B, L) tokens of one document per row → (B, L, V)."""
    B, L = tokens.shape
    ids = torch.zeros_like(tokens)
    positions = torch.arange(L).expand(B, L)
    images, timesteps = torch.zeros(0, 3, 4, 4), torch.zeros(0, dtype=torch.int64)
    output = run(net, tokens, positions, ids, ids - 1, images, timesteps, torch.arange(B * L))
    return output.logits.view(B, L, VOCAB)


def peer(name, config, **options):
    """A model of transformers with the sizes of `config`."""
    kind = getattr(transformers, f"{name}Config")
    theirs = kind(
        vocab_size=VOCAB,
        hidden_size=config.dim,
        intermediate_size=config.feed_forward_dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.kv_heads,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=config.tie_embeddings,
        attention_bias=False,
        **options,
    )
    return getattr(transformers, f"{name}ForCausalLM")(theirs).eval()


def copy_weights(net, theirs):
    """Copy the text weights of our net into a model of transformers."""
    sources = text_weights(net) | {"lm_head.weight": net.head.weight}
    for layer, block in enumerate(net.transformer.blocks):
        prefix = f"model.layers.{layer}"
        if not block.pre_norm:
            for name in ("input_layernorm", "post_attention_layernorm"):
                del sources[f"{prefix}.{name}.weight"]
            sources[f"{prefix}.post_attention_layernorm.weight"] = block.attention_norm.weight
            sources[f"{prefix}.post_feedforward_layernorm.weight"] = block.feed_forward_norm.weight
        if block.attention.qk_norm:
            sources[f"{prefix}.self_attn.q_norm.weight"] = block.attention.q_norm.weight
            sources[f"{prefix}.self_attn.k_norm.weight"] = block.attention.k_norm.weight
    theirs.load_state_dict(sources)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Llama", {}),
        ("Llama", {"n_kv_heads": 2, "rope_theta": 100.0}),
        ("Llama", {"n_kv_heads": 1, "tie_embeddings": True, "norm_eps": 1e-2, "hidden_dim": None, "multiple_of": 8}),
        ("Qwen3", {"qk_norm": True, "n_kv_heads": 2}),
        ("Olmo2", {"norm_order": "post", "qk_norm": True, "n_heads": 1}),  # norms over all heads: the same with one
    ],
)
def test_text_logits_equal_those_of_transformers(name, changes):
    config = replace(SMALL, **changes)
    net = new_net(config)
    theirs = peer(name, config, **({"head_dim": config.head_dim} if name == "Qwen3" else {}))
    copy_weights(net, theirs)
    tokens = torch.randint(VOCAB, (3, 20))
    torch.testing.assert_close(text_logits(net, tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["dense", "split", "flex"])
def test_backends_share_heads_of_keys_and_values_as_eager_does(backend):
    torch.manual_seed(0)
    index = torch.arange(128)
    lo, hi = (index // 40 * 40)[None], (index + 1)[None]
    q, k, v = torch.randn(1, 6, 128, 16), torch.randn(1, 2, 128, 16), torch.randn(1, 2, 128, 16)
    expected = BACKENDS["eager"](lo, hi)(q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1))
    torch.testing.assert_close(BACKENDS[backend](lo, hi)(q, k, v), expected)


IMAGE_IDS = torch.tensor([[-1, -1, 0, 0, 0, 0, -1, -1], [-1, 1, 1, 1, 1, -1, -1, -1]])  # images of 2 × 2 patches


def mixed_inputs(seed=1):
    """Two documents, each with an image: all arguments of the net."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB, (2, 8), generator=generator)
    images = torch.randn(2, 3, 4, 4, generator=generator)
    positions = torch.arange(8).expand(2, 8)
    ids = torch.arange(2)[:, None].expand(2, 8)
    return tokens, positions, ids, IMAGE_IDS, images, torch.tensor([3, 700]), torch.arange(16)


@torch.no_grad()
@pytest.mark.parametrize("modality_weights", ["ffn", "all"])
@pytest.mark.parametrize("changes", [{}, {"norm_order": "post", "qk_norm": True, "n_kv_heads": 2}])
def test_modality_weights_equal_a_block_for_each_position(modality_weights, changes):
    """The reference runs each block with the text's weights and with the patches', and picks one for each position."""
    config = replace(SMALL, modality_weights=modality_weights, **changes)
    net = new_net(config)
    _, positions, ids, image_ids, *_ = mixed_inputs()
    x, is_patch = torch.randn(2, 8, 32), image_ids >= 0
    lo, hi = net.mask.intervals(ids, image_ids)
    attend = BACKENDS["eager"](lo, hi)
    output = net.transformer(x, positions[..., None], is_patch, attend)

    def pick(block, method, *inputs):
        """Apply a method to each position alone, with the weights of its modality."""
        rows = []
        for b, i in itertools.product(range(2), range(8)):
            part = block.patches if is_patch[b, i] else block.text
            rows.append(getattr(part, method)(*(value[b, i] for value in inputs)))
        return torch.stack(rows).unflatten(0, (2, 8))

    rope = rotary_angles(positions[..., None], config.head_dim, config.rope_theta)
    for block in net.transformer.blocks:
        attended = attend_heads(pick(block, "project", x), attend, rope, config.n_heads)
        x = pick(block, "finish", x, attended)
    norms = net.transformer.norm(x), getattr(net.transformer, "patch_norm", net.transformer.norm)(x)
    torch.testing.assert_close(output, torch.where(is_patch[..., None], norms[1], norms[0]), atol=1e-5, rtol=1e-5)


def test_parameter_counts_of_modality_weights():
    def count(modality_weights):
        net = new_net(replace(SMALL, modality_weights=modality_weights))
        return sum(p.numel() for p in net.transformer.parameters())

    shared = count("none")
    feed_forward = 2 * (3 * 32 * 48 + 32)  # three matrices and a norm in each of two layers
    assert count("ffn") == shared + feed_forward
    assert count("all") == 2 * shared  # Mixture-of-Transformers: all weights but the embeddings


def test_flops_do_not_depend_on_modality_weights():
    counts = set()
    for name in ("none", "ffn", "all"):
        flops = Flops.count(new_net(replace(SMALL, modality_weights=name)))
        counts.add((flops.token, flops.pair, flops.logit, flops.image((3, 4, 4))))
    assert len(counts) == 1


def test_modality_weights_have_gradients_without_images():
    """A rank whose batch lacks a modality must still have a gradient for each parameter."""
    net = new_net(replace(SMALL, modality_weights="all")).train()
    text_logits(net, torch.randint(VOCAB, (1, 6))).sum().backward()
    blocks = net.transformer.blocks
    assert all(p.grad is not None for p in blocks.parameters())
    assert all(not p.grad.any() for p in blocks[0].patches.parameters())
    assert all(p.grad.any() for p in blocks[0].text.parameters())


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {"n_kv_heads": 2, "qk_norm": True},
        {"norm_order": "post"},
        {"rope": "2d"},
        {"modality_weights": "ffn"},
        {"modality_weights": "all", "rope": "2d", "n_kv_heads": 1},
        {"tie_embeddings": True, "dropout": 0.5},
    ],
)
def test_cached_equals_recomputed(changes):
    """The net reads text, an image, and text in three passes with a cache."""
    config = replace(SMALL, **changes)
    net = new_net(config)
    tokens, positions, ids, image_ids, images, timesteps, _ = (x[:1] for x in mixed_inputs())
    full = run(net, tokens, positions, ids, image_ids, images, timesteps, torch.arange(8))
    cache, logits = net.new_cache(1, 8), []
    for part, shown in ((slice(0, 2), images[:0]), (slice(2, 6), images), (slice(6, 8), images[:0])):
        length = part.stop - part.start
        output = run(
            net,
            *(x[:, part] for x in (tokens, positions, ids, image_ids)),
            shown,
            timesteps[: len(shown)],
            torch.arange(length),
            cache.first(1, part.stop),
        )
        logits.append(output.logits)
        if len(shown):
            torch.testing.assert_close(output.image_prediction, full.image_prediction, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat(logits), full.logits, atol=1e-5, rtol=1e-5)


def test_rows_and_columns_meet_the_positions_of_text():
    """BOI is row and column 0 of the image, and EOI the row and the column after the last ones."""
    h, w = 3, 5
    image_ids = torch.full((1, 20), -1)
    image_ids[0, 3:18] = 0  # BOI is position 2, EOI is position 18
    positions = torch.arange(20)[None]
    patches = rows_and_columns(positions[image_ids >= 0][None], (h, w)).view(h, w, 2)
    grid = torch.meshgrid(torch.arange(h + 2.0), torch.arange(w + 2.0), indexing="ij")
    expected = torch.stack([2 + grid[0] * 16 / (h + 1), 2 + grid[1] * 16 / (w + 1)], dim=-1)
    torch.testing.assert_close(patches, expected[1:-1, 1:-1])
    assert expected[0, 0].tolist() == [2, 2] and expected[-1, -1].tolist() == [18, 18]


def test_equal_coordinates_rotate_as_one_axis():
    positions = torch.tensor([[0, 3, 50]])
    one, two = (rotary_angles(positions[..., None].expand(1, 3, n), 8, 100.0) for n in (1, 2))
    torch.testing.assert_close(one, two)


def test_each_axis_turns_its_own_half_of_the_frequencies():
    coordinates = torch.tensor([[[2.0, 7.0], [2.0, 9.0], [5.0, 7.0]]])
    cos, _ = rotary_angles(coordinates, 16, 100.0)  # (1, 1, 3, 8)
    same_row, same_column = (cos[0, 0, 0] == cos[0, 0, 1]), (cos[0, 0, 0] == cos[0, 0, 2])
    assert same_row.tolist() == [True, False] * 4
    assert same_column.tolist() == [False, True] * 4


def test_dropout_is_for_training_only_and_scales():
    net = new_net(replace(SMALL, dropout=0.5))
    tokens = torch.randint(VOCAB, (1, 6))
    assert torch.equal(text_logits(net, tokens), text_logits(net, tokens))
    net.train()
    assert not torch.equal(text_logits(net, tokens), text_logits(net, tokens))
    block = Block(replace(SMALL, dropout=0.25)).train()
    dropped = block._drop(torch.ones(10_000))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_tied_embeddings_are_one_parameter():
    net, untied = new_net(replace(SMALL, tie_embeddings=True)), new_net(SMALL)
    assert net.head.weight is net.embedding.weight
    assert len(list(untied.parameters())) - len(list(net.parameters())) == 1


@pytest.mark.parametrize(
    ("changes", "key", "fix"),
    [
        ({"n_heads": 5}, "dim 32", "10"),
        ({"n_kv_heads": 3}, "n_kv_heads 3", "divisor"),
        ({"n_kv_heads": 0}, "n_kv_heads 0", "divisor"),
        ({"dropout": 1.0}, "dropout 1.0", r"\[0, 1\)"),
    ],
)
def test_impossible_values_are_errors(changes, key, fix):
    with pytest.raises(ValueError, match=f"model.size.*{key}.*{fix}"):
        replace(SMALL, **changes)


@torch.no_grad()
def test_every_variant_works_with_the_unet_patcher():
    config = replace(SMALL, modality_weights="all", rope="2d", norm_order="post", qk_norm=True, tie_embeddings=True)
    net = new_net(config, UNetPatcher(3, 32, 2, channels=32))
    output = run(net, *mixed_inputs())
    assert output.image_prediction.shape == (2, 3, 4, 4)
    assert output.image_prediction.isfinite().all()
