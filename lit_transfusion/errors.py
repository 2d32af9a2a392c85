"""The one exception that means "the input is wrong", as opposed to "the program is wrong"."""


class InputError(ValueError):
    """Something that the user can mend: a path, a key, a value, a file.

    The message is one line that names the thing and the fix; the command prints it without a traceback
    and exits with status 2.
    """
