"""GenEval (Ghosh et al., 2023) for drawn shapes: six categories, from a single object to pairs of colour and shape.

    prompts = geneval_prompts("position", n=24)
    right = [is_right(picture, prompt) for picture, prompt in zip(pictures, prompts)]

The questions are those of GenEval, but an exact reader replaces its detector. As in GenEval, extra objects are wrong
only for `counting`, and only if they have the counted shape; otherwise it is enough that the picture contains the asked
objects. The reader works for pictures of 16 pixels a side or more.

Training captions always give at least the colour and shape of an object, and a scene is held out only as a whole. So
each prompt describes all of its scene, and the category decides which part of it is judged.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import permutations, zip_longest
from random import Random
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from lit_transfusion.errors import InputError, check_at_least
from lit_transfusion.evaluation.metric import Metric, Subject, Unavailable
from lit_transfusion.shapes.scenes import (
    NUMBERS,
    SCENES,
    Count,
    Relation,
    Scene,
    Single,
    captions_of,
    held_out_scenes,
)

if TYPE_CHECKING:
    from torch import Tensor

    from lit_transfusion.shapes.scorer import FoundObject

OVERLAP = 0.1  # offset on an axis that is ignored, as a share of the sum of the sizes (value of GenEval)
DIRECTION = 0.5  # cosine of the largest angle between offset and axis, 60° (value of GenEval)

BASELINE_PICTURES = 96  # for each baseline

Found = Sequence["FoundObject"]


class GenEvalPrompt(NamedTuple):
    """A prompt, its category, and the scene that it describes completely."""

    text: str
    category: str
    scene: Scene


# -------------------------------------------------------------------------------------------------------------- judging


def has_shape(found: Found, scene: Single) -> bool:
    """Whether there is an object of the shape, in any colour."""
    return any(one.shape == scene.shape for one in found)


def has_coloured_shape(found: Found, scene: Single) -> bool:
    """Whether there is an object of the shape and the colour."""
    return any((one.colour, one.shape) == (scene.colour, scene.shape) for one in found)


def has_both_shapes(found: Found, scene: Relation) -> bool:
    """Whether there is an object of each shape, in any colours."""
    return {shape for _, shape in scene.pairs()} <= {one.shape for one in found}


def has_number(found: Found, scene: Count) -> bool:
    """Whether there are exactly as many objects of the shape as asked, in any colours."""
    return sum(one.shape == scene.shape for one in found) == NUMBERS[scene.number]


def has_relation(found: Found, scene: Relation) -> bool:
    """Whether an object of the first shape has the relation to an object of the second, in any colours."""
    return any(
        (one.shape, other.shape) == (scene.shape, scene.second_shape) and scene.relation in relations(one, other)
        for one, other in permutations(found, 2)
    )


def has_both_coloured_shapes(found: Found, scene: Relation) -> bool:
    """Whether there is an object of each shape in its colour, at any place."""
    return set(scene.pairs()) <= {(one.colour, one.shape) for one in found}


def relations(one: "FoundObject", other: "FoundObject") -> set[str]:
    """The relations of one object to another: none, one or two of "left of", "right of", "above" and "below".

    The rule is `relative_position` of GenEval: the offset between the centres, minus a tenth of the sizes, must point
    within 60° of the axis. If only the signs counted, two objects would always have two relations, and one pixel could
    change them.
    """
    offset = [a - b for a, b in zip(one.centre, other.centre, strict=True)]
    distance = sum(d**2 for d in offset) ** 0.5
    holding = set()
    for d, before, after in zip(offset, ("left of", "above"), ("right of", "below"), strict=True):
        if abs(d) - OVERLAP * (one.size + other.size) > DIRECTION * distance:
            holding.add(before if d < 0 else after)
    return holding


class Category(NamedTuple):
    """The kind of scene of a category's prompts, and the test for its pictures."""

    kind: type[Scene]
    judge: Callable[[Found, Scene], bool]


CATEGORIES = {
    "single_object": Category(Single, has_shape),
    "two_object": Category(Relation, has_both_shapes),
    "counting": Category(Count, has_number),
    "colours": Category(Single, has_coloured_shape),
    "position": Category(Relation, has_relation),
    "colour_attr": Category(Relation, has_both_coloured_shapes),
}


def is_right(picture: "Tensor", prompt: GenEvalPrompt) -> bool:
    """Whether a picture (3, S, S) in [-1, 1] on white shows what its category asks for."""
    from lit_transfusion.shapes.scorer import read_picture  # here, since it imports torch

    return CATEGORIES[prompt.category].judge(read_picture(picture), prompt.scene)


# -------------------------------------------------------------------------------------------------------------- prompts


