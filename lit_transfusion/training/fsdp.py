"""Sharded training (FSDP2): each process has a part of the weights, the average and the optimiser state."""

import warnings
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
    StrategyRegistry,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from lit_transfusion.errors import InputError
from lit_transfusion.generation.checkpoint import META, is_whole, shapes_of_shards
from lit_transfusion.lightning_compat import shard_over_all_devices
from lit_transfusion.model import Transfusion

if TYPE_CHECKING:
    from lit_transfusion.training.lit_module import LitTransfusion


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all devices of all nodes. (Lightning's default is tensor parallelism within a node.)

    A checkpoint is a folder to which each process writes its part. Any number of processes can resume from it.

    Args:
        timeout: Maximum time that a process waits for the others.
    """

    def __init__(self, timeout: timedelta = timedelta(minutes=30)) -> None:
        super().__init__(1, 1, timeout=timeout)

    def setup_environment(self) -> None:
        shard_over_all_devices(self)
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Check the checkpoint first, because Lightning then reads the weights directly into the net."""
        path = Path(self.broadcast(checkpoint_path))
        shapes = {"state_dict": shapes_of_shards(path)}
        rest = torch.load(path / META, map_location="cpu", weights_only=True)
        self.lightning_module.on_load_checkpoint(rest | shapes)
        return super().load_checkpoint(path, weights_only) | shapes


StrategyRegistry.register("fsdp2", FSDP2Strategy, description="FSDP2 over all devices")


def check_strategy(strategy: Strategy) -> None:
    """Reject sharding strategies that clipping, the average and checkpoints do not support.

    Raises:
        InputError: The strategy shards weights and is not `fsdp2`.
    """
    other = isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, FSDP2Strategy)
    if other or isinstance(strategy, FSDPStrategy | DeepSpeedStrategy):
        raise InputError(f"trainer.strategy {type(strategy).__name__} is not supported; use fsdp2 to shard weights")


def check_sharding(path: Path, strategy: Strategy) -> None:
    """Check that this strategy can read a checkpoint.

    Raises:
        InputError: The checkpoint is from a run with another kind of strategy, or incomplete.
    """
    sharded = isinstance(strategy, FSDP2Strategy)
    if path.is_dir() and not is_whole(path):
        raise InputError(f"--ckpt_path {path} is not a checkpoint, or an incomplete one; use an earlier checkpoint")
    if path.is_dir() and not sharded:
        raise InputError(f"--ckpt_path {path} is from a sharded run: add --trainer.strategy fsdp2")
    if path.is_file() and sharded:
        raise InputError(
            f"--ckpt_path {path} is from a run that was not sharded: omit --trainer.strategy fsdp2, or start a new run "
            f"with its weights (--model.init_from {path})"
        )


def shard_nets(module: "LitTransfusion", mesh: DeviceMesh) -> None:
    """Shard the net of a module, and its average if there is one.

    Raises:
        InputError: The hooks of FSDP2 cannot be compiled, but would be inside a function that must be compiled as a
            whole.
    """
    if not module.can_be_sharded:
        raise InputError(
            "model.compile true with model.activation_checkpointing selective compiles nothing with fsdp2; set "
            "model.activation_checkpointing to full or none, or model.compile to false"
        )
    for net in filter(None, (module.net, module.ema)):
        shard(net, mesh, bf16=module.trainer.precision == "bf16-mixed")
    if module.auxiliary is not None:
        fully_shard(module.auxiliary, mesh=mesh)


def shard(net: Transfusion, mesh: DeviceMesh, bf16: bool) -> None:
    """Shard a net. Each block gathers its weights when it runs; the other weights are gathered when the net runs.

    With bf16, blocks gather their weights in bf16, which is half the bytes, and gradients are summed in float32.
    Autocast decides about all other casts; rotary angles, for example, stay float32. The weights outside the blocks
    stay float32, too: a bf16 embedding would make the whole residual stream bf16, which with `ddp` is float32.

    Args:
        net: The net, which is changed in place.
        mesh: Mesh with one dimension.
        bf16: Gather the weights of the blocks in bf16.
    """
    # This warning does not apply: nothing writes to the output of the net before the backward pass.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    # The norms of a block have bf16 weights like the rest of the block; their float32 input stays float32.
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    dtypes = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if bf16 else {}
    for block in net.transformer.blocks:
        fully_shard(block, mesh=mesh, mp_policy=MixedPrecisionPolicy(**dtypes, cast_forward_inputs=False))
    # Reshard the net after its forward pass, too: there may be no backward pass before the average is updated.
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    fully_shard(net, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
