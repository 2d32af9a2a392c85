"""Printing that does not fail on characters that the output cannot encode."""

import sys


def print_anything() -> None:
    """Make standard output print characters that it cannot encode as escapes, such as \\u732b.

    Python does this for standard error. Standard output would raise an error if its encoding is not UTF-8 (Windows,
    LANG=C, PYTHONIOENCODING), and in any encoding for half of a surrogate pair.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # missing in a notebook
            stream.reconfigure(errors="backslashreplace")
