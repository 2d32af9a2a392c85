"""Edits of coloured shapes, drawn on the fly: what is asked for, and exactly what the result must show.

A picture has two small objects, or one where another is added. They differ in colour and shape, so that either names
one of them, and stand at places opposite to each other, so that each looks as it does in a picture of its own. An edit
changes one object, and the other must stay as it is, down to the pixel.
"""

import copy
from dataclasses import dataclass, replace
from random import Random
from typing import ClassVar, Literal, NamedTuple

from lit_transfusion.data.sources.base import Source
from lit_transfusion.data.types import EditExample
from lit_transfusion.errors import InputError
from lit_transfusion.shapes.scenes import (
    COLOURS,
    PAIRS,
    PLACES,
    SHAPES,
    DrawnObject,
    Single,
    draw,
    held_out_tenth,
)

SIZE = "small"
RIM = tuple(place for place in PLACES if place != "in the centre")  # nothing has room beside an object in the centre


def places_apart_from(*places: str) -> list[str]:
    """Places in the row or the column opposite to each of `places`."""
    return [
        candidate
        for candidate in RIM
        if all(max(abs(a - b) for a, b in zip(PLACES[candidate], PLACES[place], strict=True)) == 2 for place in places)
    ]


@dataclass(frozen=True)
class Edit:
    """What is done to one object: all that an instruction says, beyond which object it is."""

    colour: str
    shape: str
    new: str  # colour, shape or place

    wordings: ClassVar[tuple[str, ...]]

    @classmethod
    def every(cls) -> "list[Edit]":
        """All edits of this kind."""
        return [cls(*pair, new) for pair in PAIRS for new in cls.news(*pair)]

    @staticmethod
    def news(colour: str, shape: str) -> list[str]:
        """What the object can get."""
        raise NotImplementedError

    def before_and_after(self, random: Random) -> tuple[Single | None, Single | None]:
        """The object; None where it is not there."""
        raise NotImplementedError

    def single(self, place: str) -> Single:
        return Single(self.colour, self.shape, SIZE, place)

    def instructions(self) -> tuple[str, ...]:
        """Ways to ask for it."""
        names = f"the {self.colour} {self.shape}", f"the {self.shape}"
        words = {"colour": self.colour, "shape": self.shape, "new": self.new}
        asked = [wording.format(object=name, **words) for wording in self.wordings for name in names]
        return tuple(dict.fromkeys(asked))  # not all wordings name the object that way


class Recolour(Edit):
    wordings = (
        "make {object} {new}",
        "paint {object} {new}",
        "{object} should be {new}",
        "change the colour of {object} to {new}",
    )

    @staticmethod
    def news(colour: str, shape: str) -> list[str]:
        return [new for new in COLOURS if new != colour]

    def before_and_after(self, random: Random) -> tuple[Single, Single]:
        before = self.single(random.choice(RIM))
        return before, replace(before, colour=self.new)


class Reshape(Edit):
    wordings = (
        "make {object} a {new}",
        "turn {object} into a {new}",
        "{object} should be a {new}",
        "change the shape of {object} to a {new}",
    )

    @staticmethod
    def news(colour: str, shape: str) -> list[str]:
        return [new for new in SHAPES if new != shape]

    def before_and_after(self, random: Random) -> tuple[Single, Single]:
        before = self.single(random.choice(RIM))
        return before, replace(before, shape=self.new)


class Move(Edit):
    wordings = (
        "put {object} {new}",
        "{object} should be {new}",
        "move {object} so that it is {new}",
    )

    @staticmethod
    def news(colour: str, shape: str) -> list[str]:
        return list(RIM)

    def before_and_after(self, random: Random) -> tuple[Single, Single]:
        starts = [place for place in RIM if place != self.new and places_apart_from(place, self.new)]
        return self.single(random.choice(starts)), self.single(self.new)


class Add(Edit):
    wordings = (
        "add a {colour} {shape} {new}",
        "add a small {colour} {shape} {new}",
        "put a {colour} {shape} {new}",
        "there should be a {colour} {shape} {new}",
    )

    @staticmethod
    def news(colour: str, shape: str) -> list[str]:
        return list(RIM)

    def before_and_after(self, random: Random) -> tuple[None, Single]:
        return None, self.single(self.new)


class Remove(Edit):
    wordings = (
        "remove {object}",
        "delete {object}",
        "take {object} away",
        "there should be no {colour} {shape}",
    )

    @staticmethod
    def news(colour: str, shape: str) -> list[str]:
        return list(RIM)  # what is new is that there is nothing at this place

    def before_and_after(self, random: Random) -> tuple[Single, None]:
        return self.single(self.new), None


