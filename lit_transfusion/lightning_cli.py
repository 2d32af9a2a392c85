"""Lightning's command line for our parts: configs that build on others, and links between parts."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning 2.6 calls what jsonargparse 5 drops

import lightning
from jsonargparse import DefaultHelpFormatter, set_parsing_settings
from jsonargparse.typing import restricted_number_type
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from lit_transfusion.config_files import ConfigFile
from lit_transfusion.data.datamodule import TransfusionData
from lit_transfusion.errors import InputError
from lit_transfusion.generation.checkpoint import is_whole
from lit_transfusion.hardware import has_bf16
from lit_transfusion.model import SIZES
from lit_transfusion.refusals import in_its_own_words, naming_likely_options
from lit_transfusion.training import callbacks  # noqa: F401
from lit_transfusion.training.fsdp import check_sharding, check_strategy
from lit_transfusion.training.lit_module import LitTransfusion
from lit_transfusion.training.optim import WarmupCosine  # noqa: F401

set_parsing_settings(
    omegaconf_absolute_to_relative_paths=True,
    # YAML names classes; it must not name what runs commands.
    import_path_denylist=["os", "subprocess", "shutil", "builtins", "sys", "pty", "runpy", "importlib"],
)
Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])  # numpy takes no others
OmegaConf.register_resolver("mul", lambda a, b: a * b, replace=True)


class HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Leaves the lines of the description as they are."""


class TransfusionCLI(LightningCLI):
    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = LightningArgumentParser(**kwargs)
        parser.arm_found = False  # whether a --config has arms
        parser.add_argument(
            "-c", "--config", action=ConfigFile, help="YAML file of the run. Given several times, the later wins."
        )
        return parser

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        text = "Seed of the weights, and of data.seed and model.seed unless those are set."
        parser.add_argument("--seed_everything", type=Seed, default=0, help=text)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--arm", type=str | None, default=None, help="Arm of a study; null takes the first.")
        parser.set_defaults({"data.seed": "${..seed_everything}", "model.seed": "${..seed_everything}"})
        # What two parts must agree on is said once, and linked.
        parser.link_arguments("data.tokenizer", "model.tokenizer", apply_on="instantiate")
        parser.link_arguments("data", "model.codec", compute_fn=lambda data: data.codec, apply_on="instantiate")
        parser.link_arguments("data.latent_channels", "model.patcher.init_args.latent_channels", apply_on="instantiate")
        parser.link_arguments("data.image_size", "model.image_size")
        parser.link_arguments("data.sequence_length", "model.sequence_length")
        parser.link_arguments("data.image_size", "data.source.init_args.image_size")
        parser.link_arguments("model.patcher.init_args.patch_size", "data.patch_size")
        parser.link_arguments("model.size", "model.patcher.init_args.dim", compute_fn=width)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        with naming_likely_options(self._subcommand_parsers.get(args[0], parser)):
            super().parse_arguments(parser, args)
        arm = self.config[self.config.subcommand].arm
        if arm is not None and not self._parser(self.config.subcommand).arm_found:
            raise InputError(f"--arm {arm} has no meaning: no --config that is given has arms")

    def instantiate_classes(self) -> None:
        with in_its_own_words():
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        try:
            return super().instantiate_trainer(**kwargs)
        except InputError:
            raise
        except ValueError as error:  # a strategy that there is not, or not for this accelerator
            raise InputError(f"trainer: {error}") from None

    def before_fit(self) -> None:
        check_precision(self.trainer)
        check_strategy(self.trainer.strategy)
        self._check_ckpt_path()
        if self.config.fit.ckpt_path is None and not self.trainer.fast_dev_run:
            move_earlier_run_aside(Path(self.trainer.default_root_dir))

    before_validate = before_test = before_predict = lambda self: self._check_ckpt_path()

    def _check_ckpt_path(self) -> None:
        """Where Lightning would start from scratch, or judge random weights, say so instead."""
        ckpt_path = self.config[self.subcommand].ckpt_path
        if ckpt_path is None and self.subcommand != "fit":
            raise InputError(f"{self.subcommand} needs weights: add --ckpt_path last, or the path of a checkpoint")
        if ckpt_path in (None, "hpc"):
            return
        if ckpt_path == "last":
            ckpt_path = str(last_checkpoint(Path(self.trainer.default_root_dir) / "checkpoints"))
            self.config_init[self.subcommand].ckpt_path = ckpt_path
        if not Path(ckpt_path).exists():
            raise InputError(f"--ckpt_path {ckpt_path}: there is no such file")
        check_sharding(Path(ckpt_path), self.trainer.strategy)

    def _parse_ckpt_path(self) -> None:
        """Lightning would let what the checkpoint says win over the YAML and the command line."""


