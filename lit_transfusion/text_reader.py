"""Read text files from users by one set of rules, whatever system or editor wrote them.

- UTF-8, with or without a byte order mark.
- A line ends at LF or CRLF only. U+2028, U+0085 and form feeds are ordinary characters. (`str.splitlines` and a file
  opened as text end lines at some of these.)
- Bytes that are not UTF-8, UTF-16, NUL bytes, and a CR without an LF are errors. The message names the file.
- The case of a suffix does not matter: captions.TXT is a .txt file.
"""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_transfusion.errors import InputError

NOT_UTF8 = "not UTF-8"


class UnreadableText(ValueError):
    """Bytes that are not text. The message is a short reason, the same for all errors of one kind; `fix` is what the
    user should do."""

    def __init__(self, reason: str, fix: str = "save it as UTF-8") -> None:
        super().__init__(reason)
        self.fix = fix


def decode(content: bytes) -> str:
    """Decode a file, or one line of it: drop the byte order mark and replace each CRLF by LF.

    Raises:
        UnreadableText: The bytes are not text.
    """
    text = decode_exactly(content).removeprefix("\ufeff").replace("\r\n", "\n")
    if "\r" in text:
        raise UnreadableText("text with a CR without an LF", "end its lines with LF or CRLF")
    return text


def decode_exactly(content: bytes) -> str:
    """Decode bytes and keep every character, also CR and the byte order mark.

    Raises:
        UnreadableText: The bytes are not text.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UnreadableText("UTF-16")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise UnreadableText(NOT_UTF8) from None
    if "\0" in text:
        raise UnreadableText("text with NUL bytes", "save it as UTF-8, without NUL bytes")
    return text


def split_lines(text: str) -> list[str]:
    """Split a decoded text into lines, without their line ends."""
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]


def read_text(path: str | Path, name: str = "") -> str:
    """Read a whole text file.

    Args:
        path: The file.
        name: The name of the file in error messages; the path if empty.

    Raises:
        InputError: The file does not exist or is not text.
    """
    try:
        return decode(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"{name or path} cannot be read: {error.strerror}") from None
    except UnreadableText as error:
        raise InputError(f"{name or path} is {error}; {error.fix}") from None


def stream_lines(path: str | Path) -> Iterator[str]:
    """Yield the lines of a file of any size, each with its LF.

    Raises:
        InputError: The file does not exist or is not text.
    """
    number = 0  # lines decoded so far
    try:
        with open(path, "rb") as file:
            for line in file:
                yield decode(line)
                number += 1
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except UnreadableText as error:
        raise InputError(f"{path}, line {number + 1} is {error}; {error.fix}") from None


def read_json(path: str | Path) -> Any:
    """Read a JSON file that contains one value.

    Raises:
        InputError: The file does not exist, is not text, or is not valid JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: broken json ({error.msg}); fix the file") from None


def suffix(path: str | Path) -> str:
    """The suffix of a file in lower case, with its dot."""
    return Path(path).suffix.lower()


def is_encodable(text: str) -> bool:
    """Whether a text can be encoded as UTF-8.

    Half of a surrogate pair is not a character and cannot be. JSON can contain one, such as "\\ud83d", and Python
    puts them into file names and arguments whose bytes are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
