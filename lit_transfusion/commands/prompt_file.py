"""Prompts from a file."""

import json
from typing import NamedTuple

from lit_transfusion.errors import InputError
from lit_transfusion.text_reader import is_encodable, read_text, split_lines, suffix


class Request(NamedTuple):
    prompt: str | None = None
    seed: int | None = None  # of its first sample; None: in its turn


def read_prompt_file(path: str) -> list[Request]:
    """One prompt a line; or, in a .jsonl file, one {"prompt": ..., "seed": ...} a line, with or without the seed."""
    lines = split_lines(read_text(path, f"prompts {path}"))
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise InputError(f"prompts {path} holds no prompt")
    if suffix(path) != ".jsonl":
        return [Request(line) for _, line in numbered]
    return [read_json_line(line, f"prompts {path}, line {number}") for number, line in numbered]


def read_json_line(line: str, place: str) -> Request:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: {error.msg}") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise InputError(f'{place} is not of the form {{"prompt": "...", "seed": 0}}')
    if not is_encodable(entry["prompt"]):
        raise InputError(f"{place}: the prompt contains half of a surrogate pair, which is no character; remove it")
    unknown = [key for key in entry if key not in Request._fields]
    if unknown:
        raise InputError(f"{place}: unknown key {unknown[0]!r}; known: {', '.join(Request._fields)}")
    if not isinstance(entry.get("seed", 0), int):
        raise InputError(f"{place}: seed {entry['seed']!r} is not a whole number")
    return Request(**entry)
