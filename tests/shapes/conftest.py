"""A fixture of several tests of the drawn world."""

import os
import subprocess
import sys

import pytest


@pytest.fixture
def assert_same_in_every_process(capsys):
    """Assert that code prints the same digest here and in a process with other hashes of strings."""

    def assert_same_in_every_process(code: str) -> None:
        other_hashes = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", code]
        there = subprocess.run(command, env=other_hashes, stdout=subprocess.PIPE, text=True, check=True).stdout
        exec(code, {})
        here = capsys.readouterr().out
        assert len(here) > 60 and here == there

    return assert_same_in_every_process
