"""Callbacks that a config can add, by their short class names."""

from lit_transfusion.training.callbacks.predictions import WritePredictions
from lit_transfusion.training.callbacks.progress import RunProgress
from lit_transfusion.training.callbacks.run_directory import RunDirectory
from lit_transfusion.training.callbacks.show import Show, ShowEdits, ShowSamples
from lit_transfusion.training.callbacks.threads import LimitThreads
from lit_transfusion.training.callbacks.throughput import Throughput

__all__ = [
    "LimitThreads",
    "RunDirectory",
    "RunProgress",
    "Show",
    "ShowEdits",
    "ShowSamples",
    "Throughput",
    "WritePredictions",
]
