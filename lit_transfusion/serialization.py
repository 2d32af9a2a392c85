"""Convert parts to plain data and back, so that a checkpoint contains its classes and their arguments.

A part that can be replaced (patcher, mask, noise process, codec) must store each constructor argument as an attribute
of the same name. Its description then has the form of YAML: {"class_path": …, "init_args": {…}}.
"""

import inspect
from typing import Any, TypeVar

from lit_transfusion.allowed_imports import PACKAGE, allowed_module
from lit_transfusion.errors import InputError

T = TypeVar("T")


def describe(part: Any) -> dict[str, Any]:
    """Return the class of `part` and its constructor arguments, in plain types."""
    cls = type(part)
    arguments = list(inspect.signature(cls.__init__).parameters.values())[1:]
    names = [a.name for a in arguments if a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)]
    missing = [name for name in names if not hasattr(part, name)]
    if missing:
        raise TypeError(
            f"{cls.__name__} must store its argument(s) {', '.join(missing)} as attributes of the same name"
        )
    return {
        "class_path": f"{cls.__module__}.{cls.__qualname__}",
        "init_args": {name: getattr(part, name) for name in names},
    }


def build(description: dict[str, Any], base: type[T]) -> T:
    """Create a part from its description. Only subclasses of `base` are called, whatever the description names.

    The module must belong to this package, or have been imported before: see `allowed_imports.py`.

    Raises:
        InputError: The description is invalid, or its class or arguments do not exist in this version.
    """
    match description:
        case {"class_path": str(class_path), "init_args": dict(init_args)} if "." in class_path:
            cls = find_class(class_path)
        case _:
            raise InputError(f"{description!r} does not describe a {base.__name__}")
    if cls is None:
        raise InputError(f"{class_path}: its module has no class of that name in the installed version")
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise InputError(f"{class_path} is not a {base.__name__}")
    return call(cls, init_args)


def find_class(class_path: str) -> Any:
    """Return the class at this path; None if there is no such class.

    An earlier version of this package may have had the class in another file of the same subpackage. So it is then
    looked up in the subpackage: `lit_transfusion.diffusion.process.DDPM` is `lit_transfusion.diffusion.DDPM`.
    """
    module, _, name = class_path.rpartition(".")
    cls = getattr(allowed_module(class_path), name, None)
    subpackage = module.rpartition(".")[0]
    if cls is None and subpackage.startswith(f"{PACKAGE}."):
        cls = getattr(allowed_module(f"{subpackage}.{name}"), name, None)
    return cls


def call(cls: type[T], arguments: dict[str, Any]) -> T:
    """Create an instance. The arguments may come from another version of the class."""
    try:
        inspect.signature(cls).bind(**arguments)
    except TypeError as error:
        raise InputError(
            f"{cls.__name__} does not accept its saved arguments: {error}; use the version that saved them"
        ) from None
    return cls(**arguments)
