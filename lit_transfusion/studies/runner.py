"""Train and evaluate all arms at all seeds, several at a time, and resume runs that were stopped."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch
import yaml

from lit_transfusion import run_folder
from lit_transfusion.allowed_imports import OPTION, foreign_modules
from lit_transfusion.errors import InputError
from lit_transfusion.file_lock import locked
from lit_transfusion.progress import Progress
from lit_transfusion.studies.plan import ArmPlan, fit_arguments
from lit_transfusion.studies.study import Study


class Trunk(NamedTuple):
    """A run with a constant learning rate, from whose checkpoints other runs start: see `WarmupStableDecay`."""

    folder: Path
    fit: list[str]  # arguments of `fit`, without the number of steps
    starts: tuple[int, ...]  # increasing; the job starts at the last one, and other jobs at the ones before

    @property
    def start(self) -> Path:
        """The checkpoint from which the job starts."""
        return self.checkpoint(self.starts[-1])

    def checkpoint(self, step: int) -> Path:
        return self.folder / "starts" / f"step_{step}.ckpt"

    @property
    def reached(self) -> int:
        """The step at which the run last ended."""
        return run_folder.read_json(self.folder / run_folder.FINISHED).get("step", 0)


class Job(NamedTuple):
    """One run: the training and evaluation of an arm at a seed. All its files are in `folder`."""

    arm: str
    seed: int
    folder: Path
    fit: list[str]  # arguments of `fit`
    planned: str  # YAML of the training config
    evaluate: str  # YAML of the options of `evaluate`
    max_steps: int
    trunk: Trunk | None = None  # None: the run starts with new weights

    @property
    def name(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    @property
    def trained(self) -> bool:
        return run_folder.read_json(self.folder / run_folder.FINISHED).get("step") == self.max_steps

    @property
    def evaluated(self) -> bool:
        asked = self.folder / run_folder.EVALUATED
        same = asked.is_file() and asked.read_text(encoding="utf-8") == self.evaluate
        return self.trained and same and (self.folder / run_folder.EVALUATION).is_file()

    @property
    def evaluation(self) -> dict[str, Any]:
        """What `evaluate` measured; empty if the run is not evaluated."""
        return run_folder.read_json(self.folder / run_folder.EVALUATION) if self.evaluated else {}

    @property
    def log(self) -> Path:
        return self.folder / run_folder.LOG


class Outcome(NamedTuple):
    """The result of a job."""

    job: Job
    error: str | None  # None if it is trained and evaluated


def make_jobs(study: Study, plans: Sequence[ArmPlan], overrides: list[str], seeds: int, folder: Path) -> list[Job]:
    """The jobs seed by seed, so that a study that is stopped early has all arms at some seeds.

    Raises:
        InputError: A run in the folder was trained with another config.
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
    """Raise InputError if the folder contains a run with another config."""
    path = job.folder / run_folder.PLANNED
    if not path.is_file():
        return
    earlier, now = path.read_text(encoding="utf-8"), job.planned
    # As values: whether jsonargparse writes 250 or 250.0 depends on what the process has imported before.
    if earlier != now and yaml.safe_load(earlier) != yaml.safe_load(now):
        pairs = zip(earlier.splitlines(), now.splitlines(), strict=False)
        differing = next(((a, b) for a, b in pairs if a != b), ("", "more or fewer lines"))
        raise InputError(
            f"{job.folder} was trained with another config ({differing[0].strip()!r}, now {differing[1].strip()!r}); "
            "use another --output, or move the folder away"
        )


