"""The command line. Each command is named in one table, and its module is imported only when the command is called."""

import errno
import importlib
import inspect
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from lit_transfusion import __version__
from lit_transfusion.allowed_imports import OPTION, import_named
from lit_transfusion.errors import InputError
from lit_transfusion.printing import print_anything

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


class Command(NamedTuple):
    """One command. Its module is given as text, so that the table imports nothing (torch and Lightning take seconds).

    Args:
        implementation: module:function below lit_transfusion; None for the four commands of Lightning.
        summary: What it does, for the help.
        example: How it is called, for the help.
        classes: The modules of the classes that its options can name, below lit_transfusion.
        has_trainer: Whether the function takes the words of the command line, and gives them to LightningCLI.
    """

    implementation: str | None
    summary: str
    example: str
    classes: tuple[str, ...] = ()
    has_trainer: bool = False


SOURCES = ("data.sources", "shapes.edits", "shapes.source")
METRICS = ("evaluation", "shapes.captions", "shapes.geneval")
TRAIN = {
    "prepare": Command(
        "prepare.command:prepare",
        "pictures, once, into fast shards",
        "--input DIR --output SHARDS",
        ("latents",),
    ),
    "train_tokenizer": Command(
        "commands.train_tokenizer:train_tokenizer",
        "captions and texts into a vocabulary",
        "--config CONFIG --output tokenizer.model",
        SOURCES,
    ),
    "train_codec": Command(
        "config.codec:train_codec",
        "an autoencoder of pictures",
        "--config configs/codec_kl.yaml",
        has_trainer=True,
    ),
    "plan": Command(
        "commands.plan.command:plan",
        "memory, operations and days of a run",
        "--config configs/paper/7B.yaml --devices 8 --num_nodes 32",
        has_trainer=True,
    ),
    "fit": Command(None, "train", "--config configs/quickstart.yaml"),
    "validate": Command(None, "losses on the held-out pictures", "--config runs/NAME/config.yaml --ckpt_path last"),
    "test": Command(None, "the same, logged as test", "--config runs/NAME/config.yaml --ckpt_path last"),
    "predict": Command(None, "draw and caption held-out pictures", "--config runs/NAME/config.yaml --ckpt_path last"),
    "ablate": Command(
        "studies.command:ablate", "a study: arms x seeds, its report", "--config configs/ablate_mask.yaml --dry_run"
    ),
    "scaling": Command(
        "studies.scaling.command:scaling",
        "a study at several sizes and lengths, its laws",
        "--config configs/scaling.yaml --dry_run",
    ),
}
USE = {
    "generate": Command("commands.generate:generate", "draw a prompt, caption a picture", '--ckpt CKPT --prompt "..."'),
    "playground": Command("commands.playground.command:playground", "a page for the browser", "--ckpt CKPT"),
    "export": Command("commands.export:export", "a folder to share", "--ckpt CKPT --output DIR"),
}
MEASURE = {
    "evaluate": Command("commands.evaluate:evaluate", "losses, pictures, captions", "--ckpt CKPT", METRICS),
    "score_shapes": Command("shapes.score_shapes:score_shapes", "held-out shapes, drawn and described", "--ckpt CKPT"),
    "score_edits": Command("shapes.score_edits:score_edits", "edits of held-out shapes", "--ckpt CKPT"),
    "rank_choices": Command("commands.rank_choices:rank_choices", "text with choices, by lm-eval", "--ckpt CKPT"),
    "draw_benchmark": Command(
        "commands.draw_benchmark:draw_benchmark",
        "pictures for GenEval and COCO FID",
        "--ckpt CKPT --prompts FILE --output DIR",
    ),
}
COMMANDS = TRAIN | USE | MEASURE

HELP = """\
usage: python -m lit_transfusion COMMAND [OPTIONS]

Transfusion: one Transformer that writes text and draws images.

Train
{train}

Use (CKPT is runs/NAME/checkpoints/last.ckpt, or an exported folder)
{use}

Measure
{measure}

COMMAND --help lists the options of a command; --version prints the version of this package.

A checkpoint may contain classes from your own module. Every command takes --import_module MODULE, which imports it.

A run is configured by the defaults of the classes, then the files that a config builds on (`base:`), then the config,
then the command line. Later values replace earlier ones. `--print_config` prints the result.
"""


