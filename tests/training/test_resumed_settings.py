"""Tests that a resumed run has the settings of its config, and bit-equal rates if they have not changed."""

import logging
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from lit_transfusion.errors import InputError
from lit_transfusion.training.optim import WarmupCosine, WarmupStableDecay
from lit_transfusion.training.resumed_settings import ResumedSettings

STEPS, STOP = 20, 8


def one_after_the_other(optimizer, warmup=4, length=12):
    parts = [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=warmup)]
    parts.append(lr_scheduler.CosineAnnealingLR(optimizer, T_max=length))
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[warmup])


SCHEDULES = {  # name → first schedule, schedule after resume, log line
    "WarmupCosine": (
        partial(WarmupCosine, warmup_steps=3, total_steps=12),
        partial(WarmupCosine, warmup_steps=3, total_steps=STEPS),
        "total_steps: 20 (12 in the checkpoint)",
    ),
    "WarmupStableDecay": (  # one run with a constant rate, from which others decay
        partial(WarmupStableDecay, warmup_steps=3, total_steps=STEPS, decay_share=0.0),
        partial(WarmupStableDecay, warmup_steps=3, total_steps=STEPS, decay_share=0.5),
        "decay_share: 0.5 (0.0 in the checkpoint)",
    ),
    "CosineAnnealingLR": (
        partial(lr_scheduler.CosineAnnealingLR, T_max=12),
        partial(lr_scheduler.CosineAnnealingLR, T_max=STEPS),
        "T_max: 20 (12 in the checkpoint)",
    ),
    "StepLR": (
        partial(lr_scheduler.StepLR, step_size=3, gamma=0.5),
        partial(lr_scheduler.StepLR, step_size=3, gamma=0.7),
        "gamma: 0.7 (0.5 in the checkpoint)",
    ),
    "SequentialLR": (
        one_after_the_other,
        partial(one_after_the_other, length=STEPS),
        "_schedulers[1].T_max: 20 (12 in the checkpoint)",
    ),
    "LambdaLR": (
        partial(lr_scheduler.LambdaLR, lr_lambda=lambda step: 0.9**step),
        partial(lr_scheduler.LambdaLR, lr_lambda=lambda step: 0.8**step),
        "",  # functions cannot be compared
    ),
}


def make(schedule, **options):
    weights = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    groups = [{"params": weights[:1]}, {"params": weights[1:], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, **{"lr": 1e-2, "weight_decay": 0.1} | options)
    return optimizer, schedule(optimizer)


def rates(optimizer, schedule, steps):
    taken = []
    for _ in range(steps):
        taken.append([group["lr"] for group in optimizer.param_groups])
        for group in optimizer.param_groups:
            group["params"][0].grad = torch.ones(2)
        optimizer.step()
        schedule.step()
    return taken


def resumed(before, schedule, max_steps=12, **options):
    """Do what Lightning does on resume, with the callback that the module adds."""
    optimizer, schedule = make(schedule, **options)
    configs = [SimpleNamespace(scheduler=schedule)]
    trainer = SimpleNamespace(
        optimizers=[optimizer], lr_scheduler_configs=configs, global_step=STOP, max_steps=max_steps
    )
    callback, checkpoint = ResumedSettings(), {"lr_schedulers": [before[1].state_dict()]}
    callback.on_load_checkpoint(trainer, None, checkpoint)
    assert checkpoint["lr_schedulers"] == []
    callback.on_fit_start(trainer, None)
    optimizer.load_state_dict(before[0].state_dict())
    callback.on_train_start(trainer, None)
    return optimizer, schedule


@pytest.mark.parametrize("name", SCHEDULES)
def test_same_settings_give_the_same_rates_and_no_log(name, caplog):
    caplog.set_level(logging.INFO, "lit_transfusion")
    schedule = SCHEDULES[name][0]
    whole = rates(*make(schedule), STEPS)
    before = make(schedule)
    first = rates(*before, STOP)
    after = resumed(before, schedule)
    assert after[1].state_dict() == before[1].state_dict()
    for now, then in zip(after[0].state.values(), before[0].state.values(), strict=True):
        assert now["step"] == STOP and torch.equal(now["exp_avg"], then["exp_avg"])
    assert first + rates(*after, STEPS - STOP) == whole
    assert not caplog.messages


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_equal_those_of_a_run_with_the_new_schedule_from_the_start(name, caplog):
    caplog.set_level(logging.INFO, "lit_transfusion")
    old, new, line = SCHEDULES[name]
    before = make(old)
    rates(*before, STOP)
    after = resumed(before, new, lr=5e-3)
    assert rates(*after, STEPS - STOP) == rates(*make(new, lr=5e-3), STEPS)[STOP:]
    assert "resumed with model.optimizer lr: 0.005 (0.01 in the checkpoint)" in caplog.messages
    assert (f"resumed with model.scheduler {line}" in caplog.messages) == bool(line)
    assert len(caplog.messages) == 1 + bool(line)


def test_optimizer_has_the_new_arguments_and_each_change_is_logged_once(caplog):
    caplog.set_level(logging.INFO, "lit_transfusion")
    schedule = SCHEDULES["WarmupCosine"][0]
    before = make(schedule)
    rates(*before, STOP)
    optimizer, _ = resumed(before, schedule, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-6)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert [group["betas"] for group in optimizer.param_groups] == [(0.8, 0.9)] * 2
    names = [message.removeprefix("resumed with model.optimizer ").split(":")[0] for message in caplog.messages]
    assert names == ["betas", "eps", "weight_decay"]


def test_error_for_another_class_of_optimizer_names_both_fixes():
    schedule = SCHEDULES["WarmupCosine"][0]
    before = make(schedule)
    rates(*before, STOP)
    other = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(2))]} for _ in range(2)], lr=1e-2)
    schedule(other)
    ResumedSettings().on_fit_start(SimpleNamespace(optimizers=[other]), None)
    with pytest.raises(InputError, match=r"model\.optimizer SGD .*betas.*earlier class.*--model\.init_from"):
        other.load_state_dict(before[0].state_dict())


def test_error_for_other_groups_names_the_settings_that_make_them():
    schedule = SCHEDULES["WarmupCosine"][0]
    before = make(schedule)
    rates(*before, STOP)
    other = torch.optim.AdamW([nn.Parameter(torch.ones(2)) for _ in range(2)], lr=1e-2)  # one group of both
    ResumedSettings().on_fit_start(SimpleNamespace(optimizers=[other]), None)
    with pytest.raises(InputError, match=r"other groups .*model\.text_rate and model\.base_dim.*--model\.init_from"):
        other.load_state_dict(before[0].state_dict())


def test_schedule_that_ends_before_the_run_is_logged(caplog):
    """A config.yaml of version 0.1 causes this, because it contains the length as a number."""
    caplog.set_level(logging.INFO, "lit_transfusion")
    schedule = SCHEDULES["WarmupCosine"][0]
    before = make(schedule)
    rates(*before, STOP)
    resumed(before, schedule, max_steps=STEPS)
    (message,) = caplog.messages
    assert "model.scheduler" in message and "total_steps 12" in message and "trainer.max_steps 20" in message
