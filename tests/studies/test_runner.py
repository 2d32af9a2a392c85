"""Runs are trained and evaluated once, resume after any kind of stop, and do not disturb each other."""

import fcntl
import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from tiny_study import write_metrics

from lit_transfusion.errors import InputError
from lit_transfusion.run_folder import read_json
from lit_transfusion.studies.plan import ArmPlan
from lit_transfusion.studies.runner import (
    Trunk,
    check_earlier,
    copy_whole,
    current_step,
    gpu_shares,
    last_line,
    make_jobs,
    run_here,
    run_job,
)


def wait_for(condition, seconds=10.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "timed out"
        time.sleep(0.01)


# One run


def test_run_is_trained_and_evaluated_once(make_job, stand_in):
    calls, job = stand_in(), make_job()
    assert not job.trained and not job.evaluated
    assert run_job(job, threads=1) is None
    assert job.trained and job.evaluated
    fit, evaluate = calls()
    assert fit == ["fit", *job.fit]
    asked, ckpt = str(job.folder / "asked.yaml"), str(job.folder / "checkpoints" / "last.ckpt")
    assert evaluate == ["evaluate", "--config", asked, "--ckpt", ckpt, "--output", str(job.folder)]
    assert (job.folder / "planned.yaml").read_text() == job.planned
    assert (job.folder / "evaluate.yaml").read_text() == job.evaluate and not (job.folder / "asked.yaml").exists()
    assert run_job(job, threads=1) is None
    assert len(calls()) == 2


def test_new_metrics_are_measured_without_training(make_job, stand_in):
    calls, job = stand_in(), make_job()
    run_job(job, threads=1)
    other = job._replace(evaluate="metrics: [KID]\n")
    assert other.trained and not other.evaluated
    run_job(other, threads=1)
    assert [words[0] for words in calls()] == ["fit", "evaluate", "evaluate"]
    assert other.evaluated and not job.evaluated


def test_run_with_more_steps_is_not_trained_yet(make_job):
    job = make_job(max_steps=4)
    job.folder.mkdir(parents=True)
    (job.folder / "finished.json").write_text('{"step": 4}')
    assert job.trained and not job._replace(max_steps=5).trained


@pytest.mark.parametrize("bad", ["fit", "evaluate"])
def test_failure_returns_the_last_line_of_the_log_and_is_retried(make_job, stand_in, bad):
    job = make_job()
    calls = stand_in(
        f"print('at work')\nif words[0] == {bad!r}:\n"
        "    print('error: no such thing', file=sys.stderr)\n    sys.exit(2)\n"
        "finish()"
    )
    assert run_job(job, threads=1) == f"error: no such thing (exit status 2; see {job.log})"
    assert calls()[-1][0] == bad and not job.evaluated and job.trained == (bad == "evaluate")
    stand_in()
    assert run_job(job, threads=1) is None and job.evaluated
    assert [words[0] for words in calls()].count("fit") == (2 if bad == "fit" else 1)  # what was trained stays


def test_last_line_is_the_last_that_was_printed(make_job, stand_in):
    """Not a line that was printed before and written later, from a buffer."""
    stand_in("print('before')\nprint('the reason', file=sys.stderr)\nsys.exit(1)")
    assert run_job(make_job(), threads=1).startswith("the reason (")


def test_fit_that_ends_early_is_an_error(make_job, stand_in):
    """For example with EarlyStopping or max_time."""
    calls, job = stand_in("finish(); (folder / 'finished.json').write_text('{\"step\": 3}')"), make_job()
    assert "before step 5" in run_job(job, threads=1)
    assert [words[0] for words in calls()] == ["fit"]


def test_fit_resumes_from_the_last_checkpoint(make_job, stand_in):
    calls, job = stand_in(), make_job()
    (job.folder / "checkpoints").mkdir(parents=True)
    (job.folder / "checkpoints" / "last.ckpt").touch()
    run_job(job, threads=1)
    assert calls()[0] == ["fit", *job.fit, "--ckpt_path", "last"]


def test_sharded_run_resumes_from_its_folder(make_job, stand_in):
    """A checkpoint of fsdp2 is a folder, and last.ckpt a link to it."""
    calls, job = stand_in("(folder / 'finished.json').write_text('{\"step\": 5}')"), make_job()
    shards = job.folder / "checkpoints" / "epoch=0-step=3.ckpt"
    shards.mkdir(parents=True)
    for name in (".metadata", "meta.pt"):
        (shards / name).touch()
    (shards.parent / "last.ckpt").symlink_to(shards.name)
    run_job(job, threads=1)
    assert calls()[0] == ["fit", *job.fit, "--ckpt_path", "last"]
    assert calls()[1][calls()[1].index("--ckpt") + 1] == str(shards.parent / "last.ckpt")


def test_kill_before_the_first_checkpoint_leaves_the_run_where_it_is(make_job, stand_in):
    """`fit` would move an earlier run to NAME.1, with the lock and the plan."""
    job = make_job()
    job.folder.mkdir(parents=True)
    (job.folder / "config.yaml").touch()
    (job.folder / "tokenizer.model").touch()
    stand_in(
        "if fit and (folder / 'config.yaml').exists() and (folder / 'tokenizer.model').exists():\n"
        "    folder.rename(folder.with_name(f'{folder.name}.1'))\n    folder.mkdir()\n"
        "finish()"
    )
    assert run_job(job, threads=1) is None
    assert [path.name for path in job.folder.parent.iterdir()] == [job.folder.name]
    assert (job.folder / "planned.yaml").exists()


# Runs that start from a checkpoint of a run with a constant rate

TRAINS = """
if fit:
    step = int(next(word for word in words if word.startswith("--trainer.max_steps=")).partition("=")[2])
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "last.ckpt").write_text(f"step {step}")
    (folder / "finished.json").write_text('{"step": %d}' % step)
else:
    finish()
"""


@pytest.fixture
def make_branch(make_job):
    """Create runs of 5, 10 and 20 steps, which start at the steps 4, 8 and 16 of the same run."""

    def make_branch(number, **changes):
        job, steps = make_job(), (5, 10, 20)[number]
        folder = job.folder / f"steps_{steps}"
        fit = ["--trainer.default_root_dir", str(folder), f"--trainer.max_steps={steps}"]
        stem = job.folder / "constant"
        trunk = Trunk(stem, ["--trainer.default_root_dir", str(stem)], (4, 8, 16)[: number + 1])
        return job._replace(folder=folder, fit=fit, max_steps=steps, trunk=trunk, **changes)

    return make_branch


def fits(calls):
    """The folder, the number of steps and the checkpoint of each `fit`."""
    found = []
    for words in calls():
        if words[0] == "fit":
            folder = words[words.index("--trainer.default_root_dir") + 1].rpartition("/")[2]
            steps = next(word for word in words if word.startswith("--trainer.max_steps=")).partition("=")[2]
            ckpt = words[words.index("--ckpt_path") + 1] if "--ckpt_path" in words else ""
            found.append((folder, int(steps), ckpt.rpartition("/")[2]))
    return found


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_each_run_starts_at_its_step_of_one_run_with_a_constant_rate(make_branch, stand_in, order):
    calls, jobs = stand_in(TRAINS), [make_branch(number) for number in range(3)]
    for number in order:
        assert run_job(jobs[number], threads=1) is None and jobs[number].evaluated
    found = fits(calls)
    assert [call for call in found if call[0] == "constant"] == [
        ("constant", 4, ""),
        ("constant", 8, "last"),
        ("constant", 16, "last"),
    ]
    starts = {call for call in found if call[0] != "constant"}
    assert starts == {("steps_5", 5, "step_4.ckpt"), ("steps_10", 10, "step_8.ckpt"), ("steps_20", 20, "step_16.ckpt")}
    for job, step in zip(jobs, (4, 8, 16), strict=True):
        assert job.trunk.start.read_text() == f"step {step}"


def test_runs_of_one_trunk_at_the_same_time_train_it_once(make_branch, stand_in):
    calls, jobs = stand_in(TRAINS), [make_branch(number) for number in (2, 1, 0)]
    assert [outcome.error for outcome in run_here(jobs, parallel=3, threads=1)] == [None] * 3
    assert [call[1] for call in fits(calls) if call[0] == "constant"] == [4, 8, 16]


def test_run_with_a_checkpoint_of_its_own_does_not_start_again(make_branch, stand_in):
    calls, job = stand_in(TRAINS), make_branch(0)
    (job.folder / "checkpoints").mkdir(parents=True)
    (job.folder / "checkpoints" / "last.ckpt").touch()
    assert run_job(job, threads=1) is None
    assert fits(calls) == [("steps_5", 5, "last")]


def test_failure_of_the_trunk_is_that_of_the_run_and_is_retried(make_branch, stand_in):
    job = make_branch(1)
    stand_in("print('error: no space', file=sys.stderr)\nsys.exit(2)")
    assert run_job(job, threads=1) == f"error: no space (exit status 2; see {job.log})"
    calls = stand_in(TRAINS)
    assert run_job(job, threads=1) is None
    assert fits(calls)[-3:] == [("constant", 4, ""), ("constant", 8, "last"), ("steps_10", 10, "step_8.ckpt")]


def test_start_that_was_removed_after_its_step_is_an_error(make_branch, stand_in):
    stand_in(TRAINS)
    run_job(make_branch(1), threads=1)
    job = make_branch(0)
    job.trunk.start.unlink()
    error = run_job(job, threads=1)
    assert f"{job.trunk.folder} has no checkpoint of step 4" in error and "remove the folder" in error


def test_folder_of_shards_is_copied_as_a_whole(tmp_path):
    shards = tmp_path / "last.ckpt"
    shards.mkdir()
    (shards / "meta.pt").write_text("x")
    (tmp_path / "starts").mkdir()
    (tmp_path / "starts" / "step_3.part").mkdir()  # of a process that was killed
    copy_whole(shards, tmp_path / "starts" / "step_3.ckpt")
    assert (tmp_path / "starts" / "step_3.ckpt" / "meta.pt").read_text() == "x"
    assert [path.name for path in (tmp_path / "starts").iterdir()] == ["step_3.ckpt"]


# The environment


def test_number_of_threads_is_passed_on(make_job, stand_in, monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    stand_in("import os\nPath(words[0]).write_text(os.environ['OMP_NUM_THREADS'])\nfinish()")
    for threads, seen in ((3, "3"), (0, "7")):
        assert run_job(make_job(seed=threads), threads) is None
        assert [(tmp_path / name).read_text() for name in ("fit", "evaluate")] == [seen, seen]


# Other processes at the same run


@contextmanager
def held(job):
    job.folder.mkdir(parents=True)
    with (job.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_waits_for_another_process_at_the_same_run(make_job, stand_in):
    calls, job, result, waits = stand_in(), make_job(), [], threading.Event()
    with held(job):
        thread = threading.Thread(target=lambda: result.append(run_job(job, threads=1, waiting=waits.set)))
        thread.start()
        assert waits.wait(10)
        time.sleep(0.3)
        assert not calls() and not (job.folder / "planned.yaml").exists()
        (job.folder / "finished.json").write_text('{"step": 5}')  # by the other
    thread.join(10)
    assert result == [None] and [words[0] for words in calls()] == ["evaluate"]


def test_waits_for_the_child_of_a_killed_parent_and_keeps_its_result(make_job, stand_in, tmp_path):
    calls, job = stand_in("while fit and not Path('go').exists():\n    time.sleep(0.01)\nfinish()"), make_job()
    parent = multiprocessing.get_context("fork").Process(target=run_job, args=(job, 1))
    parent.start()
    wait_for(calls)
    parent.kill()
    parent.join()
    assert parent.exitcode == -signal.SIGKILL
    threading.Timer(0.3, (tmp_path / "go").touch).start()
    assert run_job(job, threads=1) is None
    assert [words[0] for words in calls()] == ["fit", "evaluate"] and job.evaluated


# Folders of an earlier study


def test_runs_are_ordered_by_seed_and_have_their_own_folders(make_study, tmp_path):
    study = make_study()
    plans = [ArmPlan(arm, f"{arm}: 1\n", 1, 1, 5, 1.0, 1.0, None) for arm in study.arms]
    jobs = make_jobs(study, plans, ["--trainer.max_steps=5"], 2, tmp_path)
    assert [(job.arm, job.seed) for job in jobs] == [("causal", 0), ("both", 0), ("causal", 1), ("both", 1)]
    assert len({job.folder for job in jobs}) == 4
    words = jobs[3].fit
    assert words[words.index("--arm") + 1] == "both" and "--trainer.max_steps=5" in words
    for key in ("seed_everything", "data.seed", "model.seed"):
        assert words[words.index(f"--{key}") + 1] == "1"
    assert words[words.index("--trainer.default_root_dir") + 1] == str(jobs[3].folder)


def test_folder_with_another_config_is_an_error(make_job):
    job = make_job()
    check_earlier(job)  # there is none
    job.folder.mkdir(parents=True)
    (job.folder / "planned.yaml").write_text(job.planned)
    check_earlier(job)
    check_earlier(job._replace(planned="model: {}\nmax_steps: 5.0\n"))  # the same value
    with pytest.raises(InputError) as caught:
        check_earlier(job._replace(planned="model: {}\nmax_steps: 6\n"))
    message = str(caught.value)
    assert str(job.folder) in message and "'max_steps: 5', now 'max_steps: 6'" in message and "--output" in message
    for planned in ("model: {}\n", job.planned + "more: 1\n"):
        with pytest.raises(InputError, match="more or fewer lines"):
            check_earlier(job._replace(planned=planned))


# All runs


def test_failure_does_not_stop_other_runs(make_job, stand_in, capsys):
    stand_in("if 'bad' in str(folder):\n    sys.exit('it is bad')\nfinish()")
    jobs = [make_job(arm, seed) for seed in range(2) for arm in ("bad", "good")]
    outcomes = run_here(jobs, parallel=2, threads=1)
    assert {outcome.job.folder for outcome in outcomes} == {job.folder for job in jobs} and len(outcomes) == 4
    for outcome in outcomes:
        assert (outcome.error or "").startswith("it is bad" if outcome.job.arm == "bad" else "")
        assert outcome.job.evaluated == (outcome.job.arm == "good") == (outcome.error is None)
    printed = capsys.readouterr().err
    assert "failed: bad, seed 1: it is bad" in printed and "done: good, seed 0" in printed


def test_number_of_parallel_runs_is_limited(make_job, stand_in, tmp_path):
    stand_in(
        "if fit:\n    me = Path(f'running_{folder.parent.name}')\n    me.touch()\n"
        "    print(len(list(Path().glob('running_*'))), file=open('counts', 'a'))\n"
        "    time.sleep(0.3)\n    me.unlink()\nfinish()"
    )
    run_here([make_job(f"arm{i}") for i in range(4)], parallel=2, threads=1)
    assert max(map(int, (tmp_path / "counts").read_text().split())) == 2


def test_finished_runs_are_returned_and_not_run(make_job, stand_in):
    calls, jobs = stand_in(), [make_job("a"), make_job("b")]
    run_job(jobs[0], threads=1)
    outcomes = run_here(jobs, parallel=1, threads=1)
    assert [(outcome.job.arm, outcome.error) for outcome in outcomes] == [("a", None), ("b", None)]
    assert len(calls()) == 4
    assert len(run_here(jobs, parallel=1, threads=1)) == 2 and len(calls()) == 4


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_stop_lets_running_runs_save_a_checkpoint_and_starts_no_others(make_job, stand_in, ending):
    calls = stand_in(
        "def stop(*_):\n    time.sleep(0.2)\n    (folder / 'stopped.ckpt').touch()\n    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n(folder / 'ready').touch()\ntime.sleep(20)"
    )
    jobs = [make_job(f"arm{i}") for i in range(3)]

    def kill():
        wait_for(lambda: all((job.folder / "ready").exists() for job in jobs[:2]))
        os.kill(os.getpid(), ending)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as `ablate` does
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell have none
    threading.Thread(target=kill).start()
    try:
        with pytest.raises(SystemExit if ending == signal.SIGTERM else KeyboardInterrupt):
            run_here(jobs, parallel=2, threads=1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert [(job.folder / "stopped.ckpt").exists() for job in jobs] == [True, True, False]
    assert len(calls()) == 2


# Files of a run


def test_step_is_that_of_the_newest_metrics(make_job):
    job = make_job()
    assert current_step(job.folder) == 0
    old = write_metrics(job, 0, [{"step": 7, "loss": 1.0}, {"step": 9, "loss": 1.0}])
    assert current_step(job.folder) == 10
    new = write_metrics(job, 1, [{"epoch": 0, "step": 5, "loss": 1.0}])
    os.utime(old, (1, 1)), os.utime(new, (2, 2))
    assert current_step(job.folder) == 6


@pytest.mark.parametrize(
    ("content", "step"),
    [("", 0), ("epoch,step\n", 0), ("epoch,loss\n0,1\n", 0), ("loss,step\n1,3\n2", 0), ("step,loss\n3,1\n4,", 5)],
)
def test_step_of_a_file_that_is_being_written(make_job, content, step):
    job = make_job()
    write_metrics(job, 0, [{"step": 7}]).write_text(content)
    assert current_step(job.folder) == step


def test_last_line_of_a_log(tmp_path):
    log = tmp_path / "log.txt"
    log.write_bytes(b"first\nlast \xff one\n\n  \n")
    assert last_line(log, 3) == f"last \N{REPLACEMENT CHARACTER} one (exit status 3; see {log})"
    log.write_text("")
    assert last_line(log, -9) == f" (exit status -9; see {log})"


@pytest.mark.parametrize("content", [None, "", '{"step'])
def test_incomplete_json_is_read_as_empty(tmp_path, content):
    if content is not None:
        (tmp_path / "finished.json").write_text(content)
    assert read_json(tmp_path / "finished.json") == {}


@pytest.mark.parametrize(
    ("parallel", "count", "visible", "shares"),
    [
        (1, 4, None, [None]),  # one run can use all
        (2, 0, None, [None, None]),
        (2, 1, None, [None, None]),
        (2, 4, None, ["0,2", "1,3"]),
        (2, 3, None, ["0,2", "1"]),
        (2, 2, "5,7", ["5", "7"]),
    ],
)
def test_gpus_are_shared_by_parallel_runs(parallel, count, visible, shares):
    assert gpu_shares(parallel, count, visible) == shares
