"""Tests of the learning rate at every step, and of the parameters with weight decay (paper, 4.1)."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from lit_transfusion.errors import InputError
from lit_transfusion.model import Bidirectional, LinearPatcher, TransformerConfig, Transfusion, UNetPatcher
from lit_transfusion.training.optim import WarmupCosine, WarmupStableDecay, decay_groups, decay_start

PEAK, FLOOR = 3e-4, 1.5e-5  # the paper's


def make(warmup_steps, total_steps, lr=PEAK, floor=FLOOR):
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=lr)
    return optimizer, WarmupCosine(optimizer, warmup_steps, total_steps, floor)


def rates(optimizer, scheduler, steps):
    """Return the learning rate of each of the next steps."""
    taken = []
    for _ in range(steps):
        taken.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return taken


def closed_form(step, warmup_steps, total_steps):
    if step < warmup_steps:
        return PEAK * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return FLOOR + (PEAK - FLOOR) * (1 + math.cos(math.pi * progress)) / 2


@pytest.mark.parametrize(("warmup_steps", "total_steps"), [(10, 100), (1, 20), (2, 3), (5, 6), (100, 1000)])
def test_schedule_equals_its_closed_form(warmup_steps, total_steps):
    taken = rates(*make(warmup_steps, total_steps), total_steps + 1)
    expected = [closed_form(step, warmup_steps, total_steps) for step in range(total_steps + 1)]
    assert taken == pytest.approx(expected, rel=1e-6)


def test_first_step_peak_and_floor():
    taken = rates(*make(10, 100), 101)
    assert taken[0] == pytest.approx(PEAK / 10)  # not zero, so that the first step has an effect
    assert taken[9] == taken[10] == pytest.approx(PEAK) == max(taken)
    assert taken[100] == pytest.approx(FLOOR) == pytest.approx(min(taken))
    assert all(a < b for a, b in pairwise(taken[:10]))
    assert all(a > b for a, b in pairwise(taken[10:]))


def stable(total_steps, decay_share=0.2, warmup_steps=10, floor=FLOOR):
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=PEAK)
    return rates(
        optimizer, WarmupStableDecay(optimizer, warmup_steps, total_steps, decay_share, floor), total_steps + 5
    )


def test_stable_rate_warms_up_stays_and_decays_as_one_minus_the_square_root():
    taken = stable(100)
    assert taken[:10] == pytest.approx([PEAK * (step + 1) / 10 for step in range(10)])
    assert taken[10:81] == [PEAK] * 71
    decay = [FLOOR + (PEAK - FLOOR) * (1 - math.sqrt((step - 80) / 20)) for step in range(81, 100)]
    assert taken[81:100] == pytest.approx(decay)
    assert taken[100:] == [FLOOR] * 5


def test_stable_rate_does_not_depend_on_the_length_before_it_decays():
    short, long = stable(50), stable(400)
    assert short[: decay_start(50, 0.2) + 1] == long[: decay_start(50, 0.2) + 1]
    assert stable(60, decay_share=0)[:50] == long[:50]  # a run that only makes checkpoints to decay from


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_invalid_share_of_the_decay_is_an_error(share):
    with pytest.raises(InputError, match=rf"decay_share {share} .*\[0, 1\]"):
        stable(10, decay_share=share)


def test_defaults_are_those_of_the_paper():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=PEAK)
    taken = rates(optimizer, WarmupCosine(optimizer), 4001)
    assert taken[0] == pytest.approx(PEAK / 4000) and taken[3999] == pytest.approx(PEAK)
    assert taken[4000] == pytest.approx(closed_form(4000, 4000, 250_000))


def test_without_warm_up_the_schedule_starts_at_the_peak():
    taken = rates(*make(0, 50), 51)
    assert taken[0] == pytest.approx(PEAK)
    assert taken[50] == pytest.approx(FLOOR, rel=0.05)


@pytest.mark.parametrize("stop", [1, 3, 9, 10, 11, 12, 30, 59])
def test_schedule_resumes_bit_exactly(stop):
    whole = rates(*make(10, 60), 60)
    optimizer, scheduler = make(10, 60)
    before = rates(optimizer, scheduler, stop)
    fresh_optimizer, fresh = make(10, 60)
    fresh_optimizer.load_state_dict(optimizer.state_dict())
    fresh.load_state_dict(scheduler.state_dict())
    assert before + rates(fresh_optimizer, fresh, 60 - stop) == whole


# Groups

SIZE = TransformerConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32)
PATCHERS = {
    "linear": lambda: LinearPatcher(3, 16, 2),
    "linear with positions": lambda: LinearPatcher(3, 16, 2, positions=4),
    "unet": lambda: UNetPatcher(3, 16, 2, channels=8, head_dim=4),
}


@pytest.mark.parametrize("patcher", PATCHERS)
def test_only_matrices_decay(patcher):
    net = Transfusion(40, SIZE, PATCHERS[patcher](), Bidirectional())
    name_of = {id(p): name for name, p in net.named_parameters()}
    optimizer = torch.optim.AdamW(decay_groups(net), weight_decay=0.1)
    decay, rest = ({name_of[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(name_of)  # each parameter exactly once
    assert decay | rest == set(name_of.values()) and not decay & rest

    owner = {f"{path}.{leaf}": m for path, m in net.named_modules() for leaf, _ in m.named_parameters(recurse=False)}
    for name in decay:
        assert name.endswith("weight") and not isinstance(owner[name], nn.Embedding)
        assert "norm" not in name and "embedding.weight" not in name and "positions" not in name
    for name in rest:
        module = owner[name]
        assert name.endswith("bias") or isinstance(module, nn.Embedding) or "Norm" in type(module).__name__, name
    assert "head.weight" in decay and "embedding.weight" in rest and "transformer.norm.weight" in rest


def test_frozen_parameters_are_in_no_group():
    net = Transfusion(40, SIZE, LinearPatcher(3, 16, 2), Bidirectional())
    net.patcher.requires_grad_(False)
    frozen = {id(p) for p in net.patcher.parameters()}
    assert not any(id(p) in frozen for group in decay_groups(net) for p in group["params"])
