"""Tests of the lock of a run directory, and of the choice of the last checkpoint."""

import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from lit_transfusion import run_folder
from lit_transfusion.errors import InputError
from lit_transfusion.run_folder import last_checkpoint, locked


def hold(folder, ready):
    with locked(folder, new_run=False):
        ready.set()
        time.sleep(60)


@contextmanager
def held(folder):
    """Start another process that holds the lock of `folder`."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(folder, ready))
    process.start()
    assert ready.wait(20)
    try:
        yield process
    finally:
        process.kill()
        process.join()


@pytest.fixture
def run(tmp_path):
    """A run directory of an earlier run."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "tokenizer.model"):
        (folder / name).write_text("earlier")
    return folder


@pytest.mark.parametrize("new_run", [True, False])
def test_error_of_a_second_fit_names_the_first_and_nothing_is_moved(run, new_run):
    with held(run) as process:
        before = sorted(run.parent.rglob("*"))
        with pytest.raises(InputError) as caught, locked(run, new_run):
            pass
        assert sorted(run.parent.rglob("*")) == before
        since = json.loads((run / "fit.json").read_text())["since"]
    for part in (str(run), f"process {process.pid}", socket.gethostname(), since):
        assert part in str(caught.value)


def test_lock_of_a_process_that_was_killed_does_not_block(run):
    with held(run) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert (run / "fit.json").exists()
        began = time.monotonic()
        with locked(run, new_run=False):
            assert json.loads((run / "fit.json").read_text())["pid"] == os.getpid()
        assert time.monotonic() - began < 5


def test_lock_is_released_when_the_fit_ends(run):
    for _ in range(2):
        with locked(run, new_run=False):
            assert (run / "fit.json").exists()
        assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "tokenizer.model"]


def test_new_run_moves_the_earlier_one_aside_under_its_lock(run):
    with locked(run, new_run=True):
        assert sorted(path.name for path in run.iterdir()) == ["fit.json", "fit.lock"]
        assert sorted(path.name for path in run.with_name("run.1").iterdir()) == ["config.yaml", "tokenizer.model"]
        with pytest.raises(InputError, match="in use"):
            run_folder.acquire(run)


@pytest.mark.parametrize("existed", [True, False])
def test_fit_that_fails_before_it_starts_leaves_nothing(tmp_path, existed):
    folder = tmp_path / "run"
    if existed:
        folder.mkdir()
    with pytest.raises(RuntimeError), locked(folder, new_run=True):
        raise RuntimeError
    assert folder.exists() == existed


@pytest.fixture
def elsewhere(run, monkeypatch):
    """A fit.json from a process on another host, which locks do not show."""
    monkeypatch.setattr(run_folder, "RENEW_SECONDS", 0.1)
    path = run / "fit.json"
    path.write_text(json.dumps({"host": "other", "pid": 7, "since": "yesterday"}))
    return path


def test_fit_on_another_host_that_is_alive_blocks(run, elsewhere):
    stop = threading.Event()
    threading.Thread(target=run_folder.renew, args=(elsewhere, stop), daemon=True).start()
    with pytest.raises(InputError, match=r"process 7 on other.*yesterday"), locked(run, False):
        pass
    stop.set()


def test_fit_on_another_host_that_is_dead_does_not_block(run, elsewhere):
    with locked(run, new_run=False):
        assert json.loads(elsewhere.read_text())["pid"] == os.getpid()


def test_fit_on_another_host_that_died_long_ago_is_ignored_immediately(run, elsewhere, monkeypatch):
    monkeypatch.setattr(run_folder, "RENEW_SECONDS", 10.0)
    os.utime(elsewhere, (1, 1))
    began = time.monotonic()
    with locked(run, new_run=False):
        assert time.monotonic() - began < 5


def test_holder_file_decides_if_the_file_system_has_no_locks(run, monkeypatch):
    def none(*_, **__):
        raise OSError(run_folder.errno.ENOLCK, "no locks available")

    monkeypatch.setattr(run_folder.FileLock, "acquire", none)
    monkeypatch.setattr(run_folder, "RENEW_SECONDS", 0.1)
    with locked(run, new_run=False), pytest.raises(InputError, match=f"process {os.getpid()}"):
        run_folder.acquire(run)
    (run / "fit.json").write_text(json.dumps({"host": socket.gethostname(), "pid": 7, "since": "yesterday"}))
    with locked(run, new_run=False):  # fit.json of a process that was killed
        pass


def test_error_for_a_directory_that_cannot_be_created_names_it(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"default_root_dir .*file/run cannot be written.*choose another"):
        run_folder.acquire(tmp_path / "file" / "run")


@pytest.mark.parametrize("dangling", [True, False])
def test_last_checkpoint_of_a_run_that_was_killed_while_it_was_replaced(tmp_path, dangling):
    """Lightning writes the new file, removes the old one, removes the link, and creates a new link."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    if dangling:
        (folder / "last.ckpt").symlink_to("epoch=0-step=2.ckpt")
    assert last_checkpoint(tmp_path) is None
    for step in (6, 4):
        (folder / f"epoch=0-step={step}.ckpt").touch()
        os.utime(folder / f"epoch=0-step={step}.ckpt", (step, step))
    assert last_checkpoint(tmp_path).name == "epoch=0-step=6.ckpt"
