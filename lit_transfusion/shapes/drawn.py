"""What `Shapes` and `ShapeEdits` share: their options, their splits, and the choice of what is drawn at an index."""

import copy
from collections.abc import Sequence
from random import Random
from typing import Any, Literal, Self

from lit_transfusion.errors import InputError


class Drawn:
    """Mixin of sources that draw their examples on the fly, of several kinds in equal shares."""

    part: Literal["train", "val"] = "train"
    choices: dict[str, dict[str, list[Any]]]  # split → kind → everything that can be drawn

    def set_lengths(self, image_size: int, num_examples: int, num_val_examples: int, seed: int) -> None:
        if image_size < 16:
            raise InputError(f"image_size {image_size} is too small: shapes need at least 16 pixels")
        if num_examples < 1 or num_val_examples < 1:
            raise InputError(f"num_examples {num_examples} and num_val_examples {num_val_examples} must be at least 1")
        self.num_examples = num_examples
        self.num_val_examples = num_val_examples
        self.seed = seed

    def split(self, name: Literal["train", "val"]) -> Self:
        """The training or the validation split. A source that is not split yields the training split."""
        part = copy.copy(self)
        part.part = name
        return part

    def __len__(self) -> int:
        return self.num_examples if self.part == "train" else self.num_val_examples

    def choose(self, index: int) -> tuple[Any, str, Random]:
        """What is drawn at `index`, its kind, and the random numbers for the rest of the example."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} examples")
        random = Random(f"{self.seed} {self.part} {index}")  # a seed from a string is the same in every process
        kinds = self.choices[self.part]
        kind = list(kinds)[index % len(kinds)]
        return random.choice(kinds[kind]), kind, random


def check_kinds(option: str, kinds: Sequence[str], known: Sequence[str]) -> None:
    """Raise InputError unless the option names some of the known kinds, each at most once."""
    if not kinds or len(set(kinds)) < len(kinds) or not set(kinds) <= set(known):
        raise InputError(f"{option} {list(kinds)} is invalid: name some of {', '.join(known)}, each at most once")
