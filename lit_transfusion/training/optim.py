"""Parameter groups of the optimiser, and the learning-rate schedules."""

import math
from collections.abc import Collection, Mapping
from types import MappingProxyType

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from lit_transfusion.errors import InputError


class _Warmup(LRScheduler):
    """Linear warm-up to the peak; a subclass has the rate after it, by the step. It sets `warmup_steps`."""

    warmup_steps: int

    def get_lr(self) -> list[float]:
        scales = [group.get("rate_scale", 1.0) for group in self.optimizer.param_groups]
        pairs = zip(self.base_lrs, scales, strict=True)
        return [scale * self.rate(peak / scale, self.last_epoch) for peak, scale in pairs]

    def rate(self, peak: float, step: int) -> float:
        return peak * (step + 1) / self.warmup_steps if step < self.warmup_steps else self.after_warmup(peak, step)

    def after_warmup(self, peak: float, step: int) -> float:
        raise NotImplementedError


class WarmupCosine(_Warmup):
    """Linear warm-up, then a cosine to a final rate, which stays constant (paper, 4.1).

    The rate depends on the step and these arguments only.

    Args:
        optimizer: Optimiser whose learning rate is the peak.
        warmup_steps: Steps until the peak; the rate of the first step is 1 / warmup_steps of it.
        total_steps: Step at which the final rate is reached; in the configs it is `trainer.max_steps`.
        final_lr: The final rate.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        warmup_steps: int = 4000,
        total_steps: int = 250_000,
        final_lr: float = 1.5e-5,
    ) -> None:
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.final_lr = final_lr
        super().__init__(optimizer)

    def after_warmup(self, peak: float, step: int) -> float:
        done = min((step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1), 1)
        cosine = (1 + math.cos(math.pi * done)) / 2
        return self.final_lr + (peak - self.final_lr) * cosine


class WarmupStableDecay(_Warmup):
    """Linear warm-up, then a constant rate, then a decay as 1 - sqrt to a final rate (Hägele et al., 2024).

    The rate before the decay does not depend on the total number of steps. So one run with a constant rate can be
    decayed from several of its checkpoints, as if each decay belonged to a run of its own length.

    Args:
        optimizer: Optimiser whose learning rate is the peak.
        warmup_steps: Steps until the peak; the rate of the first step is 1 / warmup_steps of it.
        total_steps: Step at which the final rate is reached; in the configs it is `trainer.max_steps`.
        decay_share: Share of the steps in which the rate decays, in [0, 1]; 0 keeps it constant.
        final_lr: The final rate.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        warmup_steps: int = 4000,
        total_steps: int = 250_000,
        decay_share: float = 0.2,
        final_lr: float = 0.0,
    ) -> None:
        if not 0 <= decay_share <= 1:
            raise InputError(f"WarmupStableDecay.decay_share {decay_share} is invalid; use a number in [0, 1]")
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.decay_share = decay_share
        self.final_lr = final_lr
        super().__init__(optimizer)

    def after_warmup(self, peak: float, step: int) -> float:
        begins = decay_start(self.total_steps, self.decay_share)
        if step < begins or begins == self.total_steps:
            return peak
        left = 1 - math.sqrt(min((step - begins) / (self.total_steps - begins), 1))
        return self.final_lr + (peak - self.final_lr) * left


def decay_start(total_steps: int, decay_share: float) -> int:
    """The first step at which the rate of `WarmupStableDecay` decays."""
    return total_steps - round(decay_share * total_steps)


def decay_groups(
    net: nn.Module, rate_scales: Mapping[str, float] = MappingProxyType({}), undecayed: Collection[str] = ()
) -> list[dict]:
    """Return the parameter groups: matrices, with weight decay, and the rest (norms, biases, embeddings), without.

    Args:
        net: Module with the parameters.
        rate_scales: Factors of the learning rate by the names of the parameters. Each factor makes a group of its own.
        undecayed: Names of matrices without weight decay.
    """
    embeddings = {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding)}
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {(True, 1.0): [], (False, 1.0): []}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and id(parameter) not in embeddings and name not in undecayed
            groups.setdefault((decays, rate_scales.get(name, 1.0)), []).append(parameter)
    return [
        {"params": parameters}
        | ({} if decays else {"weight_decay": 0.0})
        | ({} if scale == 1 else {"rate_scale": scale})
        for (decays, scale), parameters in groups.items()
    ]


def scale_rates(optimizer: torch.optim.Optimizer, keep_decay: bool) -> None:
    """Multiply the learning rate of each group by its `rate_scale`.

    Args:
        optimizer: The optimizer.
        keep_decay: Divide the weight decay by it. The decay of a step is their product, and so stays the same (Wang &
            Aitchison, 2024, arXiv 2405.13698).
    """
    for group in optimizer.param_groups:
        scale = group.get("rate_scale", 1.0)
        group["lr"] *= scale
        if keep_decay and "weight_decay" in group:
            group["weight_decay"] /= scale
