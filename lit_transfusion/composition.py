"""How a config file builds on others, and how it holds the arms of a study.

base: quickstart.yaml            # or a list; paths are relative to this file
model: {patcher: UNetPatcher}    # what this file changes, or what all arms share
arms:                            # each only what differs
  bidirectional: {model: {mask: Bidirectional}}
  causal: {model: {mask: Causal}}
"""

from pathlib import Path
from typing import Any

import yaml

from lit_transfusion.errors import InputError


def compose(path: str | Path, arm: str | None = None) -> list[tuple[str, dict[str, Any]]]:
    """The parts of a run in the order in which they are laid over each other, each with the file it is from.

    First what the file builds on, then the file, then the arm that was asked for (the first, if none was).
    """
    path = Path(path)
    content = read(path)
    bases = content.pop("base", [])
    arms = content.pop("arms", None)
    parts = [part for base in ([bases] if isinstance(bases, str) else bases) for part in compose(path.parent / base)]
    parts.append((str(path), content))
    if arms is not None:
        if not isinstance(arms, dict) or not arms:
            raise InputError(f"{path}: `arms` names no arm")
        name = next(iter(arms)) if arm is None else arm
        if name not in arms:
            raise InputError(f"{path} has no arm {name!r}; it has {', '.join(arms)}")
        parts.append((f"{path}, arm {name}", {"arm": name, **(arms[name] or {})}))
    elif arm is not None and "arm" not in content:
        raise InputError(f"{path} has no arms, so --arm {arm} has no meaning")
    return parts


def read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"config file {path} not found")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold keys and values")
    return content