def run_job(
    job: Job,
    threads: int,
    started: Callable[[subprocess.Popen], None] = lambda _: None,
    gpus: str | None = None,
    waiting: Callable[[], None] = lambda: None,
) -> str | None:
    """Train and evaluate a run, each with its own command, and return the error, if any.

    Finished steps are not repeated. If another process works at the same run, wait for it.

    Args:
        job: The run.
        threads: Number of CPU threads; 0 for the default of torch.
        started: Called with each process.
        gpus: The visible GPUs, as in CUDA_VISIBLE_DEVICES; None for all.
        waiting: Called before waiting for another process.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    with locked(job.folder / run_folder.JOB_LOCK, waiting) as lock:  # inherited: held even if this process ends
        (job.folder / run_folder.PLANNED).write_text(job.planned, encoding="utf-8")
        if not job.trained:
            resume = resumed(job.folder)
            if not resume and job.trunk is not None:
                if error := reach_start(job, job.trunk, threads, started, gpus, waiting):
                    return error
                resume = ["--ckpt_path", str(job.trunk.start)]
            if error := command(job, ["fit", *job.fit, *resume], threads, gpus, lock, started):
                return error
            if not job.trained:
                return f"fit ended before step {job.max_steps} (see {job.log})"
        if not job.evaluated:
            options = job.folder / run_folder.EVALUATED
            options.unlink(missing_ok=True)
            asked = job.folder / run_folder.ASKED
            asked.write_text(job.evaluate, encoding="utf-8")
            checkpoint = str(run_folder.last_checkpoint(job.folder) or job.folder / run_folder.CHECKPOINTS)
            words = ["evaluate", "--config", str(asked), "--ckpt", checkpoint, "--output", str(job.folder)]
            # The user passed the study's config, so its modules are allowed.
            words += [word for name in foreign_modules(yaml.safe_load(job.planned)) for word in (OPTION, name)]
            if error := command(job, words, threads, gpus, lock, started):
                return error
            asked.rename(options)  # marks the evaluation as finished
    return None


def reach_start(
    job: Job,
    trunk: Trunk,
    threads: int,
    started: Callable[[subprocess.Popen], None],
    gpus: str | None,
    waiting: Callable[[], None],
) -> str | None:
    """Train the trunk of a job up to the start of the job, and return the error, if any.

    It stops at each start on the way and copies its checkpoint, so that jobs of one trunk may run in any order.
    """
    trunk.folder.mkdir(parents=True, exist_ok=True)
    with locked(trunk.folder / run_folder.JOB_LOCK, waiting) as lock:
        for step in trunk.starts:
            if trunk.checkpoint(step).exists():
                continue
            if trunk.reached < step:
                words = ["fit", *trunk.fit, f"--trainer.max_steps={step}", *resumed(trunk.folder)]
                if error := command(job, words, threads, gpus, lock, started):
                    return error
            if trunk.reached != step or (last := run_folder.last_checkpoint(trunk.folder)) is None:
                return f"{trunk.folder} has no checkpoint of step {step}; remove the folder, and it is trained again"
            copy_whole(last, trunk.checkpoint(step))
    return None


def resumed(folder: Path) -> list[str]:
    """Options of `fit` to resume the run in a folder; none if it has no checkpoint."""
    if run_folder.last_checkpoint(folder):
        return ["--ckpt_path", "last"]
    # From a start without a checkpoint. With it, `fit` would move the folder, and our lock, aside.
    (folder / run_folder.CONFIG).unlink(missing_ok=True)
    return []


def copy_whole(source: Path, target: Path) -> None:
    """Copy a checkpoint, a file or a directory of shards. The target exists only when it is complete."""
    part = target.with_suffix(".part")
    target.parent.mkdir(exist_ok=True)
    if source.is_dir():
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(source, part)
    else:
        shutil.copyfile(source, part)
    part.rename(target)


def command(
    job: Job, words: list[str], threads: int, gpus: str | None, lock: tuple[int, ...], started: Callable
) -> str | None:
    """Run one command with its output in the log; return the last line of the log if it failed."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}  # so that the log has all lines, in order
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
            start_new_session=True,  # Ctrl-C reaches only this process, which stops the others
        )
        started(process)
        status = process.wait()
    return None if status == 0 else last_line(job.log, status)


def last_line(log: Path, status: int) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"{lines[-1] if lines else ''} (exit status {status}; see {log})"


def gpu_shares(parallel: int, count: int, visible: str | None) -> list[str | None]:
    """The GPUs of each of the parallel runs, as values of CUDA_VISIBLE_DEVICES.

    Each run has an even share of the `count` GPUs if there are enough; None means all GPUs. `visible` is the current
    value of CUDA_VISIBLE_DEVICES.
    """
    names = visible.split(",") if visible else [str(i) for i in range(count)]
    if parallel == 1 or count < parallel:
        return [None] * parallel
    return [",".join(names[i::parallel]) for i in range(parallel)]


def run_here(jobs: Sequence[Job], parallel: int, threads: int) -> list[Outcome]:
    """Run the jobs that are not finished, `parallel` at a time, with one progress display.

    A run that fails does not stop the others. On Ctrl-C or SIGTERM, all processes are terminated, save a checkpoint,
    and are waited for.
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
            return Outcome(job, "not started")
        row = progress.add(job.name, job.max_steps, step_of(job))

        def started(process: subprocess.Popen) -> None:
            running.add(process)
            if stopping.is_set():  # set after the check above
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


def watch(process: subprocess.Popen, on_step: Callable[[int], None], job: Job) -> None:
    """Report the current step every two seconds while the process runs."""

    def poll() -> None:
        while process.poll() is None:
            on_step(step_of(job))
            time.sleep(2)

    threading.Thread(target=poll, daemon=True).start()


def step_of(job: Job) -> int:
    """The current step of a job, or that of its trunk while the job has not started."""
    step = current_step(job.folder)
    return step if step or job.trunk is None else min(current_step(job.trunk.folder), job.trunk.starts[-1])


def current_step(folder: Path) -> int:
    """The last step in the newest metrics file, or 0 if there is none."""
    files = run_folder.metrics_files(folder)
    if not files:
        return 0
    header, *lines = files[-1].read_text(encoding="utf-8").splitlines() or [""]
    # The process may be writing, so the last line can be incomplete.
    step = dict(zip(header.split(","), lines[-1].split(","), strict=False)).get("step", "") if lines else ""
    return int(step) + 1 if step.isdigit() else 0
