"""The source `Shapes`: coloured shapes on white with captions, drawn on the fly, so that no data is needed.

Also prompts that training never shows, for tests of a model.
"""

from random import Random
from typing import Literal, NamedTuple

from lit_transfusion.data.sources.base import Source
from lit_transfusion.data.types import Example
from lit_transfusion.errors import InputError
from lit_transfusion.shapes.drawn import Drawn, check_kinds
from lit_transfusion.shapes.scenes import (
    COLOURS,
    PAIRS,
    SCENES,
    Single,
    captions_of,
    draw,
    held_out_scenes,
)


class Shapes(Drawn, Source):
    """Scenes of coloured circles, squares, triangles and crosses on white, drawn on the fly with several true captions.

    Training and validation share no scene. A scene is everything that a caption can describe: colours and shapes, and
    the size and place, relation or number. Validation also uses wordings that training never uses. Both splits are
    practically infinite; the numbers below only set the length of an epoch.

    Args:
        image_size: Side of the square pictures in pixels, at least 16.
        num_examples: Number of pictures in the training split, at least 1.
        num_val_examples: Number of pictures in the validation split, at least 1.
        scenes: Kinds of scenes, in equal shares: "single" (one object with a size and a place), "relation" (two
            different objects, one left of, right of, above or below the other) and "count" (two to four equal objects).
        hold_out_pairs: Number of the 24 pairs of colour and shape that only the validation split has, 0 to 18. Each
            colour and each shape stays in training.
        seed: Seed for the pictures. The held-out scenes are the same for all seeds.
    """

    def __init__(
        self,
        image_size: int = 24,
        num_examples: int = 100_000,
        num_val_examples: int = 1000,
        scenes: tuple[Literal["single", "relation", "count"], ...] = ("single", "relation", "count"),
        hold_out_pairs: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(image_size)
        self.set_lengths(image_size, num_examples, num_val_examples, seed)
        check_kinds("scenes", scenes, tuple(SCENES))
        most_pairs = len(PAIRS) - len(COLOURS)
        if not 0 <= hold_out_pairs <= most_pairs:
            raise InputError(
                f"hold_out_pairs {hold_out_pairs} is invalid: it must be 0 to {most_pairs}, so that each colour stays "
                "in training"
            )
        self.scenes = scenes

        pairs_of_val = set(PAIRS[:hold_out_pairs])
        self.choices = {"train": {}, "val": {}}
        for name in scenes:
            kind = SCENES[name]
            held_out = {s for s in kind.every() if not pairs_of_val.isdisjoint(s.pairs())} | held_out_scenes(kind)
            self.choices["train"][name] = [scene for scene in kind.every() if scene not in held_out]
            self.choices["val"][name] = [scene for scene in kind.every() if scene in held_out]

    def __getitem__(self, index: int) -> Example:
        scene, _, random = self.choose(index)
        wordings = scene.wordings if self.part == "train" else scene.wordings + scene.held_out_wordings
        return Example(draw(scene.layout(random), self.image_size), captions_of(scene, wordings))

    def captions(self) -> list[str]:
        """All captions of all training scenes, also for the validation split: some ten thousand."""
        scenes = (scene for kind in self.choices["train"].values() for scene in kind)
        return [caption for scene in scenes for caption in captions_of(scene, scene.wordings)]


class ShapePrompt(NamedTuple):
    """A prompt, and the one object that the picture must show."""

    text: str
    colour: str
    shape: str


def single_object_prompts(n: int = 64, seed: int = 0) -> list[ShapePrompt]:
    """Make prompts for a single object that are never training captions, for any options of the source.

    Each names colour, shape, size and place of a held-out scene. The 24 pairs of colour and shape alternate, so that
    any n covers them as evenly as possible.

    Args:
        n: Number of prompts, from 1 to 216.
        seed: Seed for their choice and order.
    """
    random = Random(seed)
    wordings = (Single.wordings[0], *Single.held_out_wordings)  # those that name all four
    held_out = held_out_scenes(Single)
    prompts = {}
    for pair in PAIRS:
        scenes = [scene for scene in Single.every() if scene in held_out and scene.pairs() == [pair]]
        scenes = random.sample(scenes, len(scenes))
        prompts[pair] = [  # each scene of the pair once before any is repeated
            ShapePrompt(wording.format(**scene.words()), *pair)
            for wording in random.sample(wordings, len(wordings))
            for scene in scenes
        ]
    rounds = zip(*random.sample(list(prompts.values()), len(PAIRS)), strict=True)
    in_turn = [prompt for one_of_each in rounds for prompt in one_of_each]
    if not 1 <= n <= len(in_turn):
        raise InputError(f"{n} prompts are not possible: use 1 to {len(in_turn)}")
    return in_turn[:n]
