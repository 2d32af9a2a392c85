"""Tokens, operations and time of a run."""

from typing import NamedTuple

import torch

from lit_transfusion.commands.plan.rows import Row, rows_of
from lit_transfusion.commands.plan.setup import Setup
from lit_transfusion.model import Transfusion
from lit_transfusion.model.flops import Flops

DAY = 86_400  # seconds


class Compute(NamedTuple):
    """Positions and operations of a run, over all devices. Rows have no padding (see `rows.py`).

    Operations are those that the net needs at least, as in `model/flops.py`: recomputed activations are not among them.
    """

    tokens: int  # per optimiser step
    flops: float  # per optimiser step
    steps: int
    parameters: int

    @property
    def total_tokens(self) -> int:
        return self.tokens * self.steps

    @property
    def total_flops(self) -> float:
        return self.flops * self.steps

    @property
    def six_n_d(self) -> float:
        """6 N D with all parameters, as in the paper."""
        return 6.0 * self.parameters * self.total_tokens

    def days(self, devices: int, peak_tflops: float, mfu: float) -> float:
        """Days of training at a share `mfu` of the peak, without validation, checkpoints and stops."""
        return self.total_flops / (devices * peak_tflops * 1e12 * mfu) / DAY


def compute(setup: Setup, net: Transfusion, devices: int) -> Compute:
    """Count the positions and operations of a run on `devices` devices."""
    rows = setup.batch_size * setup.accumulated * devices
    flops = Flops.count(net)
    of_row = sum(row.share * flops_of(flops, setup, row) for row in rows_of(setup))
    parameters = sum(parameter.numel() for parameter in net.parameters())
    return Compute(rows * setup.sequence_length, rows * of_row, setup.max_steps, parameters)


def flops_of(flops: Flops, setup: Setup, row: Row) -> float:
    """Operations of a training step on one row."""
    lo, hi = setup.mask.intervals(row.document_ids, row.image_ids)
    lengths = torch.tensor([setup.sequence_length])
    targets = row.num_targets + row.num_codes
    return float(flops.of_batch(lo, hi, lengths, targets, [(row.num_images, setup.shape)]))
