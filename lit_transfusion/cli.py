"""The command: Lightning's subcommands on composed YAML files, and the tools that need no trainer."""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning 2.6 calls what jsonargparse 5 drops

import lightning
import torch
from jsonargparse import ActionConfigFile, ArgumentError, Namespace, auto_cli, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import OmegaConf

from lit_transfusion.composition import compose
from lit_transfusion.data.datamodule import TransfusionData
from lit_transfusion.data.sources import ImageCaptions, OpenMoji, Shapes  # noqa: F401 (so that YAML can name them)
from lit_transfusion.errors import InputError
from lit_transfusion.generation.command import generate
from lit_transfusion.model import SIZES
from lit_transfusion.training import callbacks  # noqa: F401
from lit_transfusion.training.lit_module import LitTransfusion
from lit_transfusion.training.optim import WarmupCosine  # noqa: F401

TOOLS = {"generate": generate}  # need a checkpoint and nothing else

DESCRIPTION = """\
Transfusion: one Transformer that writes text and draws images.

  fit        train                                   fit --config configs/quickstart.yaml
  validate   losses on the held-out pictures         validate --config runs/NAME/config.yaml --ckpt_path last
  test       the same, logged as test                test --config runs/NAME/config.yaml --ckpt_path last
  predict    draw and caption held-out pictures      predict --config runs/NAME/config.yaml --ckpt_path last
  generate   draw a prompt, caption a picture        generate --ckpt runs/NAME/checkpoints/last.ckpt --prompt "..."

Each has a --help of its own. A run is: the defaults of the classes < the files that a config builds on (`base:`) <
the config < the command line. `--print_config` shows the whole.
"""


class ConfigFile(ActionConfigFile):
    """A --config file that may build on others (`base:`) and may hold the arms of a study (`arms:`)."""

    def __call__(self, parser, cfg: Namespace, values: str, option_string: str | None = None) -> None:
        if not isinstance(values, str) or "\n" in values:  # not a path: already content
            return super().__call__(parser, cfg, values, option_string)
        for path, content in compose(values, cfg.get("arm")):
            try:
                super().__call__(parser, cfg, OmegaConf.to_yaml(content), option_string)
            except (ArgumentError, TypeError, ValueError) as error:
                raise InputError(f"{path}: {error}") from error


class TransfusionCLI(LightningCLI):
    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = LightningArgumentParser(**kwargs)
        parser.add_argument(
            "-c", "--config", action=ConfigFile, help="YAML file of the run. Given several times, the later wins."
        )
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--arm", type=str | None, default=None, help="Arm of a study; null takes the first.")
        # What two parts must agree on is said once, and linked.
        parser.link_arguments("data.tokenizer", "model.tokenizer", apply_on="instantiate")
        parser.link_arguments("data", "model.codec", compute_fn=lambda data: data.codec, apply_on="instantiate")
        parser.link_arguments("data.latent_channels", "model.patcher.init_args.latent_channels", apply_on="instantiate")
        parser.link_arguments("data.image_size", "model.image_size")
        parser.link_arguments("data.image_size", "data.source.init_args.image_size")
        parser.link_arguments("model.patcher.init_args.patch_size", "data.patch_size")
        parser.link_arguments("model.size", "model.patcher.init_args.dim", compute_fn=width)

    def before_fit(self) -> None:
        check_precision(self.trainer)
        self._check_last()
        if self.config.fit.ckpt_path is None:
            move_earlier_run_aside(Path(self.trainer.default_root_dir))

    before_validate = before_test = before_predict = lambda self: self._check_last()

    def _check_last(self) -> None:
        """Lightning starts from scratch if there is nothing to continue."""
        if self.config[self.subcommand].ckpt_path != "last":
            return
        folder = Path(self.trainer.default_root_dir) / "checkpoints"
        if not any(folder.glob("last*.ckpt")):
            raise InputError(f"--ckpt_path last: there is no checkpoint in {folder}")

    def _parse_ckpt_path(self) -> None:
        """Lightning would let what the checkpoint says win over the YAML and the command line."""


def width(size: Any) -> int:
    return SIZES[size].dim if isinstance(size, str) else size["dim"] if isinstance(size, dict) else size.dim


def check_precision(trainer: lightning.Trainer) -> None:
    fast = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_avx512_bf16_supported()
    if trainer.precision.startswith("bf16") and trainer.strategy.root_device.type == "cpu" and not fast:
        raise InputError(
            f"trainer.precision {trainer.precision}: this CPU has no bf16 arithmetic and would be several times slower "
            "than in float32; leave it at 32-true"
        )


@rank_zero_only
def move_earlier_run_aside(folder: Path) -> None:
    """A new run in the directory of an earlier one moves that to NAME.1, NAME.2, …: nothing is lost or mixed.

    A job that was preempted and queued again finds Lightning's own checkpoint there, and goes on.
    """
    if not (folder / "config.yaml").exists() or any(folder.glob("hpc_ckpt_*")):
        return
    number = 1
    while (moved := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    folder.rename(moved)
    print(f"The earlier run in {folder} is now in {moved}. (To continue a run, add --ckpt_path last.)")


def arm_first(argv: Sequence[str]) -> list[str]:
    """Put `--arm` before `--config`, wherever it was written: the file needs to know."""
    argv = list(argv)
    for i, word in enumerate(argv[1:], 1):
        count = 2 if word == "--arm" else 1 if word.startswith("--arm=") else 0
        if count:
            return [argv[0], *argv[i : i + count], *argv[1:i], *argv[i + count :]]
    return argv


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. What the user can mend is said in one line, with exit status 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    quieten()
    try:
        if argv and argv[0] in TOOLS:
            auto_cli(TOOLS[argv[0]], args=argv[1:], prog=f"lit_transfusion {argv[0]}")
            return
        set_parsing_settings(
            omegaconf_absolute_to_relative_paths=True,
            # YAML names classes; it must not name what runs commands.
            import_path_denylist=["os", "subprocess", "shutil", "builtins", "sys", "pty", "runpy", "importlib"],
        )
        OmegaConf.register_resolver("mul", lambda a, b: a * b, replace=True)
        TransfusionCLI(
            LitTransfusion,
            TransfusionData,
            parser_kwargs={"parser_mode": "omegaconf+", "description": DESCRIPTION, "prog": "lit_transfusion"},
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            args=arm_first(argv),
        )
    except SIGTERMException:
        sys.exit(143)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def quieten() -> None:
    """Leave out what Lightning and torch say to their own developers."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("lit_transfusion").setLevel(logging.INFO)
    for name in ("lightning.pytorch", "lightning"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(lambda record: "Tip:" not in record.getMessage())
    for message in (".*LeafSpec.*", ".*intended to run from within Python.*"):
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
