"""Words for counts in messages."""


def counted(number: int, noun: str) -> str:
    """A number and its noun: "1 picture", "2 pictures"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
