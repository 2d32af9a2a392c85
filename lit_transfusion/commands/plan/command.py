"""The `plan` command."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console

from lit_transfusion.commands.plan.compute import compute
from lit_transfusion.commands.plan.memory import memory
from lit_transfusion.commands.plan.parameters import parameters_of
from lit_transfusion.commands.plan.setup import read_setup
from lit_transfusion.commands.plan.tables import tables_of
from lit_transfusion.config.lightning import TransfusionCLI, arm_first, launch
from lit_transfusion.data.datamodule import TransfusionData
from lit_transfusion.errors import InputError, check_at_least
from lit_transfusion.training.lit_module import LitTransfusion

DESCRIPTION = (
    "Print what a run would cost: parameters, memory of a device, operations and days. It builds and reads no data."
)


@dataclass(frozen=True)
class Cluster:
    """The devices of a plan, and what is assumed of them.

    Args:
        devices: Devices of each node; null takes trainer.devices.
        num_nodes: Nodes; null takes trainer.num_nodes.
        peak_tflops: Peak of a device in TFLOP/s; 989 is an H100's for dense bf16 products.
        mfu: Share of the peak that the operations of the net reach, in (0, 1].
        memory_gb: Memory of a device in GB (1e9 bytes), to find the largest batch_size; null for no limit.
        latent_channels: Channels of the latents, if the folder of the VAE is not on this machine.
        downscale: Pixels per latent pixel along one side, if the folder of the VAE is not on this machine.
        json: Print JSON instead of tables.
    """

    devices: int | None = None
    num_nodes: int | None = None
    peak_tflops: float = 989.0
    mfu: float = 0.4
    memory_gb: float | None = None
    latent_channels: int = 8
    downscale: int = 8
    json: bool = False

    def __post_init__(self) -> None:
        for name in ("devices", "num_nodes"):
            if getattr(self, name) is not None:
                check_at_least(f"--{name}", getattr(self, name))
        for name in ("latent_channels", "downscale"):
            check_at_least(f"--{name}", getattr(self, name))
        if not 0 < self.mfu <= 1:
            raise InputError(f"--mfu {self.mfu} is invalid; use a share above 0 and up to 1")
        for name in ("peak_tflops", "memory_gb"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise InputError(f"--{name} {getattr(self, name)} is invalid; use a number above 0")


class PlanCLI(TransfusionCLI):
    """Parses the config of a `fit`, and creates nothing."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(Cluster)

    def instantiate_classes(self) -> None:
        pass


def plan(argv: Sequence[str]) -> None:
    """Print what a run would cost. `argv` has the words of the command line, without the command."""
    config = parse(argv)
    cluster = Cluster(**{field.name: config[field.name] for field in fields(Cluster)})
    result = plan_of(config, cluster)
    if cluster.json:
        print(json.dumps(result, indent=2))
        return
    console = Console()
    for shown in tables_of(result):
        console.print(shown, highlight=False, soft_wrap=isinstance(shown, str))


def parse(argv: Sequence[str]) -> Namespace:
    """The config of a `fit`, with the options of `Cluster`."""
    parts = (LitTransfusion, TransfusionData)
    return launch(PlanCLI, parts, arm_first(argv), "lit_transfusion plan", DESCRIPTION, run=False).config


def plan_of(config: Namespace, cluster: Cluster) -> dict[str, Any]:
    """The plan as plain data. Memory is in bytes.

    Args:
        config: The parsed config of a `fit`.
        cluster: The devices.

    Raises:
        InputError: The config is invalid, or cannot be planned.
    """
    setup = read_setup(config, cluster.latent_channels, cluster.downscale)
    devices = number_of(cluster.devices, config.trainer.devices) * number_of(
        cluster.num_nodes, config.trainer.num_nodes
    )
    net = setup.net()
    cost, memories = compute(setup, net, devices), memory(setup, net, devices)
    limit = None if cluster.memory_gb is None else 1e9 * cluster.memory_gb
    return {
        "devices": devices,
        "strategy": "fsdp2" if setup.sharded else "ddp" if devices > 1 else "one device",
        "precision": config.trainer.precision or "32-true",
        "sequence_length": setup.sequence_length,
        "batch_size": setup.batch_size,
        "accumulate_grad_batches": setup.accumulated,
        "activation_checkpointing": setup.checkpointing,
        "image_share": setup.image_share,
        "assumed_latents": [*setup.shape] if setup.latents.assumed else None,
        "parameters": parameters_of(setup, net),
        "ema": setup.ema,
        "memory": memories[setup.checkpointing].by_kind(setup.batch_size),
        "memory_limit": limit,
        "by_activation_checkpointing": {
            kind: {
                "memory": one.total(setup.batch_size),
                "largest_batch_size": None if limit is None else one.largest_batch(limit),
            }
            for kind, one in memories.items()
        },
        "tokens_per_step": cost.tokens,
        "flops_per_step": cost.flops,
        "steps": cost.steps,
        "tokens": cost.total_tokens,
        "flops": cost.total_flops,
        "six_n_d": cost.six_n_d,
        "peak_tflops": cluster.peak_tflops,
        "mfu": cluster.mfu,
        "days": cost.days(devices, cluster.peak_tflops, cluster.mfu),
    }


def number_of(asked: int | None, in_config: Any) -> int:
    """A number of devices or nodes. One that Lightning would find on this machine (`auto`, -1) is 1."""
    if asked is not None:
        return asked
    if isinstance(in_config, list):
        return len(in_config)
    return max(1, int(in_config)) if str(in_config).lstrip("-").isdecimal() else 1
