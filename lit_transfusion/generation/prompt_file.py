"""Prompts from a file."""

import json
from pathlib import Path
from typing import NamedTuple

from lit_transfusion.errors import InputError


class Request(NamedTuple):
    prompt: str | None = None
    seed: int | None = None  # of its first sample; None: in its turn


def read_prompt_file(path: str) -> list[Request]:
    """One prompt a line; or, in a .jsonl file, one {"prompt": ..., "seed": ...} a line, with or without the seed."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"prompts {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"prompts {path} is not UTF-8 text") from None
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise InputError(f"prompts {path} holds no prompt")
    if Path(path).suffix != ".jsonl":
        return [Request(line) for _, line in numbered]
    return [read_json_line(line, f"prompts {path}, line {number}") for number, line in numbered]


def read_json_line(line: str, place: str) -> Request:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: {error.msg}") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise InputError(f'{place} is not of the form {{"prompt": "...", "seed": 0}}')
    unknown = [key for key in entry if key not in Request._fields]
    if unknown:
        raise InputError(f"{place}: unknown key {unknown[0]!r}; known: {', '.join(Request._fields)}")
    if not isinstance(entry.get("seed", 0), int):
        raise InputError(f"{place}: seed {entry['seed']!r} is not a whole number")
    return Request(**entry)
