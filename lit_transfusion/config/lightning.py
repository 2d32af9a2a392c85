"""LightningCLI for our parts: configs that build on other files, and links between parts."""

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Lightning 2.6 calls functions that jsonargparse 5 removes.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import lightning
import yaml
from jsonargparse import Namespace, set_parsing_settings
from jsonargparse.typing import restricted_number_type
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lit_transfusion import run_folder
from lit_transfusion.config.actions import ConfigFile, words_with_widths
from lit_transfusion.config.compose import compose, read, resolved, with_interpolations
from lit_transfusion.config.messages import naming_likely_options, raising_own_errors
from lit_transfusion.config.registry import PARTS, TRAINING_PARTS, import_all
from lit_transfusion.data.datamodule import TransfusionData
from lit_transfusion.diffusion import NoiseProcess
from lit_transfusion.errors import InputError
from lit_transfusion.generation.checkpoint import KEY, check_resumable
from lit_transfusion.hardware import has_bf16
from lit_transfusion.lightning_compat import model_checkpoints, parser_of
from lit_transfusion.model import SIZES
from lit_transfusion.training.fsdp import check_sharding, check_strategy
from lit_transfusion.training.language_model import find_language_model
from lit_transfusion.training.lit_module import LitTransfusion
from lit_transfusion.training.trainer_settings import as_list, settle

log = logging.getLogger(__name__)
import_all((*PARTS, *TRAINING_PARTS))
set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])  # the range of numpy


class Parser(LightningArgumentParser):
    """Stores the config before ${...} are resolved: jsonargparse dumps it to resolve it."""

    unresolved: dict[str, Any] | None = None

    def dump(self, *args: Any, **kwargs: Any) -> str:
        text = super().dump(*args, **kwargs)
        if "${" in text:
            self.unresolved = yaml.safe_load(text)
        return text


