"""The `--config` options: the file of a run, and the file of a command that has a source."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, Namespace
from omegaconf import OmegaConf

from lit_transfusion.config.compose import Parts, compose, resolved
from lit_transfusion.config.messages import one_line
from lit_transfusion.errors import InputError

# PyYAML writes the text 1e5 without quotes, and OmegaConf reads that as a number. jsonargparse does both to resolve
# ${...}. Without this resolver, a folder named 1e5 would become 100000.0.
yaml.SafeDumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class ComposedFile(ActionConfigFile):
    """A --config file that can build on other files (`base:`)."""

    def lay_over(self, parser, cfg: Namespace, parts: Parts, option_string: str | None) -> None:
        for path, content in parts:
            content = with_widths(content)
            try:
                super().__call__(parser, cfg, OmegaConf.to_yaml(content), option_string)
            except (ArgumentError, TypeError, ValueError) as error:
                raise InputError(f"{path}: {one_line(error)}") from error


def with_widths(content: dict[str, Any]) -> dict[str, Any]:
    """Replace the name of a size by its widths, so that a later part can change one of them."""
    model = content.get("model")
    name = model.get("size") if isinstance(model, dict) else None
    widths = widths_of(name) if isinstance(name, str) else None
    return content if widths is None else {**content, "model": {**model, "size": widths}}


def words_with_widths(words: Sequence[str]) -> list[str]:
    """Replace the name of a size on the command line: --model.size NAME or --model.size=NAME."""

    def with_name_replaced(option: re.Match[str]) -> str:
        start, name = option.groups()
        widths = widths_of(name)
        return option[0] if widths is None else f"{start}--model.size={json.dumps(widths)}"

    joined = re.sub(r"(^|\0)--model\.size[\0=]([^\0]*)", with_name_replaced, "\0".join(words))
    return joined.split("\0") if words else []


def widths_of(name: str) -> dict[str, Any] | None:
    """The fields of a named size, or None if there is no such size."""
    from lit_transfusion.model.config import SIZES  # here, since it imports torch

    return asdict(SIZES[name]) if name in SIZES else None


class ConfigFile(ComposedFile):
    """The --config file of a run, which can contain the arms of a study (`arms:`)."""

    def __call__(self, parser, cfg: Namespace, values: str, option_string: str | None = None) -> None:
        if not isinstance(values, str) or "\n" in values:  # not a path: already content
            return super().__call__(parser, cfg, values, option_string)
        self.lay_over(parser, cfg, compose(values, cfg.get("arm")), option_string)


class SourceFile(ComposedFile):
    """The --config file of a command that has a source: the config of a run, or options of the command itself.

    The config of a run has a `data` section, from which the source is taken.
    """

    def __call__(self, parser, cfg: Namespace, values: str, option_string: str | None = None) -> None:
        parts = compose(values)
        of_run = any("data" in content for _, content in parts)
        self.lay_over(parser, cfg, source_options(parts) if of_run else parts, option_string)


def source_options(parts: Parts) -> Parts:
    """The options of such a command, taken from the `data` sections of a run."""
    whole = OmegaConf.to_container(OmegaConf.unsafe_merge(*(content for _, content in parts)))
    data = [(path, resolved({**whole, "part": content.get("data") or {}}, "part")) for path, content in parts]
    keys = "source", "vocab_size", "character_coverage"
    options = [(path, {key: section[key] for key in keys if key in section}) for path, section in data]
    sizes = [(path, section["image_size"]) for path, section in data if "image_size" in section]
    # The size comes last, because in a run the link from data.image_size also overwrites the sources of all files.
    return options + [(path, {"source": {"init_args": {"image_size": size}}}) for path, size in sizes[-1:]]
