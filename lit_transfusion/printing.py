"""Printing that cannot fail, whatever characters a terminal, a pipe or a log file takes."""

import sys


def print_anything() -> None:
    """Print a character that the output cannot encode as its number, such as \\u732b, in place of an error.

    Standard error does so already in Python. Of standard output, that is a terminal or a file in another encoding than
    UTF-8 (Windows, LANG=C, PYTHONIOENCODING), and in any encoding half of a surrogate pair.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not a stand-in, as in a notebook
            stream.reconfigure(errors="backslashreplace")