def geneval_prompts(category: str, n: int = 24, seed: int = 0) -> list[GenEvalPrompt]:
    """Make prompts with wordings and scenes that training never shows. Categories share no scene.

    The (first) pairs of colour and shape alternate, so that any n covers them as evenly as possible. Two objects differ
    in both colour and shape. Prompt i is the same for all n.

    Args:
        category: One of CATEGORIES.
        n: Number of prompts, from 1 to 48.
        seed: Seed for the order of the scenes, and so for their choice.
    """
    kind = CATEGORIES[category].kind
    held_out = held_out_scenes(kind)
    scenes = [scene for scene in kind.every() if scene in held_out and is_distinct(scene)]
    sharing = [name for name, other in CATEGORIES.items() if other.kind is kind]
    own = scenes[sharing.index(category) :: len(sharing)]
    of_pair = defaultdict(list)
    for scene in Random(f"{seed} {category}").sample(own, len(own)):
        of_pair[scene.pairs()[0]].append(scene)
    in_turn = [scene for one_of_each in zip_longest(*of_pair.values()) for scene in one_of_each if scene is not None]
    wordings = kind.held_out_wordings
    prompts = [
        GenEvalPrompt(*captions_of(scene, [wordings[(i + turn) % len(wordings)]]), category, scene)
        for turn in range(len(wordings))
        for i, scene in enumerate(in_turn)
    ]
    if not 1 <= n <= len(prompts):
        raise InputError(f"{n} prompts of {category} are not possible: use 1 to {len(prompts)}")
    return prompts[:n]


def is_distinct(scene: Scene) -> bool:
    """Whether the objects of a scene are all equal, or share neither a colour nor a shape."""
    first, last = scene.pairs()[0], scene.pairs()[-1]
    return first == last or set(first).isdisjoint(last)


# --------------------------------------------------------------------------------------------------------------- metric


class GenEvalShapes(Metric):
    """Share of pictures that show what held-out prompts ask for, in the six categories of GenEval; for `Shapes`.

    Args:
        prompts_per_category: Number of prompts for each category, 1 to 48 (GenEval has 80 to 100).
        pictures_per_prompt: Number of pictures for each prompt, each with its own noise, at least 1 (GenEval draws 4).
    """

    columns: ClassVar[dict[str, str]] = {"geneval": "more"} | {f"geneval_{category}": "more" for category in CATEGORIES}

    def __init__(self, prompts_per_category: int = 24, pictures_per_prompt: int = 1) -> None:
        check_at_least("GenEvalShapes.pictures_per_prompt", pictures_per_prompt)
        self.pictures_per_prompt = pictures_per_prompt
        self.prompts = [
            prompt
            for category in CATEGORIES
            for prompt in geneval_prompts(category, prompts_per_category)
            for _ in range(pictures_per_prompt)
        ]

    def __call__(self, subject: Subject) -> dict[str, float]:
        """Measure the shares of right pictures, in [0, 1], and `geneval`, their mean over the categories."""
        from lit_transfusion.shapes.source import Shapes

        source = subject.source.pictures
        if not isinstance(source, Shapes):
            raise Unavailable(f"it needs the source Shapes, but data.source is {type(source).__name__}")
        if missing := [name for name in SCENES if name not in source.scenes]:
            raise Unavailable(f"it needs all kinds of scenes, but data.source.scenes lacks {', '.join(missing)}")
        drawn = subject.draw([prompt.text for prompt in self.prompts])
        right = [float(is_right(picture, prompt)) for picture, prompt in zip(drawn, self.prompts, strict=True)]
        k = self.pictures_per_prompt
        by_prompt = [sum(right[start : start + k]) / k for start in range(0, len(right), k)]
        size = len(by_prompt) // len(CATEGORIES)  # in the order of the categories
        for number, category in enumerate(CATEGORIES):
            subject.each[f"geneval_{category}"] = by_prompt[number * size : (number + 1) * size]
        subject.each["geneval"] = by_prompt
        return shares_of(zip(self.prompts, right, strict=True))

    def baselines(self, subject: Subject) -> dict[str, dict[str, float]]:
        """The same shares for noise and for training pictures; each picture is judged with each prompt."""
        from lit_transfusion.shapes.scorer import baseline_pictures, read_picture

        prompts = list(dict.fromkeys(self.prompts))  # without the repetitions for several pictures
        baselines = {}
        for name, images in baseline_pictures(subject.source.pictures, BASELINE_PICTURES).items():
            found = [read_picture(image) for image in images]
            answers = ((p, CATEGORIES[p.category].judge(objects, p.scene)) for p in prompts for objects in found)
            baselines[name] = shares_of(answers)
        return baselines


def shares_of(answers: Iterable[tuple[GenEvalPrompt, float]]) -> dict[str, float]:
    """The share of right answers in each category, and `geneval`, their mean."""
    right = {category: [] for category in CATEGORIES}
    for prompt, answer in answers:
        right[prompt.category].append(answer)
    shares = {f"geneval_{category}": sum(of_category) / len(of_category) for category, of_category in right.items()}
    return {"geneval": sum(shares.values()) / len(shares)} | shares
