"""Tests that a run that SIGKILL ends at a random moment resumes bit-exactly."""

import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from forked_fit import ForkedFit
from killed_run import steps
from PIL import Image
from test_resume import assert_same_end, config, metrics

from lit_transfusion.prepare.command import prepare

STEPS, EVERY = 24, 3  # EVERY: number of steps from one checkpoint to the next
REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(Path(__file__).parent))),
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A mix of shards of 24 pictures, and of texts, some of which are several documents."""
    folder, noise = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for i in range(24):
        Image.fromarray(noise.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / "pictures" / f"{i}.png")
        (folder / "pictures" / f"{i}.txt").write_text(f"picture {i}\nnumber {i}")
    prepare([str(folder / "pictures")], str(folder / "shards"), image_size=16, shard_size=10, num_workers=0)
    lines = (json.dumps({"text": f"text {i} of some words. " * (1 + i % 7)}) for i in range(30))
    (folder / "texts.jsonl").write_text("\n".join(lines))
    sources = {
        "pictures": {"class_path": "Shards", "init_args": {"path": str(folder / "shards"), "val_fraction": 0.1}},
        "texts": {"class_path": "TextCorpus", "init_args": {"path": str(folder / "texts.jsonl"), "val_fraction": 0.1}},
    }
    return {"class_path": "Mix", "init_args": {"sources": sources, "weights": {"pictures": 0.6, "texts": 0.4}}}


@pytest.fixture
def write_config(tmp_path, mixed):
    """Writes the config of a longer run on the mix in `tmp_path / name`, and returns its path."""

    def write_config(name: str, **trainer) -> str:
        content = config(tmp_path / name, None)
        callbacks = [c for c in content["trainer"]["callbacks"] if not c["class_path"].endswith("Witness")]
        for callback in callbacks:
            if callback["class_path"] == "ModelCheckpoint":
                callback["init_args"]["every_n_train_steps"] = EVERY
        callbacks += [{"class_path": "killed_run.Witness"}, {"class_path": "LimitThreads"}]
        content["trainer"] |= {"max_steps": STEPS, "val_check_interval": 7, "callbacks": callbacks, **trainer}
        content["data"]["source"] = mixed
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return write_config


def resume_options(folder: Path) -> list[str]:
    """Return the options that resume a run; without a checkpoint, it starts again."""
    return ["--ckpt_path", "last"] if any((folder / "checkpoints").glob("*.ckpt")) else []


def wait_for_step(folder: Path, step: int, alive) -> None:
    deadline = time.monotonic() + 600
    while max((seen[0] for seen in steps(folder)), default=0) < step:
        assert alive(), "ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def assert_same_runs(killed: Path, whole: Path, ranks: int = 1) -> None:
    """Compare the batches of each step, also repeated ones, the state at the end, and the rows that are in the log."""
    for rank in range(ranks):
        expected = {step: seen for step, *seen in steps(whole, rank)}
        assert list(expected) == list(range(1, STEPS + 1))
        for step, *seen in steps(killed, rank):
            assert seen == expected[step], (rank, step)
        assert {step for step, *_ in steps(killed, rank)} == expected.keys()
    assert_same_end(killed, whole)
    logged, expected = metrics(killed), metrics(whole)
    # A process that is killed while Lightning's CSV logger writes loses rows. The last process was not killed.
    assert all(expected[step].items() >= row.items() for step, row in logged.items())
    assert logged[STEPS - 1] == expected[STEPS - 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "num_workers", "devices"),
    [("auto", 0, 1), ("ddp", 2, 2), ("fsdp2", 2, 2)],
)
def test_run_killed_several_times_equals_an_uninterrupted_one(write_config, tmp_path, strategy, num_workers, devices):
    """The whole process group is killed: some milliseconds after a step, and while it starts."""

    def start(name: str, *arguments: str) -> ForkedFit:
        path = write_config(name, strategy=strategy, devices=devices)
        words = ["--config", path, *arguments, "--data.num_workers", str(num_workers)]
        return ForkedFit(words, tmp_path, devices)

    def finish(process: ForkedFit) -> None:
        assert process.wait(timeout=600) == 0, (tmp_path / "errors").read_text()[-3000:]

    def kill(process: ForkedFit) -> None:
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL

    finish(start("whole"))
    folder, moment = tmp_path / "killed", random.Random(f"{num_workers} {devices}")
    done = 0
    for most in (8, 14, 20) if devices == 1 else (8, 18):  # the last step after which it is killed
        process = start("killed", *resume_options(folder))
        done = moment.randint(done + 1, most)
        wait_for_step(folder, done, lambda process=process: process.poll() is None)
        time.sleep(moment.uniform(0, 0.05))
        kill(process)
        done = max(step for step, *_ in steps(folder))
    process = start("killed", *resume_options(folder))
    time.sleep(moment.uniform(0.5, 3))
    kill(process)
    finish(start("killed", *resume_options(folder)))
    assert_same_runs(folder, tmp_path / "whole", devices)
