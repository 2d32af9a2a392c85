"""A folder that `export` wrote, on this machine or on the Hugging Face hub: the names of its files and its config."""

import json
from pathlib import Path
from typing import Any

from lit_transfusion.errors import InputError

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """Read config.json, with the codec's relative paths made absolute."""
    if not (folder / CONFIG).is_file():
        last = folder / "checkpoints" / "last.ckpt"
        hint = f"; for this run, use {last}" if last.exists() else "; use a checkpoint or an exported folder"
        raise InputError(f"{name} is not an exported model: it contains no {CONFIG}{hint}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        arguments = config["codec"]["init_args"].items()
    except ValueError as error:
        raise InputError(f"{name}/{CONFIG} is not valid JSON ({error}); export the model again") from None
    except (AttributeError, KeyError, TypeError):
        raise InputError(
            f"{name}/{CONFIG} does not describe a model of lit_transfusion: it has no codec; export the model again"
        ) from None
    config["codec"]["init_args"] = {
        key: str(folder / value) if isinstance(value, str) and value.startswith("./") else value
        for key, value in arguments
    }
    return config
