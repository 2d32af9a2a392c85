"""Tests that one process at a time holds a lock file, or its children, but no process that has ended."""

import multiprocessing
import subprocess
import sys
import threading
import time

import pytest

from lit_transfusion.file_lock import locked


def hold(path, held, until):
    with locked(path, lambda: None):
        held.set()
        until.wait()


def try_to_lock(path):
    """Lock a file in a thread. Return the events "the lock is acquired" and "it waits for another process"."""
    waiting, acquired = threading.Event(), threading.Event()

    def acquire():
        with locked(path, waiting.set):
            pass
        acquired.set()  # when it is released again, so that the next one need not wait

    threading.Thread(target=acquire, daemon=True).start()
    while not waiting.is_set() and not acquired.wait(0.01):
        pass
    return acquired, waiting


@pytest.mark.parametrize("end", ["released", "killed"])
def test_waits_for_another_process(tmp_path, end):
    context = multiprocessing.get_context("spawn")
    held, until = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "lock", held, until))
    process.start()
    assert held.wait(60)
    acquired, waiting = try_to_lock(tmp_path / "lock")
    assert waiting.is_set() and not acquired.wait(0.3)
    until.set() if end == "released" else process.kill()
    assert acquired.wait(20)
    process.join()
    acquired, waiting = try_to_lock(tmp_path / "lock")
    assert acquired.wait(5) and not waiting.is_set()


@pytest.mark.skipif(sys.platform == "win32", reason="no pass_fds")
def test_child_process_holds_the_lock_when_its_parent_is_killed(tmp_path):
    program = (
        "import subprocess, sys, time\nfrom pathlib import Path\nfrom lit_transfusion.file_lock import locked\n"
        "with locked(Path('lock'), print) as lock:\n"
        "    code = \"import time, pathlib\\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\"\n"
        "    subprocess.Popen([sys.executable, '-c', code], pass_fds=lock)\n"
        "    print('held', flush=True)\n    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.wait()
    acquired, waiting = try_to_lock(tmp_path / "lock")
    assert waiting.is_set() and not acquired.wait(0.3)
    (tmp_path / "go").touch()
    assert acquired.wait(20)


def test_file_that_cannot_be_created(tmp_path):
    began = time.monotonic()
    (tmp_path / "file").touch()
    with pytest.raises(OSError), locked(tmp_path / "file" / "lock", lambda: None):
        pass
    assert time.monotonic() - began < 5
