"""Normalise the command line for jsonargparse."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_origin, get_type_hints


def spell_out(tool: Callable, argv: Sequence[str]) -> list[str]:
    """Write the words of a command line as jsonargparse reads them.

    A bool option without a value becomes true. A list option takes all words that follow it; given again, it adds more.
    """
    hints = get_type_hints(tool)
    if "source" in hints:  # accept the options of a `fit`, too
        argv = [re.sub(r"^--data\.image_size\b", "--source.init_args.image_size", word) for word in argv]
        argv = [re.sub(r"^--data\.(?=(source|vocab_size|character_coverage)\b)", "--", word) for word in argv]
    words: list[str] = []
    lists: dict[str, list[str]] = {}  # option → its words
    takes = words  # the list to which a word that is not an option is added
    for word, following in zip(argv, [*argv[1:], "--"], strict=False):
        if not word.startswith("--"):
            takes.append(word)
            continue
        option, equals, value = word.removeprefix("--").partition("=")
        hint = hints.get(option.removesuffix("+"))  # --NAME+ adds to the earlier values
        if element_type(hint):
            takes = lists.setdefault(option, [])
            takes += [value] if equals else []
        else:
            takes = words
            words.append(f"{word}=true" if hint is bool and not equals and following.startswith("--") else word)
    for option, parts in lists.items():
        text = element_type(hints[option.removesuffix("+")]) is str  # text needs quotes; other types do not
        value = yaml_list(parts) if text else f"[{', '.join(parts).strip('[]')}]"
        words.append(f"--{option}={value}")
    return words


def yaml_list(texts: list[str]) -> str:
    """Format a list of texts as JSON, with characters beyond ASCII escaped as YAML reads them.

    YAML does not read JSON's surrogate pairs (emoji), and folds some line breaks that are not escaped.
    """
    return re.sub(r"[^ -~]", lambda letter: f"\\U{ord(letter[0]):08x}", json.dumps(texts, ensure_ascii=False))


def element_type(hint: Any) -> Any:
    """Return T for list[T] or list[T] | None, and None for any other type."""
    for kind in (hint, *get_args(hint)):
        if get_origin(kind) is list:
            return get_args(kind)[0]
    return None
