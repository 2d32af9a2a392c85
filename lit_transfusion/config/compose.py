"""How a config file builds on others, and how it holds the arms of a study.

base: quickstart.yaml            # or a list; paths are relative to this file
model: {patcher: UNetPatcher}    # what this file changes, or what all arms share
arms:                            # each only what differs
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

# Classes that version 0.1 had elsewhere: the config.yaml of its runs names them.
MOVED = {"Shapes": "source", "ShapeEdits": "edits", "GenEvalShapes": "geneval", "ShapeCaptions": "captions"}
OLD_PATHS = re.compile(rf"lit_transfusion\.(?:data\.sources|evaluation)(?:\.\w+)?\.({'|'.join(MOVED)})\b")


def compose(path: str | Path, arm: str | None = None) -> list[tuple[str, dict[str, Any]]]:
    """The parts of a run in the order in which they are laid over each other, each with the file it is from.

    First what the file builds on, then the file, then the arm that was asked for (the first, if none was). A file
    without arms has those of the file that it builds on.
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
    """What a file builds on and the file itself, and its arms. `above` are the files that build on this one."""
    if path.resolve() in above:
        raise InputError(f"{path} builds on itself")
    content = read(path)
    bases = bases_of(path, content)
    content.pop("base", None)
    content.pop("study", None)  # what is asked of the arms, which `ablate` reads
    parts, arms = [], {}
    for base in bases:
        below, arms_below = collect(base, (*above, path.resolve()))
        parts += below
        arms = arms_below or arms
    if "arms" in content:
        arms = content.pop("arms")
        if not isinstance(arms, dict) or not arms:
            raise InputError(f"{path}: `arms` names no arm")
        arms = {str(name): changes or {} for name, changes in arms.items()}  # a name may be a number
        for name, changes in arms.items():
            if not isinstance(changes, dict):
                raise InputError(f"{path}: arm {name} must hold keys and values")
    return [*parts, (str(path), content)], arms


def study_section(path: Path) -> dict[str, Any]:
    """What a file, and the files that it builds on, say of the study that its arms make."""
    content = read(path)
    section: dict[str, Any] = {}
    for base in bases_of(path, content):
        section |= study_section(base)
    own = content.get("study") or {}
    if not isinstance(own, dict):
        raise InputError(f"{path}: `study` must hold keys and values, such as metrics: [...]")
    return section | own


def bases_of(path: Path, content: dict[str, Any]) -> list[Path]:
    """The files that a file builds on, which are named relative to it."""
    bases = content.get("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise InputError(f"{path}: `base` must be the name of a file, or a list of them")
    return [path.parent / base for base in bases]


def read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"config file {path} not found")
    try:
        text = OLD_PATHS.sub(lambda found: f"lit_transfusion.shapes.{MOVED[found[1]]}.{found[1]}", read_text(path))
        check_keys(path, yaml.compose(text, Loader=yaml.SafeLoader))
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold keys and values")
    return content


def check_keys(path: Path, root: yaml.Node | None) -> None:
    """Of two equal keys YAML's loader keeps the later without a word, be it a whole arm."""
    nodes, checked = [root], set()
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.CollectionNode) and id(node) not in checked:  # an alias may lead back
            checked.add(id(node))
            lines: dict[str, int] = {}
            for child in node.value:
                nodes += child if isinstance(child, tuple) else [child]
                if not isinstance(child, tuple) or not isinstance(key := child[0], yaml.ScalarNode):
                    continue
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise InputError(
                        f"{path}, line {line}: the key {key.value!r} is there already, in line {lines[key.value]}"
                    )
                lines[key.value] = line


def resolved(content: dict[str, Any], key: str) -> Any:
    """The value at a key such as data.source, its ${...} replaced; None if there is no such key."""
    value = OmegaConf.select(OmegaConf.create(content), key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def with_interpolations(values: Any, written: Any, path: tuple[str, ...] = ()) -> Any:
    """A config whose values are known, with those that follow from others as they were written, ${...}.

    Args:
        values: The config, nested, all its values known.
        written: The same before its ${...} were resolved, in the relative form, ${..key}, that jsonargparse gives them.
        path: Keys that lead here.
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
    """${..key} as ${key} from the root, where it is written at `path`: one dot is the parent."""
    above = path[: max(len(path) - len(dots), 0)]
    steps = [*(f"[{name}]" if name.isdigit() else f".{name}" for name in above), f".{key}" if key else ""]
    return "${" + "".join(steps).lstrip(".") + "}"
