"""Reads the text files of users by one set of rules, whatever system or editor they come from.

- UTF-8, with or without a byte order mark.
- A line ends at LF or CRLF and nowhere else: U+2028, U+0085 and form feeds are characters of a line. (`str.splitlines`
  and a file opened as text end lines at some of these.)
- Bytes that are not UTF-8, UTF-16, NUL bytes, and a CR without an LF are errors, which name the file.
- Suffixes count in any case: captions.TXT is a .txt file.
"""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_transfusion.errors import InputError

NOT_UTF8 = "not UTF-8"


class UnreadableText(ValueError):
    """Bytes that are no text. The message is a short reason that is the same for all of one kind; `fix` says what to
    do."""

    def __init__(self, reason: str, fix: str = "save it as UTF-8") -> None:
        super().__init__(reason)
        self.fix = fix


def decode(content: bytes) -> str:
    """Text from the bytes of a file, or of one line; without a byte order mark, and with LF for each CRLF.

    Raises:
        UnreadableText: It is no text.
    """
    text = decode_exactly(content).removeprefix("\ufeff").replace("\r\n", "\n")
    if "\r" in text:
        raise UnreadableText("text with a CR that no LF follows", "end its lines with LF or CRLF")
    return text


def decode_exactly(content: bytes) -> str:
    """Text from bytes, to the last CR.

    Raises:
        UnreadableText: It is no text.
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
    """The lines of a decoded text, without their ends."""
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]


def read_text(path: str | Path, name: str = "") -> str:
    """A whole file.

    Args:
        path: The file.
        name: What an error calls it; the path, if it is empty.

    Raises:
        InputError: It is not there, or no text.
    """
    try:
        return decode(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"{name or path} cannot be read: {error.strerror}") from None
    except UnreadableText as error:
        raise InputError(f"{name or path} is {error}; {error.fix}") from None


def stream_lines(path: str | Path) -> Iterator[str]:
    """The lines of a file of any size, one after the other, each with its LF.

    Raises:
        InputError: It is not there, or no text.
    """
    number = 0  # of lines that were decoded
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
    """What a JSON file of one value holds.

    Raises:
        InputError: It is not there, no text, or broken.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: broken json ({error.msg})") from None


def suffix(path: str | Path) -> str:
    """The suffix of a file in lower case, with its dot."""
    return Path(path).suffix.lower()


def is_encodable(text: str) -> bool:
    """Whether a text is Unicode. JSON can write half of a surrogate pair, such as "\\ud83d", which is no character; so
    do names and arguments whose bytes are not UTF-8, in Python."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
