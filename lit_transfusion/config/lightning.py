"""LightningCLI for our parts: configs that build on other files, and links between parts."""

import argparse
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "JSONARGPARSE_DEPRECATION_WARNINGS", "off"
)  # Lightning 2.6 calls functions that jsonargparse 5 removes

import lightning
import yaml
from jsonargparse import DefaultHelpFormatter, set_parsing_settings
from jsonargparse.typing import restricted_number_type
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lit_transfusion import run_folder
from lit_transfusion.config.actions import ConfigFile, words_with_widths
from lit_transfusion.config.compose import read, resolved, with_interpolations
from lit_transfusion.config.messages import naming_likely_options, raising_own_errors
from lit_transfusion.config.registry import PARTS, TRAINING_PARTS, import_all
from lit_transfusion.data.datamodule import TransfusionData
from lit_transfusion.errors import InputError
from lit_transfusion.generation.checkpoint import check_resumable
from lit_transfusion.hardware import has_bf16
from lit_transfusion.model import SIZES
from lit_transfusion.training.fsdp import check_sharding, check_strategy
from lit_transfusion.training.lit_module import LitTransfusion
from lit_transfusion.training.trainer_settings import settle

import_all((*PARTS, *TRAINING_PARTS))
set_parsing_settings(
    omegaconf_absolute_to_relative_paths=True,
    # Prevents mistakes; this is not a security boundary. A config that you pass can import any other module.
    import_path_denylist=["os", "subprocess", "shutil", "builtins", "sys", "pty", "runpy", "importlib"],
)
Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])  # the range of numpy


class HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the description."""


class Parser(LightningArgumentParser):
    """Stores the config before ${...} are resolved: jsonargparse dumps it to resolve it."""

    unresolved: dict[str, Any] | None = None

    def dump(self, *args: Any, **kwargs: Any) -> str:
        text = super().dump(*args, **kwargs)
        if "${" in text:
            self.unresolved = yaml.safe_load(text)
        return text


class TransfusionCLI(LightningCLI):
    """The commands fit, validate, test and predict."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = Parser(**kwargs)
        parser.arm_found = False  # whether a --config has an arm
        parser.config_files = []  # the paths of all --config
        parser.add_argument(
            "-c", "--config", action=ConfigFile, help="YAML file of the run. If given several times, later values win."
        )
        return parser

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        text = "Seed of the weights. Also the default of data.seed and model.seed."
        parser.add_argument("--seed_everything", type=Seed, default=0, help=text)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--arm", type=str | None, default=None, help="Arm of a study; null is the first.")
        parser.set_defaults({"data.seed": "${..seed_everything}", "model.seed": "${..seed_everything}"})
        # A value that two parts share is set once and linked.
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
        self.directory_given = any(word.partition("=")[0] == "--trainer.default_root_dir" for word in args)
        arm = self.config[self.config.subcommand].arm
        if arm is not None and not self._parser(self.config.subcommand).arm_found:
            raise InputError(
                f"--arm {arm} is given, but no --config defines `arms:`; remove --arm, or use the file of a study"
            )

    def instantiate_classes(self) -> None:
        with raising_own_errors():
            super().instantiate_classes()

    def _instantiate_trainer(self, config: dict[str, Any], *args: Any) -> lightning.Trainer:
        settle(config, fit=self.subcommand == "fit")
        return super()._instantiate_trainer(config, *args)

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        if self.subcommand == "fit":
            self.save_config_kwargs = {"text": self._config_text()}
        try:
            return super().instantiate_trainer(**kwargs)
        except InputError:
            raise
        except ValueError as error:  # the strategy does not exist, or not for this accelerator
            raise InputError(f"trainer: {error}") from None

    def _config_text(self) -> str:
        """The config of a run as YAML, without the checkpoint that this start resumes from."""
        config = self.config.fit.clone()
        config.ckpt_path = None
        values = yaml.safe_load(self._parser("fit").dump(config, skip_unset=False))
        if self.parser.unresolved is not None:
            values = with_interpolations(values, self.parser.unresolved["fit"])
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    def _run_subcommand(self, subcommand: str) -> None:
        with ExitStack() as self.held:  # the lock of the run's directory
            super()._run_subcommand(subcommand)

    def before_fit(self) -> None:
        check_precision(self.trainer)
        check_strategy(self.trainer.strategy)
        self._check_directory()
        self._check_ckpt_path()
        if not self.trainer.fast_dev_run:
            self._lock()

    def _before_evaluation(self) -> None:
        self._check_directory()
        self._check_ckpt_path()

    before_validate = before_test = before_predict = _before_evaluation

    @rank_zero_only
    def _lock(self) -> None:
        folder = Path(self.trainer.default_root_dir)
        self.held.enter_context(run_folder.locked(folder, new_run=self.config.fit.ckpt_path is None))

    def _check_directory(self) -> None:
        """Check that all parts write into the directory of the run.

        Raises:
            InputError: A part would write elsewhere, or the config belongs to a run that was copied or moved.
        """
        folder = Path(self.trainer.default_root_dir)
        for key, place in places_of(self.trainer):
            if not Path(place).resolve().is_relative_to(folder.resolve()):
                raise InputError(
                    f"{key} {place} is outside the run's directory (trainer.default_root_dir {folder}); start it with "
                    "${trainer.default_root_dir}"
                )
        for path in [] if self.directory_given else self._parser(self.subcommand).config_files:
            home = Path(path).parent
            if Path(path).name != run_folder.CONFIG or not run_folder.is_run(home):
                continue
            named = resolved(read(Path(path)), "trainer.default_root_dir")
            if named and Path(named).resolve() == folder.resolve() != home.resolve():
                raise InputError(
                    f"--config {path} belongs to the run in {home}, but its trainer.default_root_dir is {named}; add "
                    f"--trainer.default_root_dir {home}, or another directory for a new run"
                )

    def _check_ckpt_path(self) -> None:
        """Raise InputError where Lightning would silently use random weights or start from scratch."""
        ckpt_path = self.config[self.subcommand].ckpt_path
        if ckpt_path is None and self.subcommand != "fit":
            raise InputError(f"{self.subcommand} needs weights: add --ckpt_path last or --ckpt_path FILE")
        if ckpt_path in (None, "hpc"):
            return
        if ckpt_path == "last":
            folder = Path(self.trainer.default_root_dir)
            last = run_folder.last_checkpoint(folder)
            if last is None:
                raise InputError(
                    f"--ckpt_path last: no checkpoint in {folder / run_folder.CHECKPOINTS}; remove the option to start "
                    "a new run, or set trainer.default_root_dir"
                )
            self.config_init[self.subcommand].ckpt_path = ckpt_path = str(last)
        if not Path(ckpt_path).exists():
            raise InputError(f"--ckpt_path {ckpt_path} does not exist")
        check_sharding(Path(ckpt_path), self.trainer.strategy)
        check_resumable(Path(ckpt_path), fit=self.subcommand == "fit")

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would overwrite the YAML and the command line with values from the checkpoint."""


def places_of(trainer: lightning.Trainer) -> list[tuple[str, str]]:
    """The key and the directory of each part that writes files."""
    checkpointers = [part for part in trainer.checkpoint_callbacks if isinstance(part, ModelCheckpoint)]
    loggers = [part for part in trainer.loggers if isinstance(part, CSVLogger | TensorBoardLogger)]
    places = [("trainer.callbacks: ModelCheckpoint.dirpath", part.dirpath) for part in checkpointers]
    places += [(f"trainer.logger: {type(part).__name__}.save_dir", part.save_dir) for part in loggers]
    return [(key, str(place)) for key, place in places if place is not None]


class PartsOnly(TransfusionCLI):
    """The data module and the model of a run, without a trainer."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        with naming_likely_options(parser):
            LightningCLI.parse_arguments(self, parser, args)  # without a subcommand, --arm is not checked

    def instantiate_trainer(self, **kwargs: Any) -> None:
        return None


