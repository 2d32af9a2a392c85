"""Sharded training: each process keeps a part of the weights, of their average and of the optimiser's state (FSDP2)."""

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

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
from lit_transfusion.model import Transfusion


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all devices of all nodes. (Lightning's own default is tensor parallelism within a node.)

    A checkpoint is a folder to which each process adds its part, and from which any number of processes can go on.

    Args:
        timeout: How long a process waits for the others.
    """

    def __init__(self, timeout: timedelta = timedelta(minutes=30)) -> None:
        super().__init__(1, 1, timeout=timeout)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Lightning reads weights right into the net; what does not fit is refused before that."""
        path = Path(self.broadcast(checkpoint_path))
        shapes = {"state_dict": shapes_of_shards(path)}
        rest = torch.load(path / META, map_location="cpu", weights_only=True)
        self.lightning_module.on_load_checkpoint(rest | shapes)
        return super().load_checkpoint(path, weights_only) | shapes


StrategyRegistry.register("fsdp2", FSDP2Strategy, description="FSDP2 over all devices")


def check_strategy(strategy: Strategy) -> None:
    """Refuse other ways to share out weights, of which clipping, averages and checkpoints here know nothing."""
    other = isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, FSDP2Strategy)
    if other or isinstance(strategy, FSDPStrategy | DeepSpeedStrategy):
        raise InputError(f"trainer.strategy {type(strategy).__name__} is not supported; use fsdp2 to share out weights")


def check_sharding(path: Path, strategy: Strategy) -> None:
    """Refuse a checkpoint that this strategy cannot read.

    Raises:
        InputError: It was written by another, or not to its end.
    """
    sharded = isinstance(strategy, FSDP2Strategy)
    if path.is_dir() and not is_whole(path):
        raise InputError(f"--ckpt_path {path}: this folder is no checkpoint, or one that was not written to its end")
    if path.is_dir() and not sharded:
        raise InputError(f"--ckpt_path {path} is of a sharded run: add --trainer.strategy fsdp2")
    if path.is_file() and sharded:
        raise InputError(
            f"--ckpt_path {path} is of a run that was not sharded: leave out --trainer.strategy fsdp2, or begin a new "
            f"run with its weights, --model.init_from {path}"
        )


def shard(net: Transfusion, mesh: DeviceMesh, bf16: bool) -> None:
    """Each block gathers its weights when it runs, and everything around the blocks when the net does.

    Under autocast to bf16, blocks gather theirs in bf16, half the bytes, and gradients are summed in float32. What else
    is cast is autocast's business: rotary angles, say, are not. Nor are the weights around the blocks: an embedding in
    bf16 would make the whole residual stream bf16, which under `ddp` is float32.
    """
    # Nothing writes into what the net returns before its backward pass begins.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    # The weights of a block's norms are gathered in bf16 with the rest; what they scale is float32, and stays so.
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    dtypes = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if bf16 else {}
    for block in net.transformer.blocks:
        fully_shard(block, mesh=mesh, mp_policy=MixedPrecisionPolicy(**dtypes, cast_forward_inputs=False))
    # The net, too, lets go after its forward pass: there may be no backward pass, and then the average is updated.
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    fully_shard(net, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
