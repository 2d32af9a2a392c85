"""Tests of progress: lines in a log, bars on a terminal, and nothing in processes other than the first."""

import os
import pty
import re
import subprocess
import sys
import time
from itertools import pairwise

import pytest

from lit_transfusion import progress
from lit_transfusion.progress import Pace, Progress, duration, reporting

TEN_MINUTES = 600


@pytest.fixture
def often(monkeypatch):
    """Makes a line due at any time."""
    monkeypatch.setattr(Pace, "due", True)


@pytest.mark.parametrize("length", [30, 600, 6_000, 60_000, 1_000_000])
def test_first_line_is_early_and_lines_are_not_many(monkeypatch, length):
    """`length` is in seconds, from half a minute to twelve days."""
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    pace, printed = Pace(), []
    while now < length:
        if pace.due:
            printed.append(now)
            pace.printed(expected=length)
        now += 0.5 if length < 100_000 else 5
    gaps = [b - a for a, b in pairwise(printed)]
    assert printed[0] <= 5
    assert max(gaps) <= min(max(61, length / 100 + 5), TEN_MINUTES + 5)
    assert len(printed) <= max(110, length / TEN_MINUTES + 110)


def test_line_contains_amount_total_rate_and_time(often, capsys):
    with Progress() as shown:
        row = shown.add("preparing", total=60, unit="pictures")
        row.start -= 10
        row.update(20, note="a note")
        time.sleep(0.7)
    first, *_, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"preparing: 20 of 60 pictures, a note, (2|1\.\d+) pictures/s, 2\d s left", first)
    assert last.startswith("preparing: 20 of 60 pictures, ")


def test_rows_share_a_line_and_counts_are_read(often, capsys):
    with Progress() as shown:
        shown.add("runs", total=3, count=lambda: 2)
        removed = shown.add("b", total=9)
        shown.add("a", total=5, done=1)
        shown.remove(removed)
        time.sleep(0.7)
    assert re.match(r"runs: 2 of 3, .*; a: 1 of 5, ", capsys.readouterr().err)


def test_description_may_change_and_the_total_may_be_unknown(often, capsys):
    with reporting() as on_progress:
        on_progress("reading", 3, 3)
        on_progress("training", 0, None)
        time.sleep(0.7)
    lines = capsys.readouterr().err.splitlines()
    assert all(re.fullmatch(r"training: in \d s", line) for line in lines) and lines


def test_short_work_prints_nothing(capsys):
    with reporting() as on_progress:
        on_progress("drawing", 1, 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK"])
def test_only_the_first_process_prints(often, capsys, monkeypatch, variable):
    for value, count in (("0", 1), ("1", 0)):
        monkeypatch.setenv(variable, value)
        with Progress() as shown:
            shown.add("drawing", total=2)
            shown.say("a line")
            time.sleep(0.7)
        assert capsys.readouterr().err.count("a line") == count


def test_bar_on_a_terminal():
    code = (
        "import time\n"
        "from lit_transfusion.progress import Progress\n"
        "with Progress() as shown:\n"
        "    shown.add('drawing', total=64, unit='pictures').update(32)\n"
        "    shown.say('[a line]')\n"
        "    time.sleep(1.2)\n"
    )
    master, slave = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stderr=slave, env=os.environ | {"TERM": "xterm"})
    os.close(slave)
    output = b""
    try:
        while chunk := os.read(master, 4096):
            output += chunk
    except OSError:  # Linux: the other end is closed
        pass
    os.close(master)
    assert process.wait() == 0
    assert "━" in output.decode() and "32 of 64 pictures" in output.decode() and "[a line]" in output.decode()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (98, "98 s"), (100, "2 min"), (5_900, "98 min"), (7_500, "2 h 5 min"), (300_000, "3 d 11 h")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