FULL = "free some space, then run the same command again (a run resumes with --ckpt_path last)"
LOCKED = "choose a directory that you can write to, or change its permissions"
FIXES = {  # file system errors that only the user can fix, with what to do
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EFBIG: FULL,
    errno.EACCES: LOCKED,
    errno.EPERM: LOCKED,
    errno.EROFS: LOCKED,
    errno.ENOTDIR: LOCKED,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command.

    Errors that the user can fix are printed in one line, with exit status 2. After Ctrl-C the status is 130, or 1 for a
    fit, which saves a checkpoint first (Lightning's status).
    """
    argv = sys.argv[1:] if argv is None else argv
    print_anything()
    quieten()
    try:
        with exit_on_sigterm():
            run(import_named(argv) or ["--help"])
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        message = message_for_user(error)
        if message is None:  # an error in the program: keep the traceback
            raise
        fail(message)


def run(argv: Sequence[str]) -> None:
    if argv[0] in ("-h", "--help"):
        print(help_text())
        sys.exit(0)
    if argv[0] == "--version":
        print(f"lit_transfusion {__version__}")
        sys.exit(0)
    if argv[0] not in COMMANDS and not argv[0].startswith("-"):
        raise InputError(f"unknown command {argv[0]!r}; known: {', '.join(COMMANDS)}")
    command = COMMANDS.get(argv[0])
    if command is None or command.implementation is None or command.has_trainer:
        run_trainer(argv)
    else:
        run_tool(argv[0], argv[1:])


def help_text() -> str:
    sections = {"train": TRAIN, "use": USE, "measure": MEASURE}
    return HELP.format(
        **{
            title: "\n".join(f"  {name:<16}{one.summary:<38}{name} {one.example}" for name, one in section.items())
            for title, section in sections.items()
        }
    )


def run_tool(name: str, argv: Sequence[str]) -> None:
    """Call a command that needs no trainer, with the options on the command line."""
    from lit_transfusion.config.argv import spell_out
    from lit_transfusion.config.messages import naming_likely_options, raising_own_errors

    tool, parser = tool_of(name), tool_parser(name)
    with raising_own_errors(), naming_likely_options(parser):
        options = parser.instantiate(parser.parse_args(spell_out(tool, argv)))
    options.pop("import_module")
    if "config" not in inspect.signature(tool).parameters:
        options.pop("config")
    tool(**options)


def tool_of(name: str) -> Callable[..., None]:
    """Import the function of a command that is not Lightning's."""
    module, _, function = (COMMANDS[name].implementation or "").partition(":")
    return getattr(importlib.import_module(f"lit_transfusion.{module}"), function)


def tool_parser(name: str) -> "ArgumentParser":
    """Make the parser of a command. Its options may also be in a --config file, unless `config` is one of them."""
    from jsonargparse import ActionConfigFile, ArgumentParser

    from lit_transfusion.config.registry import import_all

    import_all(COMMANDS[name].classes)
    tool = tool_of(name)
    description = inspect.getdoc(tool).partition("\n\nArgs:")[0]
    parser = ArgumentParser(prog=f"lit_transfusion {name}", description=description, exit_on_error=False)
    options = inspect.signature(tool).parameters
    if "source" in options:
        from lit_transfusion.config.actions import SourceFile

        text = "YAML file of a run, whose data.source is used, or a file with options of this command."
        parser.add_argument("--config", action=SourceFile, help=text)
    elif "config" not in options:
        parser.add_argument("--config", action=ActionConfigFile, help="YAML file with options of this command.")
    text = "Module with your own classes, which is imported first. Can be given several times."
    parser.add_argument(OPTION, metavar="MODULE", help=text)  # only for --help: `main` has removed it from argv
    parser.add_function_arguments(tool, as_group=False, as_positional=False, sub_configs=True)
    return parser


def run_trainer(argv: Sequence[str]) -> None:
    """Run one of Lightning's commands, or one that has a trainer of its own."""
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from lit_transfusion.config.lightning import run_lightning

    try:
        command = COMMANDS.get(argv[0])
        if command is not None and command.has_trainer:
            tool_of(argv[0])(argv[1:])
        else:
            run_lightning(argv, "Transfusion: one Transformer that writes text and draws images.")
    except SIGTERMException:  # Lightning raises it without a status
        sys.exit(143)


def message_for_user(error: Exception) -> str | None:
    """The message of an error that the user can fix; None for an error in the program."""
    from jsonargparse import ArgumentError
    from omegaconf.errors import OmegaConfBaseException

    from lit_transfusion.config.messages import one_line

    if isinstance(error, InputError | ArgumentError | OmegaConfBaseException):
        return one_line(error)
    if isinstance(error, ModuleNotFoundError):
        is_ours = (error.name or "").startswith("lit_transfusion")
        return None if is_ours else f"{one_line(error)}; install it, or leave out the option that needs it"
    if isinstance(error, OSError):
        where = error.filename2 or error.filename or "while writing"
        return f"{where}: {error.strerror}; {FIXES[error.errno]}" if error.errno in FIXES else None

    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    return one_line(error) if isinstance(error, MisconfigurationException) else None


def fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that it closes its files and stops its workers.

    A run that trains handles SIGTERM in `training/graceful_stop.py`.
    """

    def stop(*_: Any) -> None:
        sys.exit(143)

    if threading.current_thread() is not threading.main_thread():  # only the main thread has signal handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def quieten() -> None:
    """Leave out messages of Lightning and torch that are for developers."""
    ours = logging.getLogger("lit_transfusion")
    ours.setLevel(logging.INFO)
    # Not a handler of the root: Lightning, which is imported later, would then print each of its messages twice.
    if not ours.hasHandlers():
        ours.addHandler(logging.StreamHandler())
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(is_no_tip)
    for message in (
        ".*LeafSpec.*",
        ".*intended to run from within Python.*",
        ".*in eval mode at the start of training.*",  # the averaged weights
        ".*sync_dist=True.*",  # all ranks validate on the same batches
        ".*does not have many workers.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def is_no_tip(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()
