"""How messages say what they count."""


def counted(number: int, noun: str) -> str:
    """A number with the noun that it counts, in the singular after 1."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
