"""The command: Lightning's subcommands on composed YAML files, and the tools that need no trainer."""

import errno
import inspect
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from omegaconf.errors import OmegaConfBaseException

import lit_transfusion.config.registry  # noqa: F401
from lit_transfusion.allowed_imports import OPTION, import_named
from lit_transfusion.commands.draw_benchmark import draw_benchmark
from lit_transfusion.commands.evaluate import evaluate
from lit_transfusion.commands.export import export
from lit_transfusion.commands.generate import generate
from lit_transfusion.commands.playground.command import playground
from lit_transfusion.commands.rank_choices import rank_choices
from lit_transfusion.commands.train_tokenizer import train_tokenizer
from lit_transfusion.config.actions import SourceFile
from lit_transfusion.config.argv import spell_out
from lit_transfusion.config.lightning import TransfusionCLI, run_lightning
from lit_transfusion.config.messages import in_its_own_words, naming_likely_options, one_line
from lit_transfusion.errors import InputError
from lit_transfusion.prepare.command import prepare
from lit_transfusion.printing import print_anything
from lit_transfusion.shapes.score_edits import score_edits
from lit_transfusion.shapes.score_shapes import score_shapes
from lit_transfusion.studies.command import ablate

TOOLS = {  # need no trainer
    "prepare": prepare,
    "train_tokenizer": train_tokenizer,
    "generate": generate,
    "evaluate": evaluate,
    "ablate": ablate,
    "export": export,
    "playground": playground,
    "score_shapes": score_shapes,
    "score_edits": score_edits,
    "rank_choices": rank_choices,
    "draw_benchmark": draw_benchmark,
}

DESCRIPTION = """\
Transfusion: one Transformer that writes text and draws images.

Train
  prepare         pictures, once, into fast shards      prepare --input DIR --output SHARDS
  train_tokenizer captions and texts into a vocabulary  train_tokenizer --config CONFIG --output tokenizer.model
  fit             train                                 fit --config configs/quickstart.yaml
  validate        losses on the held-out pictures       validate --config runs/NAME/config.yaml --ckpt_path last
  test            the same, logged as test              test --config runs/NAME/config.yaml --ckpt_path last
  predict         draw and caption held-out pictures    predict --config runs/NAME/config.yaml --ckpt_path last
  ablate          a study: arms x seeds, its report     ablate --config configs/ablate_mask.yaml --dry_run

Use (CKPT is runs/NAME/checkpoints/last.ckpt, or what was exported from it)
  generate        draw a prompt, caption a picture      generate --ckpt CKPT --prompt "..."
  playground      a page for the browser                playground --ckpt CKPT
  export          a folder to give away                 export --ckpt CKPT --output DIR

Measure
  evaluate        losses, pictures, captions            evaluate --ckpt CKPT
  score_shapes    held-out shapes, drawn and described  score_shapes --ckpt CKPT
  score_edits     edits of held-out shapes              score_edits --ckpt CKPT
  rank_choices    text with choices, by lm-eval         rank_choices --ckpt CKPT
  draw_benchmark  pictures for GenEval and COCO FID     draw_benchmark --ckpt CKPT --prompts FILE --output DIR

With classes of your own in a checkpoint: any of these takes --import_module MODULE, which imports MODULE first.

Each has a --help of its own. A run is: the defaults of the classes < the files that a config builds on (`base:`) <
the config < the command line. `--print_config` shows the whole.
"""


FULL = "free some space, then run the same command again (a run resumes with --ckpt_path last)"
LOCKED = "choose a directory that can be written to, or change its permissions"
USERS_ERRORS = {  # errors of the file system that only the user can do something about, and what
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EFBIG: FULL,
    errno.EACCES: LOCKED,
    errno.EPERM: LOCKED,
    errno.EROFS: LOCKED,
    errno.ENOTDIR: LOCKED,
}


def run_tool(name: str, argv: Sequence[str]) -> None:
    """Call a tool with what stands on the command line."""
    parser = tool_parser(name)
    with in_its_own_words(), naming_likely_options(parser):
        options = parser.instantiate(parser.parse_args(spell_out(TOOLS[name], argv)))
    options.pop("import_module")
    if "config" not in inspect.signature(TOOLS[name]).parameters:
        options.pop("config")
    TOOLS[name](**options)


def tool_parser(name: str) -> ArgumentParser:
    """Knows the options of a tool; they may also stand in a --config file, unless that is one of them."""
    tool = TOOLS[name]
    description = inspect.getdoc(tool).partition("\n\nArgs:")[0]
    parser = ArgumentParser(prog=f"lit_transfusion {name}", description=description, exit_on_error=False)
    options = inspect.signature(tool).parameters
    if "source" in options:
        said = "YAML file of a run, whose data.source is meant, or one with options of this command."
        parser.add_argument("--config", action=SourceFile, help=said)
    elif "config" not in options:
        parser.add_argument("--config", action=ActionConfigFile, help="YAML file with options of this command.")
    said = "Module that holds classes of your own, to be imported first. May be given several times."
    parser.add_argument(OPTION, metavar="MODULE", help=said)  # for --help; `main` has taken it
    parser.add_function_arguments(tool, as_group=False, as_positional=False, sub_configs=True)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. What the user can mend is said in one line, with exit status 2; Ctrl-C ends a tool with 130, as
    a shell has it, and a fit, after its checkpoint, with Lightning's 1."""
    argv = sys.argv[1:] if argv is None else argv
    print_anything()
    quieten()
    try:
        with sigterm_raises():
            run(import_named(argv) or ["--help"])
    except SIGTERMException:
        sys.exit(143)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except (InputError, ArgumentError, OmegaConfBaseException, MisconfigurationException) as error:
        fail(one_line(error))
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("lit_transfusion"):  # an error of ours
            raise
        fail(f"{one_line(error)}; install it, or leave out what needs it")
    except OSError as error:
        if error.errno not in USERS_ERRORS:
            raise
        where = error.filename2 or error.filename or "while writing"
        fail(f"{where}: {error.strerror}; {USERS_ERRORS[error.errno]}")


def fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def run(argv: Sequence[str]) -> None:
    if argv[0] in TOOLS:
        run_tool(argv[0], argv[1:])
        return
    commands = [*TransfusionCLI.subcommands(), *TOOLS]
    if argv[0] not in commands and not argv[0].startswith("-"):
        raise InputError(f"unknown command {argv[0]!r}; known: {', '.join(commands)}")
    run_lightning(argv, DESCRIPTION)


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does, so that it closes its files and stops its workers. (A run that trains
    handles it in `training/graceful_stop.py`.)"""

    def stop(*_: Any) -> None:
        raise SIGTERMException(143)

    if threading.current_thread() is not threading.main_thread():  # only that one has handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def quieten() -> None:
    """Leave out what Lightning and torch say to their own developers."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("lit_transfusion").setLevel(logging.INFO)
    for name in ("lightning.pytorch", "lightning"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(lambda record: "Tip:" not in record.getMessage())
    for message in (
        ".*LeafSpec.*",
        ".*intended to run from within Python.*",
        ".*in eval mode at the start of training.*",  # the averaged weights
        ".*sync_dist=True.*",  # all ranks validate on the same batches
        ".*does not have many workers.*",
    ):
        warnings.filterwarnings("ignore", message=message)
