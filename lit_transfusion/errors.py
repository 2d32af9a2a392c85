"""The exception for invalid input, as opposed to errors of the program."""


class InputError(ValueError):
    """An error that the user can fix, such as an invalid path, key, value or file.

    The message is one line: what is wrong, where, and how to fix it. The command prints it without a traceback, and
    exits with status 2.
    """


def check_at_least(name: str, number: int, least: int = 1) -> None:
    """Raise InputError if the value of the option `name` is too small."""
    if number < least:
        raise InputError(f"{name} {number} is invalid: it must be at least {least}")