def last_checkpoint(folder: Path) -> Path:
    """A run that was killed while it moved the link to the last has none, or one to what it had just removed; a sharded
    one that was killed while it wrote a checkpoint has a folder that lacks something."""
    whole = [path for path in folder.glob("*.ckpt") if path.is_file() or is_whole(path)]
    if not whole:
        raise InputError(f"--ckpt_path last: there is no checkpoint in {folder}")
    named = [path for path in whole if path.name.startswith("last")]
    return max(named or whole, key=lambda path: path.stat().st_mtime_ns)


class PartsOnly(TransfusionCLI):
    """The data module and the model of a run, without a trainer, to look at before it is trained."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        with naming_likely_options(parser):
            LightningCLI.parse_arguments(self, parser, args)  # there is no subcommand whose arm to check

    def instantiate_trainer(self, **kwargs: Any) -> None:
        return None


def run_lightning(argv: Sequence[str], description: str) -> TransfusionCLI:
    """Run one of Lightning's subcommands."""
    return start(TransfusionCLI, [argv[0], *arm_first(argv[1:])], description)


def parts_of(argv: Sequence[str]) -> PartsOnly:
    """What the arguments of a `fit` describe: `.config`, `.datamodule` and `.model`."""
    return start(PartsOnly, arm_first(argv), run=False)


def start(cls: type[TransfusionCLI], argv: list[str], description: str | None = None, run: bool = True) -> Any:
    return cls(
        LitTransfusion,
        TransfusionData,
        parser_kwargs={
            "parser_mode": "omegaconf+",
            "description": description,
            "prog": "lit_transfusion",
            "exit_on_error": False,
            "formatter_class": HelpFormatter,
        },
        auto_configure_optimizers=False,
        save_config_callback=KeepConfig,
        save_config_kwargs={"overwrite": True},
        args=argv,
        run=run,
    )


def width(size: Any) -> int:
    """D of a size by name, or of one that is spelled out in YAML."""
    return SIZES[size].dim if isinstance(size, str) else size.get("init_args", size)["dim"]


class KeepConfig(SaveConfigCallback):
    """Writes config.yaml of a fit: what it was asked to do, not where it was once continued from; and not before that
    has come to its first step, since a continuation that is refused is none."""

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        pass

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.config = self.config.clone()
        self.config.ckpt_path = None
        super().setup(trainer, pl_module, "fit")


def check_precision(trainer: lightning.Trainer) -> None:
    if trainer.precision not in ("32-true", "64-true", "bf16-mixed"):
        # bf16 weights lose the small steps of AdamW and of the average; fp16's loss scaling runs past our clipping.
        raise InputError(f"trainer.precision {trainer.precision} is not supported; use 32-true or bf16-mixed")
    if trainer.precision.startswith("bf16") and not has_bf16(trainer.strategy.root_device):
        raise InputError(
            f"trainer.precision {trainer.precision}: this {trainer.strategy.root_device.type.upper()} has no bf16 "
            "arithmetic and would be several times slower than in float32; leave it at 32-true"
        )


@rank_zero_only
def move_earlier_run_aside(folder: Path) -> None:
    """A new run in the directory of an earlier one moves that to NAME.1, NAME.2, …: nothing is lost or mixed.

    A job that was preempted and queued again finds Lightning's own checkpoint there, and goes on.
    """
    is_run = (folder / "config.yaml").exists() and (folder / "tokenizer.model").exists()
    if not is_run or any(folder.glob("hpc_ckpt_*")) or Path.cwd().is_relative_to(folder.resolve()):
        return
    number = 1
    while (moved := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    folder.rename(moved)
    print(f"The earlier run in {folder} is now in {moved}. (To continue a run, add --ckpt_path last.)")


def arm_first(words: Sequence[str]) -> list[str]:
    """Put `--arm` before `--config`, wherever it was written: the file needs to know."""
    for i, word in enumerate(words):
        count = 2 if word == "--arm" else 1 if word.startswith("--arm=") else 0
        if count:
            return [*words[i : i + count], *words[:i], *words[i + count :]]
    return list(words)
