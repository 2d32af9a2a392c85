"""SIGINT (Ctrl-C) and SIGTERM: all processes of a run stop after the same optimiser step, with a checkpoint."""

import contextlib
import signal
import sys
import threading
import time
from functools import partial
from typing import Any

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_transfusion.lightning_compat import (
    cluster_environment,
    kill_started_processes,
    model_checkpoints,
    replace_signal_handlers,
)

SAME_SECONDS = 1.0  # `timeout`, `make` and others send one Ctrl-C twice


class GracefulStop(lightning.Callback):
    """Stops all processes of a run together, after SIGINT or SIGTERM to any of them.

    A process only records the first signal. At the end of each optimiser step, and of each batch of a validation, the
    processes exchange the recorded signals. If there is one, all write a checkpoint and stop.

    A second SIGINT, at least one second later, stops a process immediately and without a checkpoint. If nothing can be
    lost (before and after training, in `validate`, `test` and `predict`), the first signal stops immediately. In a
    `fit` of several processes, signals are also recorded before training starts. The requeue signal of SLURM is
    recorded, too, and Lightning handles it at the end of the step.

    The exit status is 143 after SIGTERM, and 1 after SIGINT (that of Lightning).
    """

    def __init__(self) -> None:
        self.recorded: set[int] = set()  # signals
        self.first = 0.0  # time of the first signal
        self.waits = False  # whether a signal is recorded; otherwise it stops immediately
        self.agreed = False
        self.step = 0
        self.group: dist.ProcessGroup | None = None  # gloo on the CPU, so that a GPU is not synchronised
        self.callbacks: list[ModelCheckpoint] = []  # those that save a checkpoint after the processes agreed
        self.requeue: tuple[int, Any] | None = None  # SLURM's signal, and Lightning's handler of it

    def setup(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        replace_signal_handlers(trainer, partial(self._register, trainer))
        if trainer.world_size > 1:
            # All processes take part in a checkpoint. One that fails alone would wait for the others forever.
            self.callbacks += [callback for callback in model_checkpoints(trainer) if callback.save_on_exception]
            save_on_exception(self.callbacks, False)

    def _register(self, trainer: lightning.Trainer) -> None:
        fitting, several = trainer.state.fn == TrainerFn.FITTING, trainer.world_size > 1
        self.recorded, self.agreed, self.waits = set(), False, fitting and several
        self.group = dist.new_group(backend="gloo") if self.waits else None
        if threading.current_thread() is not threading.main_thread():  # only the main thread can have handlers
            return
        signal.signal(signal.SIGTERM, partial(self._record, trainer))
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # ignored in background jobs of a shell script
            signal.signal(signal.SIGINT, partial(self._record, trainer))
        environment = cluster_environment(trainer)
        if fitting and isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self.requeue = environment.requeue_signal, signal.getsignal(environment.requeue_signal)
            signal.signal(environment.requeue_signal, partial(self._record, trainer))

    def _record(self, trainer: lightning.Trainer, number: int, frame: Any) -> None:
        if self.requeue is not None and number == self.requeue[0]:
            self.recorded.add(number)
            if not self.waits:
                self._requeue()
            return
        stops = self.recorded & {signal.SIGINT, signal.SIGTERM}
        if stops:
            if number == signal.SIGINT and time.monotonic() - self.first >= SAME_SECONDS:
                save_on_exception(model_checkpoints(trainer), False)
                raise KeyboardInterrupt
            self.recorded.add(number)
            return
        self.recorded.add(number)
        self.first = time.monotonic()
        if not self.waits:
            raise reason(self.recorded)
        if trainer.is_global_zero:
            again = "; Ctrl-C again stops without a checkpoint" if number == signal.SIGINT else ""
            with contextlib.suppress(RuntimeError):  # the signal interrupted another print
                print(f"\nStopping after this step{again}.", file=sys.stderr, flush=True)

    def _requeue(self) -> None:
        number, handler = self.requeue
        self.recorded.discard(number)
        handler(number, None)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.step = trainer.global_step
        self._agree(trainer)
        self.waits = True

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self.step:  # gradients are still accumulated
            return
        self.step = trainer.global_step
        if trainer.global_step == trainer.max_steps:  # nothing is left to stop
            self.waits = self.group is not None
        else:
            self._agree(trainer)

    def on_validation_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.state.fn == TrainerFn.FITTING and trainer.global_step != trainer.max_steps:
            self._agree(trainer)

    def _agree(self, trainer: lightning.Trainer) -> None:
        """Act on the signals that any process has recorded. Signals during this call are handled in the next one."""
        agreed = set(self.recorded)
        if self.group is not None:
            signals = [signal.SIGINT, signal.SIGTERM, *([self.requeue[0]] if self.requeue else [])]
            flags = torch.tensor([int(number in agreed) for number in signals])
            dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.group)
            agreed = {number for number, flag in zip(signals, flags.tolist(), strict=True) if flag}
        if self.requeue is not None and self.requeue[0] in agreed:
            agreed.discard(self.requeue[0])
            self._requeue()
        if not agreed:
            return
        self.agreed = True
        save_on_exception(self.callbacks, True)
        if trainer.local_rank and isinstance(cluster_environment(trainer), LightningEnvironment):
            raise SystemExit(0)  # on another status, the process that started this one would kill itself
        raise reason(agreed)

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Kill the processes that this one has started, which would wait for it. (After SIGINT, Lightning does it.)"""
        if not self.agreed:
            kill_started_processes(trainer, getattr(signal, "SIGKILL", signal.SIGTERM))


def save_on_exception(callbacks: list[ModelCheckpoint], value: bool) -> None:
    for callback in callbacks:
        callback.save_on_exception = value


def reason(signals: set[int]) -> BaseException:
    """Return the exception that stops a run after these signals."""
    return SIGTERMException(143) if signal.SIGTERM in signals else KeyboardInterrupt()
