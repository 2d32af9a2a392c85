"""Trains and evaluates arms x seeds, several at once, and takes up what an earlier start left unfinished."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import torch
import yaml

from lit_transfusion.allowed_imports import OPTION, foreign_modules
from lit_transfusion.errors import InputError
from lit_transfusion.file_lock import locked
from lit_transfusion.progress import Progress
from lit_transfusion.run_folder import CHECKPOINTS, CONFIG, FINISHED, last_checkpoint, read_json
from lit_transfusion.studies.plan import ArmPlan, fit_arguments
from lit_transfusion.studies.study import Study


class Job(NamedTuple):
    """One run: an arm at a seed, from nothing to its evaluation. All of it is in `folder`."""

    arm: str
    seed: int
    folder: Path
    fit: list[str]  # arguments
    planned: str  # YAML of what it trains
    evaluate: str  # YAML of what it measures
    max_steps: int

    @property
    def name(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    @property
    def trained(self) -> bool:
        return read_json(self.folder / FINISHED).get("step") == self.max_steps

    @property
    def evaluated(self) -> bool:
        asked = self.folder / "evaluate.yaml"
        same = asked.is_file() and asked.read_text(encoding="utf-8") == self.evaluate
        return self.trained and same and (self.folder / "evaluation.json").is_file()

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"


class Outcome(NamedTuple):
    job: Job
    error: str | None  # None: it is trained and evaluated


def make_jobs(study: Study, plans: Sequence[ArmPlan], overrides: list[str], seeds: int, folder: Path) -> list[Job]:
    """Seed by seed, so that a study that is stopped early has all arms at some seeds.

    Raises:
        InputError: A run in the folder was trained as something else than is asked now.
    """
    jobs = []
    for seed in range(seeds):
        for one in plans:
            where = folder / one.arm / f"seed_{seed}"
            fit = fit_arguments(study, one.arm, overrides, seed, where)
            jobs.append(Job(one.arm, seed, where, fit, one.config, study.evaluate_options(), one.max_steps))
    for job in jobs:
        check_earlier(job)
    return jobs


def check_earlier(job: Job) -> None:
    path = job.folder / "planned.yaml"
    if not path.is_file():
        return
    earlier, now = path.read_text(encoding="utf-8").splitlines(), job.planned.splitlines()
    if earlier != now:
        differing = next(((a, b) for a, b in zip(earlier, now, strict=False) if a != b), ("", "more or fewer lines"))
        raise InputError(
            f"{job.folder} was trained as something else ({differing[0].strip()!r}, now {differing[1].strip()!r}): "
            "give another --output, or move it away"
        )


def run_job(
    job: Job,
    threads: int,
    started: Callable[[subprocess.Popen], None] = lambda _: None,
    gpus: str | None = None,
    waiting: Callable[[], None] = lambda: None,
) -> str | None:
    """Train and evaluate, as far as that is not done yet, each by its own command; returns what went wrong, if
    anything. Another process that is at the same run is waited for.

    Args:
        job: The run.
        threads: Of the CPU; 0 for as many as torch likes.
        started: Told of each process.
        gpus: Those that it may see, as CUDA_VISIBLE_DEVICES; None for all.
        waiting: Called if there is another process to wait for.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    with locked(job.folder / "lock", waiting) as lock:  # the commands inherit it, and hold it if this process is killed
        (job.folder / "planned.yaml").write_text(job.planned, encoding="utf-8")
        if not job.trained:
            resume = ["--ckpt_path", "last"] if last_checkpoint(job.folder) else []
            if not resume:
                # Of a start that left no checkpoint: `fit` would move the folder aside, and our lock with it.
                (job.folder / CONFIG).unlink(missing_ok=True)
            if error := command(job, ["fit", *job.fit, *resume], threads, gpus, lock, started):
                return error
            if not job.trained:
                return f"fit ended before step {job.max_steps} (see {job.log})"
        if not job.evaluated:
            options = job.folder / "evaluate.yaml"
            options.unlink(missing_ok=True)
            asked = job.folder / "asked.yaml"
            asked.write_text(job.evaluate, encoding="utf-8")
            checkpoint = str(last_checkpoint(job.folder) or job.folder / CHECKPOINTS)
            words = ["evaluate", "--config", str(asked), "--ckpt", checkpoint, "--output", str(job.folder)]
            # What the study's own config names was passed by the user.
            words += [word for name in foreign_modules(yaml.safe_load(job.planned)) for word in (OPTION, name)]
            if error := command(job, words, threads, gpus, lock, started):
                return error
            asked.rename(options)  # only now: what it names has been measured
    return None


