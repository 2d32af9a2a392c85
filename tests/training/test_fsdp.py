"""Tests of sharded training: the same weights as with DDP, complete checkpoints, and exact resume."""

import os

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from small_run import checkpoint
from test_resume import assert_same as assert_bit_equal
from torch.distributed.device_mesh import init_device_mesh

from lit_transfusion.diffusion import DDPM
from lit_transfusion.errors import InputError
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.latents import Pixels
from lit_transfusion.run_folder import last_checkpoint
from lit_transfusion.training.fsdp import FSDP2Strategy, check_sharding, check_strategy, shard
from lit_transfusion.training.objective import run_with_noise

SHARDED = "--trainer.strategy", "fsdp2"


def assert_same(first, second, **tolerance):
    assert first["state_dict"].keys() == second["state_dict"].keys()
    torch.testing.assert_close(first["state_dict"], second["state_dict"], **tolerance)
    loaders = [run["loops"]["fit_loop"]["state_dict"]["combined_loader"] for run in (first, second)]
    assert loaders[0] == loaders[1]


@pytest.mark.slow
def test_two_processes_train_as_with_ddp(fit):
    """The tolerance is for gradients summed in another order. Both processes draw samples, and one writes them."""
    expected, folder = fit("ddp"), fit("sharded", *SHARDED)
    assert_same(checkpoint(folder, 3), checkpoint(expected, 3), atol=1e-6, rtol=1e-5)
    assert len(list((folder / "samples").glob("samples_*.png"))) == 3
    last = folder / "checkpoints" / "last.ckpt"
    parts = [path.stat().st_size for path in last.glob("*.distcp")]
    assert len(parts) == 2 and max(parts) < 1.5 * min(parts)  # each has written its part
    assert Pipeline.from_pretrained(last).net.head.weight.dtype == torch.float32


REPA = ("--model.ema_decay", "null", "--model.auxiliary", "REPA", "--model.auxiliary.layer", "1")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [("--model.compile", "true"), ("--model.activation_checkpointing", "full"), REPA],
    ids=["compiled", "checkpointing", "no average, REPA"],
)
def test_stopped_and_resumed_run_equals_an_uninterrupted_one(fit, options):
    options = *SHARDED, *options, "--trainer.limit_val_batches", "0"
    whole = fit("whole", *options)
    fit(
        "parts",
        *(*options, "--trainer.max_steps", "2", "--trainer.limit_train_batches", "3"),
        *("--model.scheduler.total_steps", "3"),
    )
    parts = fit("parts", "--ckpt_path", "last", *options)
    first, second = checkpoint(whole, 3), checkpoint(parts, 3)
    assert_same(first, second, atol=0, rtol=0)
    assert_bit_equal(first["optimizer_states"], second["optimizer_states"])


@pytest.mark.slow
def test_resumed_run_uses_new_settings_as_with_ddp(fit):
    """torch loads a sharded optimizer by the optimizer's own method, so the hook applies."""
    options = "--trainer.limit_val_batches", "0"
    new = "--ckpt_path", "last", "--model.optimizer.lr", "1e-2", "--model.optimizer.weight_decay", "0.3"
    ends = []
    for name, strategy in (("ddp", ()), ("sharded", SHARDED)):
        fit(name, *options, *strategy, "--trainer.max_steps", "2")
        ends.append(checkpoint(fit(name, *options, *strategy, *new), 3))
    assert_same(*ends, atol=1e-6, rtol=1e-5)
    for end in ends:
        groups = end["optimizer_states"][0]["param_groups"]
        assert [group["initial_lr"] for group in groups] == [1e-2] * 2
        assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
        assert groups[0]["lr"] == pytest.approx(1e-2 * 4 / 100)  # warm-up of the default config


