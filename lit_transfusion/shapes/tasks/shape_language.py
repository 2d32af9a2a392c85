"""The lm-eval task `shape_language`: choose the right one of two endings, in the language of the Shapes captions.

It has a hundred questions with the words of held-out scenes, twenty of each of five kinds: the number of a noun and of
a verb, the order of adjectives, `of` after `left` but not after `above`, and `in` before `the centre` but `at` before
an edge. For each kind, the endings that are right in half of the questions are wrong in the other half, or the two
endings differ only in word order. So chance is 1/2, even if a model prefers some words.

`shape_language.jsonl` contains the questions; run this file as a program to write it again.
"""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from lit_transfusion.shapes.scenes import PLURALS, Count, Relation, Scene, Single, held_out_scenes

FILE = Path(__file__).with_suffix(".jsonl")
OF_EACH_KIND = 20
EDGES = ("top", "left", "right", "bottom")


def load(**_: Any) -> dict[str, Any]:
    """Load the questions; lm-eval calls this and passes metadata, which is ignored."""
    import datasets  # comes with the extra lm-eval

    lines = FILE.read_text(encoding="utf-8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}


def number_of_noun(plural: bool, random: Random) -> tuple[str, str, str]:
    """Example: two small blue → circles; a small blue → circle."""
    scene = draw(Count if plural else Single, random)
    endings = PLURALS[scene.shape], scene.shape
    return f"{scene.number if plural else 'a'} {scene.size} {scene.colour}", *in_order(plural, endings)


def number_of_verb(plural: bool, random: Random) -> tuple[str, str, str]:
    """Example: the two circles → are small and blue; the circle at the top → is small and blue."""
    scene = draw(Count if plural else Single, random)
    subject = f"{scene.number} {PLURALS[scene.shape]}" if plural else f"{scene.shape} {scene.place}"
    endings = f"are {scene.size} and {scene.colour}", f"is {scene.size} and {scene.colour}"
    return f"the {subject}", *in_order(plural, endings)


def order_of_adjectives(plural: bool, random: Random) -> tuple[str, str, str]:
    """Example: two → small blue circles; a → small blue circle, not: blue small circle."""
    scene = draw(Count if plural else Single, random)
    number, shape = (scene.number, PLURALS[scene.shape]) if plural else ("a", scene.shape)
    return number, f"{scene.size} {scene.colour} {shape}", f"{scene.colour} {scene.size} {shape}"


def relation(with_of: bool, random: Random) -> tuple[str, str, str]:
    """Example: a red circle left → of a blue square; a red circle above → a blue square."""
    words = draw(Relation, random).words()
    where = random.choice(("left", "right") if with_of else ("above", "below"))
    endings = f"of a {words['second']}", f"a {words['second']}"
    return f"a {words['first']} {where}", *in_order(with_of, endings)


def place(at: bool, random: Random) -> tuple[str, str, str]:
    """Example: a small blue circle at the → top; a small blue circle in the → centre."""
    scene = draw(Single, random)
    endings = random.choice(EDGES), "centre"
    return f"a {scene.size} {scene.colour} {scene.shape} {'at' if at else 'in'} the", *in_order(at, endings)


KINDS: tuple[Callable[[bool, Random], tuple[str, str, str]], ...] = (  # (which half, random) → context, right, wrong
    number_of_noun,
    number_of_verb,
    order_of_adjectives,
    relation,
    place,
)


def draw(kind: type[Scene], random: Random) -> Scene:
    return random.choice(held_out(kind))


@cache
def held_out(kind: type[Scene]) -> list[Scene]:
    return sorted(held_out_scenes(kind), key=str)


def in_order(first_is_right: bool, endings: tuple[str, str]) -> tuple[str, str]:
    """The right ending, then the wrong one."""
    return endings if first_is_right else endings[::-1]


def questions() -> Iterator[dict[str, Any]]:
    """Yield the questions, all different: kind, context, two choices, and the index of the right one."""
    random, seen = Random(0), set()
    for ask in KINDS:
        count = 0
        while count < OF_EACH_KIND:
            context, right, wrong = ask(count % 2 == 0, random)
            if (context, right) in seen:
                continue
            seen.add((context, right))
            label = random.randrange(2)
            choices = in_order(label == 0, (right, wrong))
            yield {"kind": ask.__name__, "context": context, "choices": list(choices), "label": label}
            count += 1


if __name__ == "__main__":
    FILE.write_text("".join(json.dumps(question) + "\n" for question in questions()), encoding="utf-8")
