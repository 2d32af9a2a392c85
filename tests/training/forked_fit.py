"""Runs `fit` in processes that are forked from one that has imported everything, so that each starts seconds faster."""

import contextlib
import multiprocessing
import os
import random
import socket
import time
from pathlib import Path

import torch

from lit_transfusion.cli import main


class ForkedFit:
    """A `fit` of one or several ranks, in a process group of their own, with the methods of `subprocess.Popen`.

    Several ranks find each other as those that `torchrun` starts, so Lightning does not start the others itself.

    Args:
        arguments: The words after `fit`.
        folder: The working directory. The file `errors` in it has what the ranks write to standard error.
        ranks: Number of processes.
    """

    def __init__(self, arguments: list[str], folder: Path, ranks: int = 1) -> None:
        context = multiprocessing.get_context("forkserver")
        # Python 3.11 ignores modules that are not found without the paths that pytest adds, such as this one.
        context.set_forkserver_preload(["lit_transfusion.config.lightning"])
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        (folder / "errors").write_text("")
        self.processes = []
        self.pid = 0
        for rank in range(ranks):
            environment = meeting | ({"LOCAL_RANK": str(rank)} if ranks > 1 else {})
            process = context.Process(target=run, args=(arguments, folder, environment, self.pid))
            process.start()
            self.pid = self.pid or process.pid
            while process.is_alive() and os.getpgid(process.pid) != self.pid:  # the group, which tests signal
                time.sleep(0.01)
            self.processes.append(process)

    def poll(self) -> int | None:
        """The exit status of the first rank; None while it runs."""
        return self.processes[0].exitcode

    def wait(self, timeout: float) -> int | None:
        """Wait for all ranks, and return the exit status of the first one that is not 0, or 0."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(deadline - time.monotonic(), 0))
        statuses = [process.exitcode for process in self.processes]
        return None if None in statuses else next(filter(None, statuses), 0)


def free_port() -> int:
    """A free port that the system gives to no other connection by itself, as it does with ports from 32768 on."""
    while True:
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("", port := random.SystemRandom().randrange(20_000, 32_000)))
            return port


def run(arguments: list[str], folder: Path, environment: dict[str, str], group: int) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of data workers: it is now that of this process
    os.setpgid(0, group)
    os.environ.update(environment)
    os.chdir(folder)
    with open("errors", "a") as errors:
        os.dup2(errors.fileno(), 2)
    torch.set_num_threads(1)
    main(["fit", *arguments])
