"""What jsonargparse says of what it refuses, put so that the user can mend it."""

import difflib
import inspect
import pydoc
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import get_args, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from lit_transfusion.data.datamodule import TransfusionData
from lit_transfusion.data.sources import Source
from lit_transfusion.errors import InputError
from lit_transfusion.evaluation import Metric
from lit_transfusion.latents import Codec
from lit_transfusion.training import callbacks
from lit_transfusion.training.lit_module import LitTransfusion


@contextmanager
def in_its_own_words() -> Iterator[None]:
    """Raise what a part says of its arguments as the part says it. Where the part may also be null or stands in a list,
    jsonargparse wraps that in what it says of each thing that could have stood there."""
    try:
        yield
    except ValueError as error:
        said: BaseException | None = error
        while said is not None and not isinstance(said, InputError | ModuleNotFoundError):
            said = said.__cause__
        if said is None:
            raise
        raise said from None


@contextmanager
def naming_likely_options(parser: ArgumentParser) -> Iterator[None]:
    """Where the parser does not know an option, on the command line or in a file, ask whether one like it is meant."""
    try:
        yield
    except ArgumentError as error:
        message = str(error)
        unknown = re.search(r"(unrecognized arguments: --|\boption '|^Option ')([\w.]+)", message)
        likely = unknown and likely_option(unknown[2], [action.dest for action in parser._actions])
        if not likely:
            raise
        dashes = "--" * unknown[1].endswith("--")
        raise ArgumentError(None, f"{message.rstrip('; ')}: is {dashes}{likely} meant?") from None


def one_line(error: Exception) -> str:
    """The message of an error without jsonargparse's vain attempts, and with the names of the classes it knows."""
    vain = (
        "Expected a path but",
        "Expected a <class 'NoneType'>",
        "Does not validate against any",
        "Subtypes:",
        "Errors:",
        "Given value type:",
        "Subclass types expect one of:",
        "a class path (str)",
        "a dict with",
    )
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines()]
    lines = [line for line in lines if line and not line.startswith(vain)]
    message = "".join(line + (" " if line.endswith(":") else "; ") for line in lines).rstrip("; ")
    keys = re.findall(r'Parser key "([\w.]+)":', message)
    # What stands in a mix are sources, too.
    known = known_classes(keys[0]) if keys[1:] in ([], ["sources"]) and keys else []
    if known:  # leave out what else was tried at the same place
        message = re.sub(r"; (Expected a dot import path string|Not a valid subclass of|Given value)\b.*", "", message)
    there_is = f"there is no class \\1; known: {', '.join(known)}" if known else "there is no class \\1"
    message = re.sub(r"Expected a dot import path string: ([^\s;]+)", there_is, message)
    message = re.sub(r"<class '(.+?)'>|typing\.(?=Literal)", r"\1", message)
    message = re.sub(r"class_path '([\w.]+)': Option '[\w.]+' is not accepted(?!; known)", with_known_options, message)
    return re.sub(r'Parser key "([\w.]+)":', r"\1:", message)


def with_known_options(refused: re.Match) -> str:
    """Of a class by its path, what its options are."""
    cls = pydoc.locate(refused[1])
    known = ", ".join(inspect.signature(cls).parameters) if inspect.isclass(cls) else ""
    return f"{refused[0]}; known: {known}" if known else refused[0]


def likely_option(name: str, options: Iterable[str]) -> str | None:
    """Of the options of a parser, the one or the group of them that is most like a name that it does not know."""
    known = ""
    for word in name.split("."):
        there = {option.removeprefix(known).partition(".")[0] for option in options if option.startswith(known)}
        if word not in there:
            likely = difflib.get_close_matches(word, there, n=1)
            return known + likely[0] if likely else None
        known += f"{word}."
    return None


def known_classes(key: str) -> list[str]:
    """Short names of the classes that may stand at a key such as `model.mask`; none where no class is asked for."""
    section, _, name = key.partition(".")
    owner = {"model": LitTransfusion, "data": TransfusionData}.get(section)
    hint = get_type_hints(owner.__init__).get(name) if owner else None
    if key == "trainer.callbacks":
        return [*callbacks.__all__, "and those of lightning.pytorch.callbacks"]
    if key in ("metrics", "study.metrics"):  # of `evaluate` and of a study
        hint = Metric
    elif key == "codec":  # of `prepare`
        hint = Codec
    elif key == "source":  # of `train_tokenizer`
        hint = Source
    base = get_args(hint)[-1] if get_args(hint) else hint  # of a callable, what it returns
    return sorted({cls.__name__ for cls in subclasses(base)}) if isinstance(base, type) else []


def subclasses(base: type) -> Iterator[type]:
    for cls in base.__subclasses__():
        if not cls.__name__.startswith("_"):
            yield cls
        yield from subclasses(cls)
