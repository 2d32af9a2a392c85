"""Read a config file that builds on other files, or contains the arms of a study.

base: quickstart.yaml            # or a list; paths are relative to this file
model: {patcher: UNetPatcher}    # what this file changes, for all arms
arms:                            # what differs in each arm
  bidirectional: {model: {mask: Bidirectional}}
  causal: {model: {mask: Causal}}
"""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import OmegaConf

from lit_transfusion.errors import InputError
from lit_transfusion.text_reader import read_text

OmegaConf.register_resolver("mul", lambda a, b: a * b, replace=True)

# Classes that have moved since version 0.1. The config.yaml of its runs contains the old paths.
MOVED = {"Shapes": "source", "ShapeEdits": "edits", "GenEvalShapes": "geneval", "ShapeCaptions": "captions"}
OLD_PATHS = re.compile(rf"lit_transfusion\.(?:data\.sources|evaluation)(?:\.\w+)?\.({'|'.join(MOVED)})\b")

PACKAGE = Path(__file__).parents[1]
# The configs of this package. In a checkout, the first is a link to the second; git makes no links on some systems.
CONFIGS = next((path for path in (PACKAGE / "configs", PACKAGE.parent / "configs") if path.is_dir()), PACKAGE)

Parts = list[tuple[str, dict[str, Any]]]  # (name of the file, content); later parts overwrite earlier ones


class Config(NamedTuple):
    """The content of a file, with that of the files that it builds on."""

    parts: Parts
    arms: dict[str, dict[str, Any]]  # its own, or those of the file that it builds on
    study: dict[str, Any]  # the `study` section, which `ablate` reads


def compose(path: str | Path, arm: str | None = None) -> Parts:
    """The parts of a run.

    The order is: the files that the file builds on, the file itself, the arm (by default the first).

    Raises:
        InputError: A file is missing or invalid, or the arm does not exist.
    """
    parts, arms, _ = read_config(Path(path))
    if arms:
        name = next(iter(arms)) if arm is None else arm
        if name not in arms:
            raise InputError(f"{path} has no arm {name!r}; it has {', '.join(arms)}")
        parts.append((f"{path}, arm {name}", {"arm": name, **arms[name]}))
    elif arm is not None and parts[-1][1].get("arm", arm) != arm:  # the config.yaml of a run
        raise InputError(f"{path} has no arm {arm!r}; it has {parts[-1][1]['arm'] or 'none'}")
    return parts


def read_config(path: Path, above: tuple[Path, ...] = ()) -> Config:
    """Read a file and the files that it builds on. `above` are the files that build on it.

    If there is no such file, the config of this package with its name is read: quickstart is configs/quickstart.yaml.

    Raises:
        InputError: A file is missing or invalid.
    """
    path = path if path.is_file() else shipped(path) or path
    if path.resolve() in above:
        raise InputError(f"{path} builds on itself; change its `base`")
    content = read(path)
    bases, study = content.pop("base", []), content.pop("study", None) or {}
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise InputError(f"{path}: `base` must be the name of a file or a list of names")
    if not isinstance(study, dict):
        raise InputError(f"{path}: `study` must contain keys and values, such as metrics: [...]")
    whole = Config([], {}, {})
    for base in bases:  # their names are relative to the folder of the file
        below = read_config(path.parent / base, (*above, path.resolve()))
        whole = Config(whole.parts + below.parts, below.arms or whole.arms, whole.study | below.study)
    arms = arms_of(path, content.pop("arms")) if "arms" in content else whole.arms
    return Config([*whole.parts, (str(path), content)], arms, whole.study | study)


def arms_of(path: Path, arms: Any) -> dict[str, dict[str, Any]]:
    """Check an `arms` section, and return the changes of each arm."""
    if not isinstance(arms, dict) or not arms:
        raise InputError(f"{path}: `arms` is empty or no mapping; use `arms: {{NAME: {{KEY: VALUE}}}}`")
    for name, changes in arms.items():
        if not isinstance(changes or {}, dict):
            raise InputError(f"{path}: arm {name} must contain keys and values")
    return {str(name): changes or {} for name, changes in arms.items()}  # a name may be a number


class Loader(yaml.SafeLoader):
    """Raises InputError if a key occurs twice: YAML's loader would silently use the second one."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise InputError(
                    f"line {line}: duplicate key {key.value!r}, first used in line {lines[key.value]}; remove one"
                )
            lines[key.value] = line
        return node


def shipped(path: Path) -> Path | None:
    """The config of this package that a path names, from anywhere: quickstart, or configs/quickstart.yaml."""
    name = path.relative_to("configs") if path.is_relative_to("configs") else path
    found = CONFIGS / (name if name.suffix else name.with_suffix(".yaml"))
    return found if not path.is_absolute() and found.is_file() else None


def read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        names = [str(other.relative_to(CONFIGS).with_suffix("")) for other in CONFIGS.rglob("*.yaml")]
        close = get_close_matches(path.stem, names, n=3, cutoff=0.5)
        hint = f", or use a similar one of this package: {', '.join(close)}" if close else ""
        raise InputError(f"config file {path} not found; check the path{hint}")
    text = OLD_PATHS.sub(lambda found: f"lit_transfusion.shapes.{MOVED[found[1]]}.{found[1]}", read_text(path))
    try:
        content = yaml.load(text, Loader)
    except InputError as error:
        raise InputError(f"{path}, {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must contain keys and values")
    return content


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
