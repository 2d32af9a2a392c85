"""One process at a time, those that it started included, and none that has ended."""

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


def is_free(path):
    waits, got = threading.Event(), threading.Event()

    def take():
        with locked(path, waits.set):
            got.set()

    threading.Thread(target=take, daemon=True).start()
    while not waits.is_set() and not got.wait(0.01):
        pass
    return got, waits


@pytest.mark.parametrize("end", ["released", "killed"])
def test_another_process_is_waited_for(tmp_path, end):
    context = multiprocessing.get_context("spawn")
    held, until = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "lock", held, until))
    process.start()
    assert held.wait(60)
    got, waits = is_free(tmp_path / "lock")
    assert waits.is_set() and not got.wait(0.3)
    until.set() if end == "released" else process.kill()
    assert got.wait(20)
    process.join()
    got, waits = is_free(tmp_path / "lock")
    assert got.wait(5) and not waits.is_set()


@pytest.mark.skipif(sys.platform == "win32", reason="no pass_fds")
def test_process_that_was_started_meanwhile_holds_it_when_the_first_is_killed(tmp_path):
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
    got, waits = is_free(tmp_path / "lock")
    assert waits.is_set() and not got.wait(0.3)
    (tmp_path / "go").touch()
    assert got.wait(20)


def test_file_that_cannot_be_created(tmp_path):
    began = time.monotonic()
    (tmp_path / "file").touch()
    with pytest.raises(OSError), locked(tmp_path / "file" / "lock", lambda: None):
        pass
    assert time.monotonic() - began < 5