class RunCLI(LightningCLI):
    """The commands of a trainer, for any module and data module. With `run=False` it only creates the two.

    A subclass links what the two share.
    """

    checkpoint_key = KEY  # the entry by which checkpoints of this kind of run are known
    commands: Sequence[str] = ("fit", "validate", "test", "predict")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Making the parser of a command takes up to a second, so the others are left out.
        self.commands = [name for name in self.commands if name in kwargs["args"][:1]] or self.commands
        super().__init__(*args, **kwargs)

    def subcommands(self) -> dict[str, set[str]]:
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name in self.commands}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = Parser(**kwargs)
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
        parser.link_arguments("data.image_size", "model.image_size")
        parser.link_arguments("data.image_size", "data.source.init_args.image_size")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        with naming_likely_options(parser_of(self, args[0] if args else "")):
            super().parse_arguments(parser, args)
        command = self.config.get("subcommand")
        self.options = self.config[command] if command else self.config
        self.configs = [Path(path) for path in values_of(args, "-c", "--config")]
        self.directory_given = bool(values_of(args, "--trainer.default_root_dir"))
        arm = self.options.arm
        if arm is not None and not any("arm" in content for path in self.configs for _, content in compose(path, arm)):
            raise InputError(
                f"--arm {arm} is given, but no --config defines `arms:`; remove --arm, or use the file of a study"
            )

    def before_instantiate_classes(self) -> None:
        """Check the directory of the run, and replace `--ckpt_path last` by the path of the checkpoint."""
        if self.subcommand is None:
            return
        folder = Path(self.options.trainer.default_root_dir or ".").expanduser()
        if not self.directory_given:
            check_not_copied(self.configs, folder)
        ckpt_path = self.options.ckpt_path
        if ckpt_path is None and self.subcommand != "fit":
            raise InputError(f"{self.subcommand} needs weights: add --ckpt_path last or --ckpt_path FILE")
        if ckpt_path == "last":
            last = run_folder.last_checkpoint(folder)
            if last is None:
                raise InputError(
                    f"--ckpt_path last: no checkpoint in {folder / run_folder.CHECKPOINTS}; remove the option to start "
                    "a new run, or set trainer.default_root_dir"
                )
            self.options.ckpt_path = str(last)
        elif ckpt_path not in (None, "hpc") and not Path(ckpt_path).exists():
            raise InputError(f"--ckpt_path {ckpt_path} does not exist")

    def instantiate_classes(self) -> None:
        with raising_own_errors():
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer | None:
        if self.subcommand is None:
            return None
        fit = self.subcommand == "fit"
        config = {**self.config_init[self.subcommand].trainer, **kwargs}
        settle(config, fit)
        if fit and not config["fast_dev_run"]:
            config["callbacks"] = [*as_list(config["callbacks"]), SaveConfig(self._config_text())]
        try:
            return super().instantiate_trainer(**config)
        except InputError:
            raise
        except ValueError as error:  # the strategy does not exist, or not for this accelerator
            raise InputError(f"trainer: {error}") from None

    def _config_text(self) -> str:
        """The config of a run as YAML, without the checkpoint that this start resumes from."""
        written = self.parser.unresolved
        config = self.config.clone()
        config.fit.ckpt_path = None
        values = yaml.safe_load(self.parser.dump(config, skip_unset=False))["fit"]
        if written is not None:
            values = with_interpolations(values, written["fit"])
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    def before_fit(self) -> None:
        check_precision(self.trainer)
        check_strategy(self.trainer.strategy)
        self._before_any()

    def _before_any(self) -> None:
        check_places(self.trainer)
        if self.options.ckpt_path not in (None, "hpc"):
            # Otherwise Lightning would silently use random weights, or start from the beginning.
            check_sharding(Path(self.options.ckpt_path), self.trainer.strategy)
            check_resumable(Path(self.options.ckpt_path), self.subcommand == "fit", self.checkpoint_key)

    before_validate = before_test = before_predict = _before_any

    def fit(self, **options: Any) -> None:
        """Train. Lightning calls this instead of `Trainer.fit`."""
        with ExitStack() as held:
            if rank_zero_only.rank == 0 and not self.trainer.fast_dev_run:
                folder = Path(self.trainer.default_root_dir)
                held.enter_context(run_folder.locked(folder, new_run=self.options.ckpt_path is None))
            self.trainer.fit(**options)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would overwrite the YAML and the command line with values from the checkpoint."""


class TransfusionCLI(RunCLI):
    """The commands fit, validate, test and predict of a Transfusion net."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.link_arguments("data.tokenizer", "model.tokenizer", apply_on="instantiate")
        parser.link_arguments("data", "model.codec", compute_fn=lambda data: data.codec, apply_on="instantiate")
        parser.link_arguments("data.latent_channels", "model.patcher.init_args.latent_channels", apply_on="instantiate")
        parser.link_arguments("data.keep_ratio", "model.keep_ratio")
        parser.link_arguments("data.sequence_length", "model.sequence_length")
        parser.link_arguments("model.patcher.init_args.patch_size", "data.patch_size")
        parser.link_arguments("model.size", "model.patcher.init_args.dim", compute_fn=width)

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        use_size_of_language_model(self.options.model)

    def before_fit(self) -> None:
        super().before_fit()
        check_sampling(self.trainer, self.model.noise)


class SaveConfig(lightning.Callback):
    """Writes config.yaml of a fit when training starts, so that an error before the first step changes nothing."""

    def __init__(self, text: str) -> None:
        self.text = text

    @rank_zero_only
    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        run_folder.write_text(folder / run_folder.CONFIG, self.text)


def check_not_copied(configs: Sequence[Path], folder: Path) -> None:
    """Raise InputError if a config belongs to a run that was copied or moved, but names the original in `folder`."""
    for path in configs:
        home = path.parent
        if path.name != run_folder.CONFIG or not run_folder.is_run(home):
            continue
        named = resolved(read(path), "trainer.default_root_dir")
        if named and Path(named).resolve() == folder.resolve() != home.resolve():
            raise InputError(
                f"--config {path} belongs to the run in {home}, but its trainer.default_root_dir is {named}; add "
                f"--trainer.default_root_dir {home}, or another directory for a new run"
            )


def check_sampling(trainer: lightning.Trainer, noise: NoiseProcess) -> None:
    """Raise InputError if a callback would draw with a sampler or a number of steps that the noise process lacks."""
    for callback in trainer.callbacks:
        sampling = getattr(callback, "sampling", None)
        if sampling is not None:
            try:
                noise.check_sampler(sampling.sampler, sampling.num_inference_steps)
            except InputError as error:
                raise InputError(f"trainer.callbacks: {type(callback).__name__}: {error}") from None


