"""Turn jsonargparse's errors into one line that says what to change."""

import difflib
import inspect
import pydoc
import re
from collections.abc import Iterator
from contextlib import contextmanager

from jsonargparse import ArgumentError, ArgumentParser

from lit_transfusion.config.registry import known_classes
from lit_transfusion.errors import InputError

NOISE = (  # lines about types that jsonargparse tried
    "Expected a path but",
    "Expected a <class 'NoneType'>",
    "Does not validate against any",
    "Subtypes:",
    "Errors:",
    "Given value type:",
    "Not a valid subclass of",
    "Subclass types expect one of:",
    "a class path (str)",
    "a dict with",
)


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
        unknown = re.search(r"(unrecognized arguments: --|\boption '|^Option ')([\w.]+)", str(error))
        likely = unknown and difflib.get_close_matches(unknown[2], parser.get_defaults().keys(), n=1)
        if not likely:
            raise
        dashes = "--" * unknown[1].endswith("--")
        raise ArgumentError(None, f"{one_line(error)}: is {dashes}{likely[0]} meant?") from None


def one_line(error: Exception) -> str:
    """The message of an error without the types that jsonargparse tried, and with the names of known classes."""
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines()]
    lines = list(dict.fromkeys(line for line in lines if line and not line.startswith(NOISE)))
    message = "".join(line + (" " if line.endswith(":") else "; ") for line in lines).rstrip("; ")
    message = re.sub(r"(Expected a dot import path string: |Got value: )(.*?); Given value: .*", r"\1\2", message)
    keys = re.findall(r'Parser key "([\w.]+)":', message)
    known = known_classes(keys[-1]) if keys else []
    no_class = "there is no class \\1" + (f"; known: {', '.join(known)}" if known else "")
    message = re.sub(r"Expected a dot import path string: ([^\s;]+)", no_class, message)
    message = re.sub(r"class_path '([\w.]+)': Option '[\w.]+' is not accepted(?!; known)", with_known_options, message)
    return re.sub(r"Parser key \"([\w.]+)\"(?=:)|<class '(.+?)'>|typing\.(?=Literal)", r"\1\2", message)


def with_known_options(unknown: re.Match) -> str:
    """Add the options of a class, given by its path, to the message about an option that it does not have."""
    cls = pydoc.locate(unknown[1])
    known = ", ".join(inspect.signature(cls).parameters) if inspect.isclass(cls) else ""
    return f"{unknown[0]}; known: {known}" if known else unknown[0]