EDITS: dict[str, type[Edit]] = {"recolour": Recolour, "reshape": Reshape, "move": Move, "add": Add, "remove": Remove}


class ShapeEdit(NamedTuple):
    """An edit of a picture, with the truth about both pictures."""

    kind: str
    instructions: tuple[str, ...]
    before: tuple[DrawnObject, ...]
    after: tuple[DrawnObject, ...]

    @property
    def unchanged(self) -> list[DrawnObject]:
        """The objects that must stay exactly as they are: always one."""
        return [thing for thing in self.after if thing in self.before]


class ShapeEdits(Source):
    """Pictures of small coloured shapes with an instruction that changes one of them, and the result.

    Training and validation share no edit, where an edit is all that is done to an object: the red circle becomes blue,
    a green cross is added at the top. Both have all pairs of a colour and a shape, and the same scenes and wordings.

    Args:
        image_size: Side of the square pictures in pixels, at least 16.
        num_examples: Edits in the training split, at least 1 (the paper fine-tunes on 8,000).
        num_val_examples: Edits in the validation split, at least 1.
        edits: Which kinds of edits there are, in equal shares.
        seed: Which pictures and edits are drawn. What is held out is the same for all seeds.
    """

    images_per_example = 2

    def __init__(
        self,
        image_size: int = 24,
        num_examples: int = 8000,
        num_val_examples: int = 500,
        edits: tuple[Literal["recolour", "reshape", "move", "add", "remove"], ...] = tuple(EDITS),
        seed: int = 0,
    ) -> None:
        super().__init__(image_size)
        if image_size < 16:
            raise InputError(f"image_size is {image_size}: shapes need at least 16 pixels to be told apart")
        if num_examples < 1 or num_val_examples < 1:
            raise InputError(f"num_examples {num_examples} and num_val_examples {num_val_examples} must be at least 1")
        if not edits or len(set(edits)) < len(edits) or not set(edits) <= set(EDITS):
            raise InputError(f"edits is {list(edits)}: name some of {', '.join(EDITS)}, each at most once")
        self.num_examples = num_examples
        self.num_val_examples = num_val_examples
        self.seed = seed
        self.part: Literal["train", "val"] = "train"

        self._edits: dict[str, dict[str, list[Edit]]] = {"train": {}, "val": {}}  # of each split, the edits by kind
        for kind in edits:
            every = EDITS[kind].every()
            held_out = held_out_tenth(every, lambda edit: (edit.colour, edit.shape))
            self._edits["train"][kind] = [edit for edit in every if edit not in held_out]
            self._edits["val"][kind] = [edit for edit in every if edit in held_out]

    def split(self, name: Literal["train", "val"]) -> "ShapeEdits":
        """The training split, which is also what an unsplit source yields, or the validation split."""
        part = copy.copy(self)
        part.part = name
        return part

    def __len__(self) -> int:
        return self.num_examples if self.part == "train" else self.num_val_examples

    def __getitem__(self, index: int) -> EditExample:
        _, instructions, before, after = self.edit(index)
        return EditExample(draw(before, self.image_size), instructions, draw(after, self.image_size))

    def edit(self, index: int) -> ShapeEdit:
        """What the example at `index` asks for, and what its pictures show."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} examples")
        random = Random(f"{self.seed} {self.part} {index}")  # from a string it is the same in every process
        kinds = self._edits[self.part]
        kind = list(kinds)[index % len(kinds)]
        edit = random.choice(kinds[kind])
        before, after = edit.before_and_after(random)
        taken = [single for single in (before, after) if single is not None]
        place = random.choice(places_apart_from(*(single.place for single in taken)))
        pair = random.choice([pair for pair in PAIRS if pair[0] != edit.colour and pair[1] != edit.shape])
        other = Single(*pair, SIZE, place)

        # The jitter of an object is a function of its seed: a changed object keeps what the edit says nothing of.
        seed, other_seed = random.getrandbits(32), random.getrandbits(32)
        unchanged = other.layout(Random(other_seed))
        drawn = [unchanged + (single.layout(Random(seed)) if single is not None else []) for single in (before, after)]
        return ShapeEdit(kind, edit.instructions(), *map(tuple, drawn))

    def captions(self) -> list[str]:
        """Every instruction for every training edit."""
        edits = (edit for edits in self._edits["train"].values() for edit in edits)
        return [instruction for edit in edits for instruction in edit.instructions()]