def command(
    job: Job, words: list[str], threads: int, gpus: str | None, lock: tuple[int, ...], started: Callable
) -> str | None:
    """Run one command with its output in the log; returns the last line of it if it failed."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}  # so that the last line of the log is what was said last
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpus
    with job.log.open("a", encoding="utf-8") as log:
        log.write(f"\n$ lit-transfusion {' '.join(words)}\n")
        log.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "lit_transfusion", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            pass_fds=lock,
            start_new_session=True,  # Ctrl-C reaches this process, which then asks the others to stop
        )
        started(process)
        status = process.wait()
    return None if status == 0 else last_line(job.log, status)


def last_line(log: Path, status: int) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"{lines[-1] if lines else ''} (exit status {status}; see {log})"


def gpu_shares(parallel: int, count: int, visible: str | None) -> list[str | None]:
    """What each of the runs at once may see of `count` GPUs, as CUDA_VISIBLE_DEVICES: an even share if there is one for
    each. `visible` is what that says now."""
    names = visible.split(",") if visible else [str(i) for i in range(count)]
    if parallel == 1 or count < parallel:
        return [None] * parallel
    return [",".join(names[i::parallel]) for i in range(parallel)]


def run_here(jobs: Sequence[Job], parallel: int, threads: int) -> list[Outcome]:
    """Run what is not finished, `parallel` at once, under one progress display.

    A run that fails does not stop the others. On Ctrl-C or SIGTERM, all that run are asked to stop, which write a
    checkpoint, and are waited for.
    """
    running: set[subprocess.Popen] = set()
    stopping = threading.Event()
    outcomes = [Outcome(job, None) for job in jobs if job.evaluated]
    finished = {outcome.job.folder for outcome in outcomes}
    progress = Progress()
    ended = list(finished)
    progress.add("runs", len(jobs), len(ended), count=lambda: len(ended))
    shares: SimpleQueue[str | None] = SimpleQueue()
    for share in gpu_shares(parallel, torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")):
        shares.put(share)

    def one(job: Job) -> Outcome:
        if stopping.is_set():
            return Outcome(job, "not begun")
        row = progress.add(job.name, job.max_steps, current_step(job.folder))

        def started(process: subprocess.Popen) -> None:
            running.add(process)
            if stopping.is_set():  # since it was decided to start it
                process.terminate()
            doing = f"{job.name}, {'evaluation' if job.trained else 'training'}"
            watch(process, lambda step: row.update(step, doing, job.max_steps), job)

        def waiting() -> None:
            row.update(0, f"{job.name}, waiting for another process", job.max_steps)

        share = shares.get()
        error = run_job(job, threads, started, share, waiting)
        shares.put(share)
        progress.remove(row)
        ended.append(job.folder)
        if error and not stopping.is_set():
            progress.say(f"failed: {job.name}: {error}")
        elif not error:
            progress.say(f"done: {job.name}")
        return Outcome(job, error)

    with progress, ThreadPoolExecutor(parallel) as pool:
        futures = [pool.submit(one, job) for job in jobs if job.folder not in finished]
        try:
            outcomes += [future.result() for future in futures]
        except BaseException:
            stopping.set()
            for process in list(running):
                if process.poll() is None:
                    process.terminate()
            raise
    return outcomes


def watch(process: subprocess.Popen, tell: Callable[[int], None], job: Job) -> None:
    """Tell the step from time to time while the process runs."""

    def look() -> None:
        while process.poll() is None:
            tell(current_step(job.folder))
            time.sleep(2)

    threading.Thread(target=look, daemon=True).start()


def current_step(folder: Path) -> int:
    """The last step in the newest metrics file; 0 before there is one."""
    files = sorted(folder.glob("metrics/version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    if not files:
        return 0
    header, *lines = files[-1].read_text(encoding="utf-8").splitlines() or [""]
    # The process may be writing: the last line may be cut off.
    step = dict(zip(header.split(","), lines[-1].split(","), strict=False)).get("step", "") if lines else ""
    return int(step) + 1 if step.isdigit() else 0
