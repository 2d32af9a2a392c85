"""GenEval (Ghosh et al., 2023) for drawn shapes: six tasks, from one object of a shape to colours bound to shapes.

    prompts = geneval_prompts("position", n=24)
    right = [is_right(picture, prompt) for picture, prompt in zip(pictures, prompts)]

Where GenEval asks a detector, the picture is read exactly, and what it is asked is the same. As there, only `counting`
minds objects that nobody asked for, and only those of the shape that is counted; elsewhere it is enough that what was
asked for is there. The reader is right about every kind of picture that has 16 pixels a side or more.

The training captions never say less of an object than its colour and shape, and of a held-out scene something is held
out only if all of it is said. So each prompt says all of its scene, and the category decides what of it is judged.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import permutations, zip_longest
from random import Random
from typing import ClassVar, NamedTuple

from torch import Tensor

from lit_transfusion.errors import InputError
from lit_transfusion.evaluation.metric import Metric, Subject, Unavailable
from lit_transfusion.shapes.scenes import (
    NUMBERS,
    SCENES,
    Count,
    Relation,
    Scene,
    Single,
    captions_of,
    draw,
    held_out_scenes,
)
from lit_transfusion.shapes.scorer import FoundObject, noise_pictures, read_picture
from lit_transfusion.shapes.source import Shapes

OVERLAP = 0.1  # how far objects must be apart on an axis to count as apart, in the sum of their sizes (GenEval's)
DIRECTION = 0.5  # a relation holds up to 60° away from its axis (GenEval's)

BASELINE_PICTURES = 96  # of each kind

Found = Sequence[FoundObject]


class GenEvalPrompt(NamedTuple):
    """A prompt, what is judged, and the scene that it says all of."""

    text: str
    category: str
    scene: Scene


# -------------------------------------------------------------------------------------------------------------- judging


def has_shape(found: Found, scene: Single) -> bool:
    """An object of the shape, whatever its colour."""
    return any(one.shape == scene.shape for one in found)


def has_coloured_shape(found: Found, scene: Single) -> bool:
    """An object of the shape and the colour."""
    return any((one.colour, one.shape) == (scene.colour, scene.shape) for one in found)


def has_both_shapes(found: Found, scene: Relation) -> bool:
    """An object of each shape, whatever their colours."""
    return {shape for _, shape in scene.pairs()} <= {one.shape for one in found}


def has_number(found: Found, scene: Count) -> bool:
    """As many objects of the shape as were asked for, and no more, whatever their colours."""
    return sum(one.shape == scene.shape for one in found) == NUMBERS[scene.number]


def has_relation(found: Found, scene: Relation) -> bool:
    """An object of the first shape on the right side of one of the second, whatever their colours."""
    return any(
        (one.shape, other.shape) == (scene.shape, scene.second_shape) and scene.relation in relations(one, other)
        for one, other in permutations(found, 2)
    )


def has_both_coloured_shapes(found: Found, scene: Relation) -> bool:
    """An object of each shape in its own colour, wherever they are."""
    return set(scene.pairs()) <= {(one.colour, one.shape) for one in found}


def relations(one: FoundObject, other: FoundObject) -> set[str]:
    """How one object stands to another: "left of", "right of", "above", "below", none or two of them.

    The rule is GenEval's (its `relative_position`): the offset between the centres, less a tenth of the sizes, must
    point within 60° of the axis. By signs alone, any two objects would have two relations, and a pixel would decide.
    """
    offset = [a - b for a, b in zip(one.centre, other.centre, strict=True)]
    distance = sum(d**2 for d in offset) ** 0.5
    holding = set()
    for d, before, after in zip(offset, ("left of", "above"), ("right of", "below"), strict=True):
        if abs(d) - OVERLAP * (one.size + other.size) > DIRECTION * distance:
            holding.add(before if d < 0 else after)
    return holding


class Category(NamedTuple):
    """What the prompts of a category are about, and what a picture must show."""

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


def is_right(picture: Tensor, prompt: GenEvalPrompt) -> bool:
    """Whether a picture (3, S, S) in [-1, 1] on white shows what its category asks for."""
    return CATEGORIES[prompt.category].judge(read_picture(picture), prompt.scene)


# -------------------------------------------------------------------------------------------------------------- prompts


def geneval_prompts(category: str, n: int = 24, seed: int = 0) -> list[GenEvalPrompt]:
    """Prompts in wordings and of scenes that training never shows. Categories share no scene.

    The (first) pairs of colour and shape come in turn, so that any n covers them as evenly as it can. Where there are
    two objects they differ in both colour and shape. Prompt i is the same for all n.

    Args:
        category: One of CATEGORIES.
        n: How many, from 1 to 48.
        seed: In which order they come, and so which of them.
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
        raise InputError(f"{n} prompts of {category} were asked for; there are from 1 to {len(prompts)} different ones")
    return prompts[:n]


