"""The benchmarks run, save their results, and report what cannot run. (The results are in docs/.)"""

import json
import sys

import pytest
import torch

from benchmarks import __main__ as benchmarks
from benchmarks.timing import interleave


@pytest.fixture
def command(monkeypatch):
    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmarks", *map(str, arguments)])
        benchmarks.main()

    return command


def test_results_are_added_to_those_of_other_benchmarks(command, tmp_path, capsys):
    output = tmp_path / "results" / "numbers.json"
    command("mask", "--quick", "--output", output)
    command("recompile", "--quick", "--output", output)
    results = json.loads(output.read_text())
    assert list(results) == ["mask", "recompile"]
    assert results["mask"]["command"] == "python -m benchmarks mask --quick --threads 1"
    assert results["mask"]["environment"]["torch"] == torch.__version__
    rows = results["recompile"]["tables"][0]["rows"]
    assert len(rows) == 3 and all(len(set(row[1:])) == 1 for row in rows)
    document = output.with_suffix(".md").read_text()
    assert "## mask" in document and "| block, dense attention | 1 | 1 | 1 | 1 | 1 |" in document
    assert "| block, dense attention | 1 | 1 | 1 | 1 | 1 |" in capsys.readouterr().out


@pytest.mark.slow
def test_loss_runs(command, capsys):
    command("loss", "--quick")
    assert "gradient in place" in capsys.readouterr().out


@pytest.mark.slow
def test_variants_run(command, capsys):
    command("variants", "--quick")
    assert "| modality_weights all | " in capsys.readouterr().out


@pytest.mark.slow
def test_shards_are_read_faster_than_their_input(command, tmp_path):
    """Pictures are read faster than from a folder of files; latents faster than an autoencoder encodes."""
    output = tmp_path / "numbers.json"
    command("data", "--quick", "--output", output)
    pictures, latents = json.loads(output.read_text())["data"]["tables"]
    tokens = {row[0]: float(row[1]) for row in pictures["rows"]}
    assert tokens["shards, webp"] > tokens["folder"] > tokens["trained on by `tiny`"]
    milliseconds = {row[0]: float(row[1]) for row in latents["rows"]}
    assert milliseconds["from shards"] < milliseconds["encoded in training"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_benchmark_that_cannot_run_is_left_out_with_its_reason(command, capsys):
    command("gpu")
    assert "gpu: left out (no CUDA device)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "unknown benchmark 'speed'; known: attention"),
        (["mask", "--output", "x.md"], ".json"),
    ],
)
def test_invalid_arguments_are_one_line(command, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_variants_run_in_alternating_order():
    calls = []
    timing = interleave({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=3, warmup=1)
    assert "".join(calls) == "abc" + "abc" + "cba" + "abc"
    assert all(0 <= time.minimum <= time.median for time in timing.values())