def run_lightning(argv: Sequence[str], description: str) -> TransfusionCLI:
    """Run one of Lightning's subcommands."""
    return start(TransfusionCLI, [argv[0], *arm_first(argv[1:])], description)


def parts_of(argv: Sequence[str]) -> PartsOnly:
    """Create the parts of a `fit` from its arguments: `.config`, `.datamodule` and `.model`."""
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
        args=words_with_widths(argv),
        run=run,
    )


def width(size: Any) -> int:
    """The width D of a size, which is a name or a mapping from YAML."""
    return SIZES[size].dim if isinstance(size, str) else size.get("init_args", size)["dim"]


class KeepConfig(SaveConfigCallback):
    """Writes config.yaml of a fit when training starts, so that an error before the first step changes nothing."""

    def __init__(self, parser: LightningArgumentParser, config: Any, text: str = "") -> None:
        super().__init__(parser, config)
        self.text = text

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        pass

    @rank_zero_only
    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        run_folder.write_text(folder / run_folder.CONFIG, self.text)


def check_precision(trainer: lightning.Trainer) -> None:
    if trainer.precision not in ("32-true", "64-true", "bf16-mixed"):
        # bf16 weights lose the small updates of AdamW and of the average. fp16's loss scaling bypasses our clipping.
        raise InputError(f"trainer.precision {trainer.precision} is not supported; use 32-true, 64-true or bf16-mixed")
    if trainer.precision.startswith("bf16") and not has_bf16(trainer.strategy.root_device):
        raise InputError(
            f"trainer.precision {trainer.precision}: this {trainer.strategy.root_device.type.upper()} has no bf16 "
            "arithmetic, so training would be several times slower than in float32; use 32-true"
        )


def arm_first(words: Sequence[str]) -> list[str]:
    """Move `--arm` before `--config`, because reading the file needs the arm."""
    for i, word in enumerate(words):
        count = 2 if word == "--arm" else 1 if word.startswith("--arm=") else 0
        if count:
            return [*words[i : i + count], *words[:i], *words[i + count :]]
    return list(words)
