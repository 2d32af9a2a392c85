"""Parts as plain data, and back: how a checkpoint remembers which classes it was made of.

A swappable part (patcher, mask, noise process, codec) keeps each constructor argument as an attribute of the same
name. Its description is then what YAML would say of it: {"class_path": …, "init_args": {…}}.
"""

import importlib
import inspect
from typing import Any, TypeVar

from lit_transfusion.errors import InputError

T = TypeVar("T")


def describe(part: Any) -> dict[str, Any]:
    """The class of `part` and the arguments that make it again, in plain types."""
    cls = type(part)
    arguments = list(inspect.signature(cls.__init__).parameters.values())[1:]
    names = [a.name for a in arguments if a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)]
    missing = [name for name in names if not hasattr(part, name)]
    if missing:
        raise TypeError(f"{cls.__name__} must keep its argument(s) {', '.join(missing)} as attributes of the same name")
    return {
        "class_path": f"{cls.__module__}.{cls.__qualname__}",
        "init_args": {name: getattr(part, name) for name in names},
    }


def build(description: dict[str, Any], base: type[T]) -> T:
    """Make a part again. Only subclasses of `base` are ever called, whatever the description names."""
    module, _, name = description["class_path"].rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        message = f"{description['class_path']} cannot be imported; is the package that defines it installed?"
        raise InputError(message) from None
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise InputError(f"{description['class_path']} is not a {base.__name__}")
    return cls(**description["init_args"])
