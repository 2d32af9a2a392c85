"""μP: initial weights and learning rates by width, and that what a step changes does not depend on the width."""

import math

import pytest
import torch

from lit_transfusion.errors import InputError
from lit_transfusion.model import Bidirectional, LinearPatcher, NoisyImages, TransformerConfig, Transfusion, UNetPatcher
from lit_transfusion.training.optim import WarmupCosine, decay_groups, scale_rates
from lit_transfusion.training.width_transfer import transfer_width

PATCHERS = {
    "linear": lambda dim: LinearPatcher(3, dim, 2, positions=4),
    "unet": lambda dim: UNetPatcher(3, dim, 2, channels=8, head_dim=4),
}


def make(dim, patcher="linear", **options):
    torch.manual_seed(0)
    size = TransformerConfig(dim=dim, n_layers=2, n_heads=dim // 16, multiple_of=16, **options)
    return Transfusion(40, size, PATCHERS[patcher](dim), Bidirectional())


def spread(weight):
    return weight.detach().std().item()


def test_kinds_of_parameters():
    """Each row of the table: the standard deviation at 4 times the width against the one of the base, and the rate."""
    base, net = make(64), make(256)
    scales = transfer_width(net, 64)
    before, after = dict(base.named_parameters()), dict(net.named_parameters())
    expected = {
        "transformer.blocks.0.attention.qkv.weight": (0.5, 0.25),  # hidden
        "transformer.blocks.1.attention.out.weight": (0.5, 0.25),
        "transformer.blocks.1.feed_forward.gate_up.weight": (0.5, 0.25),
        "time_embedding.mlp.2.weight": (0.5, 0.25),
        "head.weight": (0.25, 0.25),  # output
        "patcher.proj_out.weight": (0.25, 0.25),
        "embedding.weight": (1, 1),  # input
        "patcher.row_positions.weight": (1, 1),
        "patcher.proj_in.weight": (1, 1),
        "time_embedding.mlp.0.weight": (1, 1),
    }
    for name, (deviation, rate) in expected.items():
        assert spread(after[name]) / spread(before[name]) == pytest.approx(deviation, rel=0.1), name
        assert scales.get(name, 1) == rate, name
    down = [f"transformer.blocks.{i}.feed_forward.down.weight" for i in (0, 1)]
    assert {scales.pop(name) for name in down} == {before[down[0]].shape[1] / after[down[0]].shape[1]}  # rounded widths
    assert set(scales.values()) == {0.25} and all(after[name].ndim == 2 for name in scales)


@pytest.mark.parametrize("patcher", PATCHERS)
@pytest.mark.parametrize("options", [{}, {"modality_weights": "all", "qk_norm": True}, {"n_kv_heads": 2}])
def test_nothing_changes_at_the_base_width(patcher, options):
    net, untouched = make(64, patcher, **options), make(64, patcher, **options)
    assert transfer_width(net, 64) == {}
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), untouched.parameters(), strict=True))


def test_rates_and_weight_decay_of_the_optimizer():
    net = make(128)
    scales = transfer_width(net, 64)
    optimizer = torch.optim.AdamW(decay_groups(net, scales), lr=8e-3, weight_decay=0.1)
    scale_rates(optimizer, keep_decay=True)
    schedule = WarmupCosine(optimizer, warmup_steps=2, total_steps=10, final_lr=2e-3)
    name_of = {id(p): name for name, p in net.named_parameters()}
    seen = {name_of[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert len(seen) == len(name_of)
    for end, rate in ((2, 8e-3), (10, 2e-3)):  # the peak, and the final rate
        while schedule.last_epoch < end:
            optimizer.step()
            schedule.step()
        for name, group in seen.items():
            assert group["lr"] == pytest.approx(rate * scales.get(name, 1)), name
    for name in scales:
        assert seen[name]["weight_decay"] * scales[name] == pytest.approx(0.1)
    assert seen["embedding.weight"]["weight_decay"] == 0 and seen["patcher.proj_in.weight"]["weight_decay"] == 0.1


def changes(dim, base_dim, steps=4):
    """How much a few steps change what the net computes: root mean square of states, logits and image predictions."""
    net = make(dim)
    scales = {} if base_dim is None else transfer_width(net, base_dim)
    optimizer = torch.optim.AdamW(decay_groups(net, scales), lr=1e-2)
    scale_rates(optimizer, keep_decay=True)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 40, (8, 24), generator=generator)
    positions = torch.arange(24).expand(8, 24)
    documents, image_ids = torch.zeros(8, 24, dtype=torch.long), torch.full((8, 24), -1)
    image_ids[:, 8:12] = 0
    at = (torch.arange(8)[:, None] * 24 + torch.arange(8, 12)).long()
    images = torch.randn(8, 3, 4, 4, generator=generator)
    inputs = NoisyImages(images, torch.arange(8) * 100, at)
    text = (torch.arange(8)[:, None] * 24 + torch.arange(13, 23)).flatten()

    def run():
        return net(tokens, positions, documents, image_ids, [inputs], text, state_layer=2)

    with torch.no_grad():
        before = run()
    for _ in range(steps):
        output = run()
        targets = tokens.flatten()[text + 1]
        loss = torch.nn.functional.cross_entropy(output.logits, targets)
        loss = loss + (output.image_predictions[0] - images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        after = run()
    pairs = {
        "logits": (before.logits, after.logits),
        "images": (before.image_predictions[0], after.image_predictions[0]),
        "states": (before.patch_states[0], after.patch_states[0]),
    }
    return {name: (b - a).square().mean().sqrt().item() for name, (a, b) in pairs.items()}


def growth(base_dim):
    """The exponents of the width in the changes, from width 64 to 512."""
    narrow, wide = changes(64, base_dim), changes(512, base_dim)
    return {name: math.log(wide[name] / narrow[name]) / math.log(512 / 64) for name in narrow}


def test_steps_change_the_net_equally_at_each_width():
    """The coordinate check of the paper (its Figure 5), and that it fails without μP."""
    with_mup, without = growth(64), growth(None)
    for name, exponent in with_mup.items():
        assert abs(exponent) < 0.15, (name, with_mup)
    assert without["logits"] > 0.3 and without["images"] > 0.3, without


@pytest.mark.parametrize(
    ("base_dim", "options", "message"),
    [
        (40, {}, r"model.base_dim 40 .*n_heads 4 would be 2.5; .*multiple of 16"),
        (32, {"n_kv_heads": 1}, r"n_kv_heads 1 would be 0.5"),
        (0, {}, r"model.base_dim 0"),
        (-64, {}, r"model.base_dim -64"),
        (32, {"tie_embeddings": True}, r"model.base_dim .*tie_embeddings"),
    ],
)
def test_invalid_base_is_an_error(base_dim, options, message):
    with pytest.raises(InputError, match=message):
        transfer_width(make(64, **options), base_dim)


def test_optimizer_of_the_module_has_the_rates(make_module):
    """`model.base_dim` reaches the optimizer, and the average starts from the scaled weights."""
    module = make_module(dim=32, base_dim=16, lr=1e-2)
    optimizer = module.configure_optimizers()["optimizer"]
    rate_of = {id(p): group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rate_of[id(module.net.head.weight)] == pytest.approx(5e-3)
    assert rate_of[id(module.net.embedding.weight)] == pytest.approx(1e-2)
    assert torch.equal(module.ema.head.weight, module.net.head.weight)
