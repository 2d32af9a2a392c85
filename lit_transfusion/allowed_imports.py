"""Decides which modules can be imported because a file names them.

Importing a module runs its code. Checkpoints, exported models, models on the hub, and the config.yaml beside a
checkpoint name classes, and any person may have written them. So they can only name:

    - modules of this package,
    - modules that the user named with `--import_module`, or has imported before in Python.

Class paths on the command line, and configs given with `--config`, are not limited: the user chose them.
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from lit_transfusion.errors import InputError

PACKAGE = "lit_transfusion"
OPTION = "--import_module"
named: list[str] = []  # modules named by the option in this command


def import_named(words: Sequence[str]) -> list[str]:
    """Import the modules of all `--import_module NAME` options, and return the other words of the command line.

    Raises:
        InputError: The name is missing, or the module cannot be imported.
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
                f"{OPTION} {module}: {error}; use the name of an installed module, or run `python -m {PACKAGE}` in the "
                "folder of the module"
            ) from None
    return rest


def allowed_module(class_path: str) -> ModuleType:
    """Import the module of a class that a file names.

    Raises:
        InputError: The module is not allowed, or cannot be imported.
    """
    name = class_path.rpartition(".")[0]
    if is_within(name, [PACKAGE]):
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise InputError(f"{class_path} cannot be imported ({error}); a newer {PACKAGE} may have it") from None
    if name not in sys.modules:
        raise not_allowed(class_path)
    return sys.modules[name]


def not_allowed(class_path: str) -> InputError:
    module = class_path.rpartition(".")[0]
    return InputError(
        f"{class_path} is a class of the module {module}, which is not part of {PACKAGE}. Importing a module runs its "
        f"code. If you trust it, add {OPTION} {module} (in Python: import {module} first)"
    )


def is_within(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def foreign_modules(config: Any) -> list[str]:
    """The modules of classes in a config that are neither of this package nor of torch or Lightning.

    They need `--import_module`.
    """
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
