"""The confidence level of all intervals of studies, and the type of an interval."""

from typing import NamedTuple

SIGNIFICANCE = 0.05  # a finding is resolved if its p value is below this
LEVEL = 1 - SIGNIFICANCE  # confidence level of intervals


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float
