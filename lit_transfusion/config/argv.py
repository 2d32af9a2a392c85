"""From what one writes on a command line to what jsonargparse reads."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_origin, get_type_hints


def spell_out(tool: Callable, argv: Sequence[str]) -> list[str]:
    """The words of a command line in jsonargparse's spelling: a switch without a value is true, and an option for a
    list takes all words that follow it, and more when it is given again."""
    hints = get_type_hints(tool)
    if "source" in hints:  # the options of a `fit` may be copied
        argv = [re.sub(r"^--data\.image_size\b", "--source.init_args.image_size", word) for word in argv]
        argv = [re.sub(r"^--data\.(?=(source|vocab_size|character_coverage)\b)", "--", word) for word in argv]
    words: list[str] = []
    lists: dict[str, list[str]] = {}  # option → its words
    takes = words  # where a word goes that is no option
    for word, following in zip(argv, [*argv[1:], "--"], strict=False):
        if not word.startswith("--"):
            takes.append(word)
            continue
        option, equals, value = word.removeprefix("--").partition("=")
        hint = hints.get(option.removesuffix("+"))  # --NAME+ adds to what stands before it
        if element_type(hint):
            takes = lists.setdefault(option, [])
            takes += [value] if equals else []
        else:
            takes = words
            words.append(f"{word}=true" if hint is bool and not equals and following.startswith("--") else word)
    for option, parts in lists.items():
        text = element_type(hints[option.removesuffix("+")]) is str  # which may hold anything; others need no quotes
        value = yaml_list(parts) if text else f"[{', '.join(parts).strip('[]')}]"
        words.append(f"--{option}={value}")
    return words


def yaml_list(texts: list[str]) -> str:
    """As JSON, but for letters beyond ASCII: YAML reads no escaped pairs, as JSON has them for emoji, and folds some
    line breaks that are not escaped."""
    return re.sub(r"[^ -~]", lambda letter: f"\\U{ord(letter[0]):08x}", json.dumps(texts, ensure_ascii=False))


def element_type(hint: Any) -> Any:
    """T of a list[T], or of a list[T] | None; None for what is no list."""
    for kind in (hint, *get_args(hint)):
        if get_origin(kind) is list:
            return get_args(kind)[0]
    return None
