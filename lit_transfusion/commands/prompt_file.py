"""Read prompts from a file."""

import json
from typing import NamedTuple

from lit_transfusion.errors import InputError
from lit_transfusion.text_reader import is_encodable, read_text, split_lines, suffix


class Request(NamedTuple):
    prompt: str | None = None
    seed: int | None = None  # seed of its first sample; None: follows from the seed of the command


def read_prompt_file(path: str) -> list[Request]:
    """Read one prompt from each line; lines of a .jsonl file are {"prompt": ..., "seed": ...} with an optional seed."""
    lines = split_lines(read_text(path, f"prompts {path}"))
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise InputError(f"prompts {path} contains no prompts; use a file with at least one")
    if suffix(path) != ".jsonl":
        return [Request(line) for _, line in numbered]
    return [read_json_line(line, f"prompts {path}, line {number}") for number, line in numbered]


def read_json_line(line: str, place: str) -> Request:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place} is not valid JSON: {error.msg}") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise InputError(f'{place} is invalid: it must have the form {{"prompt": "...", "seed": 0}}')
    if not is_encodable(entry["prompt"]):
        raise InputError(f"{place}: the prompt contains half of a surrogate pair, which is not a character; remove it")
    unknown = [key for key in entry if key not in Request._fields]
    if unknown:
        raise InputError(f"{place}: unknown key {unknown[0]!r}; use only {', '.join(Request._fields)}")
    if not isinstance(entry.get("seed", 0), int):
        raise InputError(f"{place}: seed {entry['seed']!r} is invalid: it must be an integer")
    return Request(**entry)
