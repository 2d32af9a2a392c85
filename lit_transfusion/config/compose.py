"""Read a config file that builds on other files, or contains the arms of a study.

base: quickstart.yaml            # or a list; paths are relative to this file
model: {patcher: UNetPatcher}    # what this file changes, for all arms
arms:                            # what differs in each arm
  bidirectional: {model: {mask: Bidirectional}}
  causal: {model: {mask: Causal}}
"""

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from lit_transfusion.errors import InputError
from lit_transfusion.text_reader import read_text

OmegaConf.register_resolver("mul", lambda a, b: a * b, replace=True)

# Classes that have moved since version 0.1. The config.yaml of its runs contains the old paths.
MOVED = {"Shapes": "source", "ShapeEdits": "edits", "GenEvalShapes": "geneval", "ShapeCaptions": "captions"}
OLD_PATHS = re.compile(rf"lit_transfusion\.(?:data\.sources|evaluation)(?:\.\w+)?\.({'|'.join(MOVED)})\b")


def compose(path: str | Path, arm: str | None = None) -> list[tuple[str, dict[str, Any]]]:
    """The parts of a run, each with the name of its file. Later parts overwrite earlier ones.

    The order is: the files that the file builds on, the file itself, the arm (by default the first). A file without
    arms has the arms of the file that it builds on.

    Raises:
        InputError: A file is missing or invalid, or the arm does not exist.
    """
    parts, arms = collect(Path(path))
    if arms:
        name = next(iter(arms)) if arm is None else arm
        if name not in arms:
            raise InputError(f"{path} has no arm {name!r}; it has {', '.join(arms)}")
        parts.append((f"{path}, arm {name}", {"arm": name, **arms[name]}))
    elif arm is not None and parts[-1][1].get("arm", arm) != arm:  # the config.yaml of a run
        raise InputError(f"{path} has no arm {arm!r}; it has {parts[-1][1]['arm'] or 'none'}")
    return parts


def collect(path: Path, above: tuple[Path, ...] = ()) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, dict]]:
    """The parts of a file and of the files that it builds on, and its arms. `above` are the files that build on it."""
    if path.resolve() in above:
        raise InputError(f"{path} builds on itself; change its `base`")
    content = read(path)
    bases = bases_of(path, content)
    content.pop("base", None)
    content.pop("study", None)  # read by `ablate`
    parts, arms = [], {}
    for base in bases:
        below, arms_below = collect(base, (*above, path.resolve()))
        parts += below
        arms = arms_below or arms
    if "arms" in content:
        arms = content.pop("arms")
        if not isinstance(arms, dict) or not arms:
            raise InputError(f"{path}: `arms` is empty or no mapping; use `arms: {{NAME: {{KEY: VALUE}}}}`")
        arms = {str(name): changes or {} for name, changes in arms.items()}  # a name may be a number
        for name, changes in arms.items():
            if not isinstance(changes, dict):
                raise InputError(f"{path}: arm {name} must contain keys and values")
    return [*parts, (str(path), content)], arms


def study_section(path: Path) -> dict[str, Any]:
    """The `study` section of a file, merged with those of the files that it builds on."""
    content = read(path)
    section: dict[str, Any] = {}
    for base in bases_of(path, content):
        section |= study_section(base)
    own = content.get("study") or {}
    if not isinstance(own, dict):
        raise InputError(f"{path}: `study` must contain keys and values, such as metrics: [...]")
    return section | own


def bases_of(path: Path, content: dict[str, Any]) -> list[Path]:
    """The files that a file builds on. Their names are relative to the folder of the file."""
    bases = content.get("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise InputError(f"{path}: `base` must be the name of a file or a list of names")
    return [path.parent / base for base in bases]


def read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"config file {path} not found")
    try:
        text = OLD_PATHS.sub(lambda found: f"lit_transfusion.shapes.{MOVED[found[1]]}.{found[1]}", read_text(path))
        check_keys(path, yaml.compose(text, Loader=yaml.SafeLoader))
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must contain keys and values")
    return content


def check_keys(path: Path, root: yaml.Node | None) -> None:
    """Raise InputError if a key occurs twice: YAML's loader would silently use the second one."""
    nodes, checked = [root], set()
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.CollectionNode) and id(node) not in checked:  # an alias can contain itself
            checked.add(id(node))
            lines: dict[str, int] = {}
            for child in node.value:
                nodes += child if isinstance(child, tuple) else [child]
                if not isinstance(child, tuple) or not isinstance(key := child[0], yaml.ScalarNode):
                    continue
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise InputError(
                        f"{path}, line {line}: duplicate key {key.value!r}, first used in line {lines[key.value]}; "
                        "remove one"
                    )
                lines[key.value] = line


def resolved(content: dict[str, Any], key: str) -> Any:
    """The value of a key such as data.source, with ${...} replaced; None if the key does not exist."""
    value = OmegaConf.select(OmegaConf.create(content), key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def with_interpolations(values: Any, written: Any, path: tuple[str, ...] = ()) -> Any:
    """Put the ${...} of a config back in place of the values that they were resolved to.

    Args:
        values: The nested config after ${...} were resolved.
        written: The same config before, with ${...} in the relative form ${..key} that jsonargparse uses.
        path: The keys of this part of the config.
    """
    if isinstance(written, str) and "${" in written:
        return re.sub(r"\$\{(\.+)([\w.\[\]]*)\}", lambda found: absolute(found[1], found[2], path), written)
    if isinstance(values, dict) and isinstance(written, dict):
        return {key: with_interpolations(each, written.get(key), (*path, str(key))) for key, each in values.items()}
    if isinstance(values, list) and isinstance(written, list) and len(values) == len(written):
        pairs = enumerate(zip(values, written, strict=True))
        return [with_interpolations(each, as_written, (*path, str(i))) for i, (each, as_written) in pairs]
    return values


def absolute(dots: str, key: str, path: tuple[str, ...]) -> str:
    """Convert ${..key}, written at `path`, to ${key} from the root. One dot is the parent."""
    above = path[: max(len(path) - len(dots), 0)]
    steps = [*(f"[{name}]" if name.isdigit() else f".{name}" for name in above), f".{key}" if key else ""]
    return "${" + "".join(steps).lstrip(".") + "}"