def is_distinct(scene: Scene) -> bool:
    """Whether its objects, if there are different ones, share neither a colour nor a shape."""
    first, last = scene.pairs()[0], scene.pairs()[-1]
    return first == last or set(first).isdisjoint(last)


def true_picture(prompt: GenEvalPrompt, image_size: int, seed: int = 0) -> Tensor:
    """A picture (3, image_size, image_size) in [-1, 1] of what a prompt says; the seed moves things a little."""
    return draw(prompt.scene.layout(Random(seed)), image_size)


# --------------------------------------------------------------------------------------------------------------- metric


class GenEvalShapes(Metric):
    """How often pictures show what held-out prompts ask for, by the six categories of GenEval; for `Shapes`.

    Args:
        prompts_per_category: From 1 to 48 (GenEval has 80 to 100).
        pictures_per_prompt: Each with a noise of its own, at least 1 (GenEval draws 4).
    """

    columns: ClassVar[dict[str, str]] = {"geneval": "more"} | {f"geneval_{category}": "more" for category in CATEGORIES}

    def __init__(self, prompts_per_category: int = 24, pictures_per_prompt: int = 1) -> None:
        if pictures_per_prompt < 1:
            raise InputError(f"pictures_per_prompt is {pictures_per_prompt}: it must be at least 1")
        self.pictures_per_prompt = pictures_per_prompt
        self.prompts = [
            prompt
            for category in CATEGORIES
            for prompt in geneval_prompts(category, prompts_per_category)
            for _ in range(pictures_per_prompt)
        ]

    def __call__(self, subject: Subject) -> dict[str, float]:
        """Shares in [0, 1] of the pictures, and `geneval`, the mean over the categories."""
        if not isinstance(subject.source, Shapes):
            raise Unavailable(f"the prompts are about Shapes, and the source is {type(subject.source).__name__}")
        if missing := [name for name in SCENES if name not in subject.source.scenes]:
            raise Unavailable(f"the source draws no scenes of kind {', '.join(missing)}, which some prompts are about")
        drawn = subject.draw([prompt.text for prompt in self.prompts])  # (N, 3, S, S)
        right = [float(is_right(picture, prompt)) for picture, prompt in zip(drawn, self.prompts, strict=True)]
        k = self.pictures_per_prompt
        by_prompt = [sum(right[start : start + k]) / k for start in range(0, len(right), k)]
        size = len(by_prompt) // len(CATEGORIES)  # in the order of the categories
        for number, category in enumerate(CATEGORIES):
            subject.each[f"geneval_{category}"] = by_prompt[number * size : (number + 1) * size]
        subject.each["geneval"] = by_prompt
        return shares_of(zip(self.prompts, right, strict=True))

    def baselines(self, subject: Subject) -> dict[str, dict[str, float]]:
        """The same shares for noise, and for pictures of the training split: each is judged by every prompt."""
        train = subject.source.split("train")
        pictures = {
            "noise": noise_pictures(BASELINE_PICTURES, train.image_size),
            "random training pictures": [train[index].image for index in range(min(BASELINE_PICTURES, len(train)))],
        }
        prompts = list(dict.fromkeys(self.prompts))  # those that are drawn several times weigh as much as others
        baselines = {}
        for name, images in pictures.items():
            found = [read_picture(image) for image in images]
            answers = ((p, CATEGORIES[p.category].judge(objects, p.scene)) for p in prompts for objects in found)
            baselines[name] = shares_of(answers)
        return baselines


def shares_of(answers: Iterable[tuple[GenEvalPrompt, float]]) -> dict[str, float]:
    """Whether each picture was right for its prompt → the share of each category, and `geneval`, their mean."""
    right = {category: [] for category in CATEGORIES}
    for prompt, answer in answers:
        right[prompt.category].append(answer)
    shares = {f"geneval_{category}": sum(of_category) / len(of_category) for category, of_category in right.items()}
    return {"geneval": sum(shares.values()) / len(shares)} | shares
