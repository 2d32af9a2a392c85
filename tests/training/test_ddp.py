"""Tests of training on two processes: the whole command, and batches that lack a modality on one rank."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from small_run import ENVIRONMENT, checkpoint

# The whole command


@pytest.mark.slow
def test_command_trains_on_two_processes(make_config, tmp_path):
    """The command starts the second process itself."""
    command = [sys.executable, "-m", "lit_transfusion", "fit", "--config", str(make_config("run"))]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "run"
    start, end = checkpoint(folder, 1), checkpoint(folder, 3)
    assert end["global_step"] == 3
    assert not torch.equal(start["state_dict"]["net.head.weight"], end["state_dict"]["net.head.weight"])
    ranks = end["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["ranks"]
    assert len(ranks) == 2 and all(rank["streams"][0]["used"] > 0 for rank in ranks) and ranks[0] != ranks[1]
    assert len(list((folder / "samples").glob("samples_*.png"))) == 3  # only rank 0 draws
    assert (folder / "config.yaml").exists() and not folder.with_name("run.1").exists()


@pytest.mark.slow
def test_stopped_and_resumed_run_equals_an_uninterrupted_one(fit, tmp_path):
    whole = fit("whole", "--trainer.limit_val_batches", "0")
    fit(
        "parts",
        *("--trainer.max_steps", "2", "--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "0"),
        *("--model.scheduler.total_steps", "3"),
    )
    parts = fit("parts", "--ckpt_path", "last", "--trainer.limit_val_batches", "0")
    first, second = checkpoint(whole, 3), checkpoint(parts, 3)
    for name, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][name]), name
    loaders = [c["loops"]["fit_loop"]["state_dict"]["combined_loader"] for c in (first, second)]
    assert loaders[0] == loaders[1]


@pytest.mark.slow
def test_run_of_two_processes_resumes_with_one_and_then_with_two(fit):
    """tests/data/test_mix.py tests which examples they read."""
    none = "--trainer.limit_val_batches", "0"
    fit("run", "--trainer.max_steps", "1", *none)
    fit("run", "--ckpt_path", "last", "--trainer.max_steps", "2", *none, ranks=1)
    folder = fit("run", "--ckpt_path", "last", "--trainer.max_steps", "3", *none)
    states = [checkpoint(folder, step)["loops"]["fit_loop"]["state_dict"]["combined_loader"][0] for step in (2, 3)]
    assert [len(state["ranks"]) for state in states] == [1, 2]
    assert checkpoint(folder, 3)["global_step"] == 3


@pytest.mark.slow
def test_ctrl_c_stops_both_processes_and_leaves_a_checkpoint(make_config, tmp_path):
    """The run draws samples after each step, so that the processes are rarely in the same function."""
    config = make_config("run", max_steps=100_000, val_check_interval=100_000)
    command = [sys.executable, "-m", "lit_transfusion", "fit", "--config", str(config), "--data.num_workers", "1"]
    with subprocess.Popen(command, env=ENVIRONMENT, cwd=tmp_path, start_new_session=True) as process:
        try:
            deadline = time.monotonic() + 120
            while not list(tmp_path.glob("run/checkpoints/*step=*")):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all processes of the command
            assert process.wait(timeout=60) == 1
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(last["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["ranks"]) == 2


# Batches that lack a modality on one rank


@pytest.mark.slow
def test_rank_without_images_or_without_text_does_not_block_the_other(tmp_path):
    """Each rank runs this file as a script, without `find_unused_parameters`."""
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path / "meeting"), str(tmp_path / f"{rank}.pt")],
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(errors)[-3000:]
    for first, second in zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True):
        assert first["without gradient"] == second["without gradient"] == [[], [], []]
        for name, weight in first["weights"].items():
            assert torch.equal(weight, second["weights"][name]), name
            assert not torch.equal(weight, first["start"][name]), name


def main(rank: int, meeting: str, output: str) -> None:
    from lit_transfusion.model import LinearPatcher, UNetPatcher

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    torch.save([train_as_rank(rank, patcher) for patcher in (LinearPatcher, UNetPatcher)], output)
    torch.distributed.destroy_process_group()


def train_as_rank(rank: int, patcher: type) -> dict:
    """Make three steps of DDP, in which this rank learns from text only, from an image only, and from both."""
    from functools import partial

    from lit_transfusion.data.grammar import caption_first, unconditional
    from lit_transfusion.data.packing import collate, flatten
    from lit_transfusion.data.tokenizer import Tokenizer
    from lit_transfusion.data.types import Document, TextSegment
    from lit_transfusion.diffusion import DDPM
    from lit_transfusion.latents import Pixels
    from lit_transfusion.model import Bidirectional, TransformerConfig
    from lit_transfusion.training.lit_module import LitTransfusion
    from lit_transfusion.training.optim import WarmupCosine, decay_groups

    torch.manual_seed(rank)  # DDP must copy the weights of rank 0 to all ranks
    tokenizer = Tokenizer.train(["a red circle", "two blue squares"], 300)
    module = LitTransfusion(
        tokenizer,
        Pixels(),
        image_size=4,
        patcher=patcher(3, 16, 2),
        mask=Bidirectional(),
        noise=DDPM(),
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
        scheduler=WarmupCosine,
        size=TransformerConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=32),
    )
    net = torch.nn.parallel.DistributedDataParallel(module.net)
    start = {name: weight.clone() for name, weight in module.net.state_dict().items()}
    optimizer = module.optimizer(decay_groups(module.net))
    image, words = torch.rand(3, 4, 4) * 2 - 1, tokenizer.encode("a red circle")
    text = Document((TextSegment((tokenizer.bos, *words, tokenizer.eos)),))
    both = caption_first(words, image, tokenizer)
    alone = unconditional(image, tokenizer)
    without_gradient = []
    for documents in [(text, both), (both, alone), (alone, text)]:
        batch = collate([[flatten(documents[rank], tokenizer, lambda image: 4)]], 24, tokenizer.pad, (3, 4, 4))
        terms, _ = module.losses(net, batch, torch.Generator().manual_seed(rank))
        optimizer.zero_grad()
        terms.total.backward()
        without_gradient.append([name for name, p in module.net.named_parameters() if p.grad is None])
        optimizer.step()
    return {"without gradient": without_gradient, "weights": module.net.state_dict(), "start": start}


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
