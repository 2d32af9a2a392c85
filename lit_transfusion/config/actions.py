"""What `--config` reads: the file of a run, or of a tool that wants to know of a run's source."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, Namespace, _common, set_parsing_settings
from omegaconf import OmegaConf

from lit_transfusion import allowed_imports
from lit_transfusion.config.compose import compose, resolved
from lit_transfusion.config.messages import one_line
from lit_transfusion.errors import InputError
from lit_transfusion.model.transformer import SIZES

# PyYAML writes the text 1e5 without quotes, and OmegaConf reads that as a number. jsonargparse does both to resolve
# ${...}, which would make 100000.0 of a folder of this name.
yaml.SafeDumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@contextmanager
def importing_only_what_is_allowed() -> Iterator[None]:
    """While something is parsed that the user did not pass, jsonargparse imports nothing but what is in this package or
    was named with `--import_module`. (Its settings can be added to and not taken back, so that they are put back here.)
    """
    before = dict(_common.parsing_settings)
    set_parsing_settings(
        import_path_denylist=["*"], import_path_allowlist=[allowed_imports.PACKAGE, *allowed_imports.named]
    )
    try:
        yield
    finally:
        _common.parsing_settings.update(before)


Parts = list[tuple[str, dict[str, Any]]]  # what is laid over each other, each with the name of its file


class ComposedFile(ActionConfigFile):
    """A --config file that may build on others (`base:`)."""

    def lay_over(self, parser, cfg: Namespace, parts: Parts, option_string: str | None) -> None:
        for path, content in parts:
            content = with_widths(content)
            try:
                super().__call__(parser, cfg, OmegaConf.to_yaml(content), option_string)
            except (ArgumentError, TypeError, ValueError) as error:
                raise InputError(f"{path}: {one_line(error)}") from error


def with_widths(content: dict[str, Any]) -> dict[str, Any]:
    """The same with the widths of a size in place of its name, so that what is laid over it may change one of them."""
    model = content.get("model")
    name = model.get("size") if isinstance(model, dict) else None
    if not isinstance(name, str) or name not in SIZES:
        return content
    return {**content, "model": {**model, "size": asdict(SIZES[name])}}


def words_with_widths(words: Sequence[str]) -> list[str]:
    """The same for a name on the command line: --model.size NAME or --model.size=NAME."""
    joined = re.sub(r"(^|\0)--model\.size[\0=]([^\0]*)", spelled_out, "\0".join(words))
    return joined.split("\0") if words else []


def spelled_out(option: re.Match[str]) -> str:
    start, name = option.groups()
    return f"{start}--model.size={json.dumps(asdict(SIZES[name]))}" if name in SIZES else option[0]


class ConfigFile(ComposedFile):
    """Of a run; it may hold the arms of a study (`arms:`)."""

    def __call__(self, parser, cfg: Namespace, values: str, option_string: str | None = None) -> None:
        if not isinstance(values, str) or "\n" in values:  # not a path: already content
            return super().__call__(parser, cfg, values, option_string)
        parts = compose(values, cfg.get("arm"))
        self.lay_over(parser, cfg, parts, option_string)
        parser.config_files.append(values)
        parser.arm_found = parser.arm_found or any("arm" in content for _, content in parts)


class SourceFile(ComposedFile):
    """Of a tool that has a source: that of a run, which says under `data` what it is, or one with the tool's own
    options."""

    def __call__(self, parser, cfg: Namespace, values: str, option_string: str | None = None) -> None:
        parts = compose(values)
        of_run = any("data" in content for _, content in parts)
        self.lay_over(parser, cfg, source_options(parts) if of_run else parts, option_string)


def source_options(parts: Parts) -> Parts:
    """Of what a run's files say of its data, what such a tool asks."""
    whole = OmegaConf.to_container(OmegaConf.unsafe_merge(*(content for _, content in parts)))
    data = [(path, resolved({**whole, "part": content.get("data") or {}}, "part")) for path, content in parts]
    keys = "source", "vocab_size", "character_coverage"
    options = [(path, {key: said[key] for key in keys if key in said}) for path, said in data]
    sizes = [(path, said["image_size"]) for path, said in data if "image_size" in said]
    # As in a run, whose link wins over the sources that the files name one after the other.
    return options + [(path, {"source": {"init_args": {"image_size": size}}}) for path, size in sizes[-1:]]
