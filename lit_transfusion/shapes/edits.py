"""Edits of coloured shapes, drawn on the fly: instructions, and exactly what the result must show.

A picture has two small objects, or one before an object is added. They differ in colour and in shape, so that either
word identifies one of them. They are on opposite sides of the picture, so that they never overlap. An edit changes one
object, and every pixel of the other must stay the same.
"""

from dataclasses import dataclass, replace
from random import Random
from typing import ClassVar, Literal, NamedTuple

from lit_transfusion.data.sources.base import Source
from lit_transfusion.data.types import EditExample
from lit_transfusion.shapes.drawn import Drawn, check_kinds
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
RIM = tuple(place for place in PLACES if place != "in the centre")  # no second object fits next to one in the centre


def places_apart_from(*places: str) -> list[str]:
    """The places whose row or column is opposite to that of each of `places`."""
    return [
        candidate
        for candidate in RIM
        if all(max(abs(a - b) for a, b in zip(PLACES[candidate], PLACES[place], strict=True)) == 2 for place in places)
    ]


@dataclass(frozen=True)
class Edit:
    """A change of one object, which is identified by its colour and shape."""

    colour: str
    shape: str
    new: str  # the new colour, shape or place

    wordings: ClassVar[tuple[str, ...]]

    @classmethod
    def every(cls) -> "list[Edit]":
        """All edits of this kind."""
        return [cls(*pair, new) for pair in PAIRS for new in cls.news(*pair)]

    @staticmethod
    def news(colour: str, shape: str) -> list[str]:
        """All possible values of `new` for an object: places, unless the edit changes something else."""
        return list(RIM)

    def before_and_after(self, random: Random) -> tuple[Single | None, Single | None]:
        """The object before and after the edit; None if it does not exist."""
        raise NotImplementedError

    def single(self, place: str) -> Single:
        return Single(self.colour, self.shape, SIZE, place)

    def instructions(self) -> tuple[str, ...]:
        """All instructions for this edit."""
        names = f"the {self.colour} {self.shape}", f"the {self.shape}"
        words = {"colour": self.colour, "shape": self.shape, "new": self.new}
        asked = [wording.format(object=name, **words) for wording in self.wordings for name in names]
        return tuple(dict.fromkeys(asked))  # without duplicates from wordings that do not use {object}


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

    def before_and_after(self, random: Random) -> tuple[None, Single]:
        return None, self.single(self.new)


class Remove(Edit):
    """`new` is the place that becomes empty."""

    wordings = (
        "remove {object}",
        "delete {object}",
        "take {object} away",
        "there should be no {colour} {shape}",
    )

    def before_and_after(self, random: Random) -> tuple[Single, None]:
        return self.single(self.new), None


EDITS: dict[str, type[Edit]] = {"recolour": Recolour, "reshape": Reshape, "move": Move, "add": Add, "remove": Remove}


class ShapeEdit(NamedTuple):
    """An edit of a picture, with the objects of both pictures."""

    kind: str
    instructions: tuple[str, ...]
    before: tuple[DrawnObject, ...]
    after: tuple[DrawnObject, ...]

    @property
    def unchanged(self) -> list[DrawnObject]:
        """The objects that must not change: always exactly one."""
        return [thing for thing in self.after if thing in self.before]


class ShapeEdits(Drawn, Source):
    """Pictures of small coloured shapes with an instruction that changes one of them, and the result.

    Training and validation share no edit. An edit is the full change of an object: the red circle becomes blue, or a
    green cross is added at the top. Both splits have all pairs of colour and shape, and the same scenes and wordings.

    Args:
        image_size: Side of the square pictures in pixels, at least 16.
        num_examples: Number of edits in the training split, at least 1 (the paper fine-tunes on 8,000).
        num_val_examples: Number of edits in the validation split, at least 1.
        edits: Kinds of edits, in equal shares.
        seed: Seed for pictures and edits. The held-out edits are the same for all seeds.
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
        self.set_lengths(image_size, num_examples, num_val_examples, seed)
        check_kinds("edits", edits, tuple(EDITS))
        self.choices = {"train": {}, "val": {}}
        for kind in edits:
            every = EDITS[kind].every()
            held_out = held_out_tenth(every, lambda edit: (edit.colour, edit.shape))
            self.choices["train"][kind] = [edit for edit in every if edit not in held_out]
            self.choices["val"][kind] = [edit for edit in every if edit in held_out]

    def __getitem__(self, index: int) -> EditExample:
        _, instructions, before, after = self.edit(index)
        return EditExample(draw(before, self.image_size), instructions, draw(after, self.image_size))

    def edit(self, index: int) -> ShapeEdit:
        """The edit of the example at `index`, with the objects of its pictures."""
        edit, kind, random = self.choose(index)
        before, after = edit.before_and_after(random)
        taken = [single for single in (before, after) if single is not None]
        place = random.choice(places_apart_from(*(single.place for single in taken)))
        pair = random.choice([pair for pair in PAIRS if pair[0] != edit.colour and pair[1] != edit.shape])
        other = Single(*pair, SIZE, place)

        # The jitter of an object depends only on its seed, so an edit keeps everything else of the changed object.
        seed, other_seed = random.getrandbits(32), random.getrandbits(32)
        unchanged = other.layout(Random(other_seed))
        drawn = [unchanged + (single.layout(Random(seed)) if single is not None else []) for single in (before, after)]
        return ShapeEdit(kind, edit.instructions(), *map(tuple, drawn))

    def captions(self) -> list[str]:
        """All instructions for all training edits."""
        edits = (edit for edits in self.choices["train"].values() for edit in edits)
        return [instruction for edit in edits for instruction in edit.instructions()]