@pytest.mark.slow
def test_run_of_two_processes_resumes_with_one_and_then_with_two(fit):
    options = *SHARDED, "--trainer.limit_val_batches", "0"
    fit("run", *options, "--trainer.max_steps", "1")
    fit("run", *options, "--trainer.max_steps", "2", "--ckpt_path", "last", ranks=1)
    folder = fit("run", *options, "--ckpt_path", "last")
    states = [checkpoint(folder, step)["loops"]["fit_loop"]["state_dict"]["combined_loader"][0] for step in (2, 3)]
    assert [len(state["ranks"]) for state in states] == [1, 2]
    weights = [checkpoint(folder, step)["state_dict"]["net.head.weight"] for step in (1, 2, 3)]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    # The weights were not initialised again: a step of Adam changes a weight by little more than the rate.
    assert (weights[2] - weights[0]).abs().max() < 0.01


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_in_bf16_and_compiled(fit):
    gpu = "--trainer.accelerator", "gpu", "--trainer.precision", "bf16-mixed"
    folder = fit("run", *SHARDED, *gpu, "--model.compile", "true", ranks=1)
    assert all(weight.isfinite().all() for weight in checkpoint(folder, 3)["state_dict"].values())
    assert len(list((folder / "samples").glob("samples_*.png"))) == 3


# How a net is sharded


@pytest.fixture
def mesh(tmp_path):
    """A mesh of this process only."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,), mesh_dim_names=("data_parallel",))
    dist.destroy_process_group()


def test_residual_stream_is_float32_with_bf16_as_with_ddp(make_module, make_batch, mesh):
    net, dtypes = make_module().net, {}

    def note(block, inputs):
        dtypes.update(stream=inputs[0].dtype, gathered=block.attention.qkv.weight.dtype)

    shard(net, mesh, bf16=True)
    net.transformer.blocks[0].register_forward_pre_hook(note)
    batch = make_batch()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        run_with_noise(net, DDPM(), Pixels(), batch, torch.Generator())
    assert dtypes == {"stream": torch.float32, "gathered": torch.bfloat16}


def test_settings_that_would_compile_nothing_are_an_error(make_module, mesh):
    module = make_module(compile=True, activation_checkpointing="selective")
    module.configure_model()  # no error without sharding
    module._device_mesh = mesh
    with pytest.raises(InputError, match=r"model\.compile .*fsdp2.*activation_checkpointing to full or none"):
        module.configure_model()


@pytest.mark.parametrize("strategy", [FSDPStrategy(), ModelParallelStrategy()])
def test_other_sharding_strategies_are_an_error(strategy):
    check_strategy(FSDP2Strategy())
    check_strategy(DDPStrategy())
    with pytest.raises(InputError, match=f"trainer.strategy {type(strategy).__name__} .*fsdp2"):
        check_strategy(strategy)


# Checkpoints and strategies


@pytest.fixture
def checkpoints(tmp_path):
    """A file, a folder of shards, and an incomplete folder, each later than the one before."""
    folder = tmp_path / "checkpoints"
    for name in ("shards.ckpt", "torn.ckpt"):
        (folder / name).mkdir(parents=True)
        (folder / name / ".metadata").write_text("")
    (folder / "file.ckpt").write_text("")
    (folder / "shards.ckpt" / "meta.pt").write_text("")
    for seconds, name in enumerate(("file", "shards", "torn")):
        os.utime(folder / f"{name}.ckpt", (seconds, seconds))
    return folder


@pytest.mark.parametrize(
    ("name", "strategy", "message"),
    [
        ("shards.ckpt", DDPStrategy(), "shards.ckpt .*add --trainer.strategy fsdp2"),
        ("file.ckpt", FSDP2Strategy(), "file.ckpt .*not sharded: .*--trainer.strategy fsdp2.*--model.init_from"),
        ("torn.ckpt", FSDP2Strategy(), "torn.ckpt .*incomplete.*use an earlier checkpoint"),
        ("torn.ckpt", DDPStrategy(), "torn.ckpt .*incomplete.*use an earlier checkpoint"),
        ("shards.ckpt", FSDP2Strategy(), None),
        ("file.ckpt", DDPStrategy(), None),
    ],
)
def test_checkpoint_that_the_strategy_cannot_read_is_an_error(checkpoints, name, strategy, message):
    if message is None:
        check_sharding(checkpoints / name, strategy)
    else:
        with pytest.raises(InputError, match=message):
            check_sharding(checkpoints / name, strategy)


def test_last_checkpoint_is_a_complete_one(checkpoints):
    run = checkpoints.parent
    assert last_checkpoint(run).name == "shards.ckpt"
    (checkpoints / "last.ckpt").symlink_to("file.ckpt")
    assert last_checkpoint(run).name == "last.ckpt"
    (checkpoints / "file.ckpt").unlink()
    assert last_checkpoint(run).name == "shards.ckpt"
    assert last_checkpoint(run / "nothing") is None
