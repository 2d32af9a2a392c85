"""Turn jsonargparse's errors into one line that says what to change."""

import difflib
import inspect
import pydoc
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from lit_transfusion.errors import InputError


@contextmanager
def raising_own_errors() -> Iterator[None]:
    """Raise the error of a part about its arguments instead of the error that jsonargparse makes of it.

    Where a part can also be null, or is in a list, jsonargparse adds the errors of all other types that it tried.
    """
    try:
        yield
    except ValueError as error:
        own: BaseException | None = error
        while own is not None and not isinstance(own, InputError | ModuleNotFoundError):
            own = own.__cause__
        if own is None:
            raise
        raise own from None


@contextmanager
def naming_likely_options(parser: ArgumentParser) -> Iterator[None]:
    """Where an option is unknown, on the command line or in a file, suggest the most similar one."""
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
    """The message of an error without the types that jsonargparse tried, and with the names of known classes."""
    noise = (
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
    lines = [line for line in lines if line and not line.startswith(noise)]
    message = "".join(line + (" " if line.endswith(":") else "; ") for line in lines).rstrip("; ")
    keys = re.findall(r'Parser key "([\w.]+)":', message)
    # The entries of a mix are sources, too.
    known = known_classes(keys[0]) if keys[1:] in ([], ["sources"]) and keys else []
    if known:  # leave out the other types that were tried for this key
        message = re.sub(r"; (Expected a dot import path string|Not a valid subclass of|Given value)\b.*", "", message)
    there_is = f"there is no class \\1; known: {', '.join(known)}" if known else "there is no class \\1"
    message = re.sub(r"Expected a dot import path string: ([^\s;]+)", there_is, message)
    message = re.sub(r"<class '(.+?)'>|typing\.(?=Literal)", r"\1", message)
    message = re.sub(r"class_path '([\w.]+)': Option '[\w.]+' is not accepted(?!; known)", with_known_options, message)
    return re.sub(r'Parser key "([\w.]+)":', r"\1:", message)


def with_known_options(unknown: re.Match) -> str:
    """Add the options of a class, given by its path, to the message about an option that it does not have."""
    cls = pydoc.locate(unknown[1])
    known = ", ".join(inspect.signature(cls).parameters) if inspect.isclass(cls) else ""
    return f"{unknown[0]}; known: {known}" if known else unknown[0]


def likely_option(name: str, options: Iterable[str]) -> str | None:
    """The option, or group of options, that is most similar to an unknown name; None if no one is similar."""
    known = ""
    for word in name.split("."):
        candidates = {option.removeprefix(known).partition(".")[0] for option in options if option.startswith(known)}
        if word not in candidates:
            likely = difflib.get_close_matches(word, candidates, n=1)
            return known + likely[0] if likely else None
        known += f"{word}."
    return None


def known_classes(key: str) -> list[str]:
    """Short names of the classes that are valid for a key such as `model.mask`; empty if the key takes no class."""
    if key == "trainer.callbacks":
        from lit_transfusion.training import callbacks

        return [*callbacks.__all__, "and those of lightning.pytorch.callbacks"]
    hint = type_of(key)
    base = get_args(hint)[-1] if get_args(hint) else hint  # for a callable: the type that it returns
    return sorted({cls.__name__ for cls in subclasses(base)}) if isinstance(base, type) else []


def type_of(key: str) -> Any:
    """The type of the classes that are valid for a key; None if there is none. Imports what it needs only here."""
    section, _, name = key.partition(".")
    if section == "model":
        from lit_transfusion.training.lit_module import LitTransfusion

        return get_type_hints(LitTransfusion.__init__).get(name)
    if section == "data":
        from lit_transfusion.data.datamodule import TransfusionData

        return get_type_hints(TransfusionData.__init__).get(name)
    if key in ("metrics", "study.metrics"):  # of `evaluate` and of a study
        from lit_transfusion.evaluation import Metric

        return Metric
    if key == "codec":  # of `prepare`
        from lit_transfusion.latents import Codec

        return Codec
    if key == "source":  # of `train_tokenizer`
        from lit_transfusion.data.sources import Source

        return Source
    return None


def subclasses(base: type) -> Iterator[type]:
    for cls in base.__subclasses__():
        if not cls.__name__.startswith("_"):
            yield cls
        yield from subclasses(cls)
