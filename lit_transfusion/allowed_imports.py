"""Which modules may be imported because something that was read names them.

To import a module runs it. Checkpoints, exported models, models on the hub and the config.yaml of the run that a
checkpoint lies in name classes, and a stranger may have written them. So they may name:

    - modules of this package,
    - modules that the user named with `--import_module`, or in Python has imported before.

What the user wrote or passed is theirs to judge: class paths on the command line, and configs given with `--config`.
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from lit_transfusion.errors import InputError

PACKAGE = "lit_transfusion"
OPTION = "--import_module"
named: list[str] = []  # with the option, in this command


def import_named(words: Sequence[str]) -> list[str]:
    """Import the modules that `--import_module NAME` names, wherever it is among the words; the other words.

    Raises:
        InputError: There is no name, or no such module.
    """
    rest, modules, words = [], [], iter(words)
    for word in words:
        option, equals, value = word.partition("=")
        if option == OPTION:
            modules.append(value if equals else next(words, ""))
        else:
            rest.append(word)
    named[:] = modules
    for module in modules:
        try:
            importlib.import_module(module)
        except (ImportError, TypeError, ValueError) as error:
            raise InputError(
                f"{OPTION} {module}: {error}; give the name of a module that is installed, or start "
                f"`python -m {PACKAGE}` in the folder that holds it"
            ) from None
    return rest


def allowed_module(class_path: str) -> ModuleType:
    """The module of a class that something read names.

    Raises:
        InputError: It may not be imported, or it cannot be.
    """
    name = class_path.rpartition(".")[0]
    if is_within(name, [PACKAGE]):
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise InputError(f"{class_path} cannot be imported ({error}); is {PACKAGE} too old for it?") from None
    if name not in sys.modules:
        raise not_allowed(class_path)
    return sys.modules[name]


def not_allowed(class_path: str) -> InputError:
    module = class_path.rpartition(".")[0]
    return InputError(
        f"{class_path} is a class of the module {module}, which is not part of {PACKAGE}, and importing a module runs "
        f"it: if you trust it, add {OPTION} {module} (in Python: import {module} before)"
    )


def is_within(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def foreign_modules(config: Any) -> list[str]:
    """Modules of other people's classes in a config or a description: those that need `--import_module`."""
    paths = [path for path in class_paths(config) if "." in path]
    libraries = (PACKAGE, "torch", "lightning", "pytorch_lightning")
    return list(dict.fromkeys(path.rpartition(".")[0] for path in paths if not is_within(path, libraries)))


def class_paths(config: Any) -> Iterator[str]:
    """Every class_path in a config, at any depth."""
    match config:
        case {"class_path": str(path)}:
            yield path
    for value in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        yield from class_paths(value)
