"""Coloured shapes on white, drawn on the fly with captions: the data set that needs no data.

The source, and prompts that training never shows, to test a model with.
"""

import copy
from random import Random
from typing import Literal, NamedTuple

from lit_transfusion.data.sources.base import Source
from lit_transfusion.data.types import Example
from lit_transfusion.errors import InputError
from lit_transfusion.shapes.scenes import (
    COLOURS,
    PAIRS,
    SCENES,
    Scene,
    Single,
    captions_of,
    draw,
    held_out_scenes,
)


class Shapes(Source):
    """Scenes of coloured circles, squares, triangles and crosses on white, drawn on the fly with several true captions.

    Training and validation share no scene, where a scene is all that can be said of a picture: which colours and
    shapes, and the size and place, relation or number. Validation also says things in wordings that training never
    uses. Both splits are infinite for all practical ends; the numbers below only set the length of an epoch.

    Args:
        image_size: Side of the square pictures in pixels, at least 16.
        num_examples: Pictures in the training split, at least 1.
        num_val_examples: Pictures in the validation split, at least 1.
        scenes: Which kinds of scenes are drawn, in equal shares: "single" (one object of some size at some place),
            "relation" (two different objects, one left of, right of, above or below the other) and "count" (two to
            four equal objects).
        hold_out_pairs: How many of the 24 pairs of a colour and a shape only the validation split shows, 0 to 18. Each
            colour and each shape stays in training.
        seed: Which pictures are drawn. What is held out is the same for all seeds.
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
        most_pairs = len(PAIRS) - len(COLOURS)
        if image_size < 16:
            raise InputError(f"image_size is {image_size}: shapes need at least 16 pixels to be told apart")
        if num_examples < 1 or num_val_examples < 1:
            raise InputError(f"num_examples {num_examples} and num_val_examples {num_val_examples} must be at least 1")
        if not scenes or len(set(scenes)) < len(scenes) or not set(scenes) <= set(SCENES):
            raise InputError(f"scenes is {list(scenes)}: name some of {', '.join(SCENES)}, each at most once")
        if not 0 <= hold_out_pairs <= most_pairs:
            raise InputError(
                f"hold_out_pairs is {hold_out_pairs}: it must be 0 to {most_pairs}, for each colour to stay in training"
            )
        self.num_examples = num_examples
        self.num_val_examples = num_val_examples
        self.scenes = scenes
        self.seed = seed
        self.part: Literal["train", "val"] = "train"

        pairs_of_val = set(PAIRS[:hold_out_pairs])
        self._scenes: dict[str, list[list[Scene]]] = {"train": [], "val": []}  # of each split, the scenes of each kind
        for kind in (SCENES[name] for name in scenes):
            every, held_out = kind.every(), held_out_scenes(kind)
            is_val = [scene in held_out or not pairs_of_val.isdisjoint(scene.pairs()) for scene in every]
            self._scenes["train"].append([scene for scene, val in zip(every, is_val, strict=True) if not val])
            self._scenes["val"].append([scene for scene, val in zip(every, is_val, strict=True) if val])

    def split(self, name: Literal["train", "val"]) -> "Shapes":
        """The training split, which is also what an unsplit source yields, or the validation split."""
        part = copy.copy(self)
        part.part = name
        return part

    def __len__(self) -> int:
        return self.num_examples if self.part == "train" else self.num_val_examples

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} examples")
        random = Random(f"{self.seed} {self.part} {index}")  # from a string it is the same in every process
        kinds = self._scenes[self.part]
        scene = random.choice(kinds[index % len(kinds)])
        wordings = scene.wordings if self.part == "train" else scene.wordings + scene.held_out_wordings
        return Example(draw(scene.layout(random), self.image_size), captions_of(scene, wordings))

    def captions(self) -> list[str]:
        """Every caption of every training scene, in either split: some ten thousand."""
        scenes = (scene for kind in self._scenes["train"] for scene in kind)
        return [caption for scene in scenes for caption in captions_of(scene, scene.wordings)]


class ShapePrompt(NamedTuple):
    """A prompt, and what the picture must show: this one object."""

    text: str
    colour: str
    shape: str


def single_object_prompts(n: int = 64, seed: int = 0) -> list[ShapePrompt]:
    """Prompts for a single object, none of them a caption that training shows under any options of the source.

    Each names colour, shape, size and place of a held-out scene. The 24 pairs of colour and shape come in turn, so that
    any n covers them as evenly as it can.

    Args:
        n: How many, from 1 to 216.
        seed: Which of them, and in which order.
    """
    random = Random(seed)
    wordings = (Single.wordings[0], *Single.held_out_wordings)  # those that name all four
    held_out = held_out_scenes(Single)
    prompts = {}
    for pair in PAIRS:
        scenes = [scene for scene in Single.every() if scene in held_out and scene.pairs() == [pair]]
        scenes = random.sample(scenes, len(scenes))
        prompts[pair] = [  # all scenes of the pair before one comes a second time
            ShapePrompt(wording.format(**scene.words()), *pair)
            for wording in random.sample(wordings, len(wordings))
            for scene in scenes
        ]
    rounds = zip(*random.sample(list(prompts.values()), len(PAIRS)), strict=True)
    in_turn = [prompt for one_of_each in rounds for prompt in one_of_each]
    if not 1 <= n <= len(in_turn):
        raise InputError(f"{n} prompts were asked for; there are from 1 to {len(in_turn)} different ones")
    return in_turn[:n]