def check_places(trainer: lightning.Trainer) -> None:
    """Raise InputError if a part would write outside the directory of the run."""
    places = [("callbacks: ModelCheckpoint.dirpath", part.dirpath) for part in model_checkpoints(trainer)]
    loggers = [part for part in trainer.loggers if isinstance(part, CSVLogger | TensorBoardLogger)]
    places += [(f"logger: {type(part).__name__}.save_dir", part.save_dir) for part in loggers]
    folder = Path(trainer.default_root_dir)
    for key, place in places:
        if place is not None and not Path(place).resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"trainer.{key} {place} is outside the run's directory (trainer.default_root_dir {folder}); start it "
                "with ${trainer.default_root_dir}"
            )


def run_lightning(argv: Sequence[str], description: str) -> None:
    """Run one of Lightning's subcommands."""
    start([argv[0], *arm_first(argv[1:])], description)


def parts_of(argv: Sequence[str]) -> TransfusionCLI:
    """Create the parts of a `fit` from its arguments: `.config`, `.datamodule` and `.model`."""
    return start(arm_first(argv), run=False)


def start(argv: list[str], description: str | None = None, run: bool = True) -> TransfusionCLI:
    return launch(TransfusionCLI, (LitTransfusion, TransfusionData), argv, "lit_transfusion", description, run)


def launch(
    cli: type[RunCLI],
    classes: tuple[type[lightning.LightningModule], type[lightning.LightningDataModule]],
    argv: list[str],
    prog: str,
    description: str | None = None,
    run: bool = True,
) -> Any:
    """Create the parts of a run from a command line whose first word is the subcommand, and run it."""
    return cli(
        *classes,
        parser_kwargs={
            "parser_mode": "omegaconf+",
            "description": description,
            "prog": prog,
            "exit_on_error": False,
        },
        auto_configure_optimizers=False,
        save_config_callback=None,
        args=words_with_widths(argv),
        run=run,
    )


def width(size: Any) -> int:
    """The width D of a size, which is a name or a mapping from YAML."""
    return SIZES[size].dim if isinstance(size, str) else size.get("init_args", size)["dim"]


def use_size_of_language_model(model: Namespace) -> None:
    """If `model.init_from` is a language model, set the fields of `model.size` that are its own."""
    language_model = model.init_from and find_language_model(model.init_from)
    if not language_model:
        return
    if isinstance(model.size, str):
        model.size = Namespace(asdict(SIZES[model.size]))
    fields = model.size.get("init_args", model.size)
    for name, value in language_model.size.items():
        fields[name] = value
    model.patcher.init_args.dim = fields.dim
    if rank_zero_only.rank == 0:
        log.info("model.size is that of %s: %s", model.init_from, language_model.size)


def check_precision(trainer: lightning.Trainer) -> None:
    if trainer.precision not in ("32-true", "64-true", "bf16-mixed"):
        # bf16 weights lose the small updates of AdamW and of the average. fp16's loss scaling bypasses our clipping.
        raise InputError(f"trainer.precision {trainer.precision} is not supported; use 32-true, 64-true or bf16-mixed")
    if trainer.precision.startswith("bf16") and not has_bf16(trainer.strategy.root_device):
        raise InputError(
            f"trainer.precision {trainer.precision}: this {trainer.strategy.root_device.type.upper()} has no bf16 "
            "arithmetic, so training would be several times slower than in float32; use 32-true"
        )


def values_of(words: Sequence[str], *names: str) -> list[str]:
    """The values of an option on the command line, written as `--name value` or `--name=value`."""
    pairs = zip(words, [*words, ""][1:], strict=True)
    split = [(*word.partition("="), following) for word, following in pairs]
    return [value if equals else following for name, equals, value, following in split if name in names]


def arm_first(words: Sequence[str]) -> list[str]:
    """Repeat `--arm` before `--config`, because reading the file needs the arm."""
    return [*(f"--arm={arm}" for arm in values_of(words, "--arm")), *words]
