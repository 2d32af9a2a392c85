"""Tests of commands on other systems, and with output that cannot encode all characters."""

import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

from lit_transfusion.diffusion import DDPM
from lit_transfusion.generation.pipeline import KEY

GENERATE = ["generate", "--ckpt", "run.ckpt", "--num_inference_steps", "2", "--max_new_tokens", "3"]


@pytest.fixture
def checkpoint(make_pipeline, tmp_path):
    pipeline = make_pipeline(noise=DDPM(prediction_type="sample"))
    weights = {f"net.{name}": weight for name, weight in pipeline.net.state_dict().items()}
    torch.save({"state_dict": weights, KEY: pipeline.describe()}, tmp_path / "run.ckpt")
    return tmp_path


def command(folder, *words, encoding="ascii", program="import sys", **options):
    code = f"{program}\nfrom lit_transfusion.cli import main\nmain()"
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code, *words], cwd=folder, env=environment, **options)


@pytest.mark.slow
def test_prompt_that_the_output_cannot_print(checkpoint):
    prompt = "猫 und Bär \U0001f408"
    done = command(checkpoint, *GENERATE, "--interleave", "--prompt", prompt, "--output", "out", capture_output=True)
    assert done.returncode == 0, done.stderr
    assert rb"\u732b und B\xe4r \U0001f408" in done.stdout and b"samples.json" in done.stdout
    assert '"prompt": "猫 und Bär \U0001f408"' in (checkpoint / "out" / "samples.json").read_text(encoding="utf-8")


@pytest.mark.slow
def test_pictures_are_saved_if_standard_output_fails(checkpoint):
    with open("/dev/full", "w") as full:
        command(checkpoint, *GENERATE, "--prompt", "a", "--contact_sheet", stdout=full, stderr=subprocess.DEVNULL)
    assert Image.open(checkpoint / "out.png").size[0] > 4
    assert Image.open(checkpoint / "out_denoising.png").size[0] > 4


@pytest.mark.slow
def test_error_about_letters_that_the_output_cannot_print(tmp_path):
    done = command(tmp_path, "generate", "--ckpt", "none/猫\udcff.ckpt", "--prompt", "a", capture_output=True)
    assert done.returncode == 2 and done.stderr.startswith(b"error: ") and rb"\u732b" in done.stderr


@pytest.mark.slow
def test_commands_work_without_unix_modules(tmp_path):
    """As on Windows, all commands can be imported, and one of them is run."""
    program = (
        "import os, sys\n"
        "for name in ('fcntl', 'resource', 'pwd', 'grp', 'termios'):\n    sys.modules[name] = None\n"
        "for name in ('pread', 'sched_getaffinity'):\n    delattr(os, name)"
    )
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a red circle\n\na blue square\n\ntwo")
    words = ["train_tokenizer", "--source", "TextCorpus", "--source.path", "texts", "--source.documents", "block"]
    words += ["--vocab_size", "280", "--output", "tokenizer.model"]
    done = command(tmp_path, *words, program=program, capture_output=True)
    assert done.returncode == 0, done.stderr
    (tmp_path / "texts" / "a.txt").write_text("another\n\ntext")  # its table replaces the first one
    assert command(tmp_path, *words, "--overwrite", program=program, capture_output=True).returncode == 0
    assert len(list((tmp_path / "texts").glob(".lit_transfusion/texts-*"))) == 1


def test_bytes_of_a_file_are_the_same_without_pread(tmp_path, monkeypatch):
    from lit_transfusion.data.shards.open_files import OpenFiles

    (tmp_path / "file").write_bytes(bytes(range(256)))
    monkeypatch.delattr(os, "pread")
    files = OpenFiles()
    assert [files.read(str(tmp_path / "file"), *place) for place in ((9, 3), (0, 2), (255, 9))] == [
        bytes([9, 10, 11]),
        bytes([0, 1]),
        bytes([255]),
    ]
