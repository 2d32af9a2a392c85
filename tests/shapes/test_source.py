"""Shapes: true captions, splits without common scenes, and equal pictures everywhere."""

from collections import Counter

import pytest
import torch

from lit_transfusion.errors import InputError
from lit_transfusion.shapes.scenes import (
    COLOURS,
    NUMBERS,
    PAIRS,
    PLACES,
    RELATIONS,
    SCENES,
    SHAPES,
    SIZES,
    SIZES_OF_SEVERAL,
    DrawnObject,
    captions_of,
    centre,
    coverage,
    draw,
    parse_caption,
)
from lit_transfusion.shapes.scorer import FoundObject, read_picture
from lit_transfusion.shapes.source import Shapes, single_object_prompts

KINDS = tuple(SCENES)


def all_captions(source: Shapes) -> set[str]:
    return {caption for index in range(len(source)) for caption in source[index].captions}


# ------------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("image_size", [16, 24, 64])
def test_example_is_a_picture_with_several_captions(image_size):
    for index, example in enumerate(Shapes(image_size=image_size, num_examples=9)):
        assert example.image.shape == (3, image_size, image_size) and example.image.dtype == torch.float32
        assert -1 <= example.image.min() < 1 == example.image.max(), index
        assert len(set(example.captions)) == len(example.captions) >= 5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("image_size", [24, 64])
def test_drawing_agrees_with_supersampling(shape, image_size):
    centre, size, fine = (0.47, 0.53), 0.4, 16
    reference = (coverage(SHAPES[shape], centre, size, image_size * fine) > 0.5).float()  # only inside and outside
    reference = reference.view(image_size, fine, image_size, fine).mean((1, 3))
    error = (coverage(SHAPES[shape], centre, size, image_size) - reference).abs()
    assert error.max() < 0.4 and error.mean() < 0.005  # the distance is inexact at corners only


def test_objects_lie_inside_the_picture_and_apart():
    for kind in KINDS:
        source = Shapes(image_size=64, num_examples=15, scenes=(kind,))
        for example in source:
            rim = torch.cat([example.image[:, [0, -1]].flatten(), example.image[:, :, [0, -1]].flatten()])
            assert (rim == 1).all(), example.captions
            assert len(read_picture(example.image)) == len(parse_caption(example.captions[0])), example.captions


def test_later_objects_cover_earlier_ones():
    image = draw([DrawnObject("red", "square", (0.5, 0.5), 0.8), DrawnObject("black", "circle", (0.5, 0.5), 0.4)], 24)
    assert (image[:, 12, 12] == -1).all() and image[0, 4, 4] > 0.5


# ------------------------------------------------------------------------------------------------------------- captions


def is_true(caption: str, found: list[FoundObject]) -> bool:
    """Whether a caption, word by word, is true for the objects found in the pixels."""
    words = caption.split()
    named = parse_caption(caption)
    if Counter(named) != Counter((one.colour, one.shape) for one in found):
        return False
    sizes = SIZES if len(found) == 1 else SIZES_OF_SEVERAL
    for word, size in sizes.items():
        if word in words and any(abs(one.size - size) > 0.03 for one in found):
            return False
    for place in PLACES:  # "at the top" is a part of "at the top left"
        longer = any(place != other and place in other and other in caption for other in PLACES)
        if place in caption and not longer:
            (one,) = found
            size = min(SIZES.values(), key=lambda size: abs(size - one.size))
            x, y = centre(place, size)
            if max(abs(one.centre[0] - x), abs(one.centre[1] - y)) > 0.06:
                return False
    for word, number in NUMBERS.items():
        if word in words and len(found) != number:
            return False
    for relation, reverse in RELATIONS.items():
        axis = 0 if relation == "left of" else 1
        if relation in caption or reverse in caption:
            first, second = (next(one for one in found if (one.colour, one.shape) == pair) for pair in named)
            # "A left of B" and "right of A there is B" put A first; "B right of A" puts it last
            before = (relation in caption) != caption.startswith((relation, reverse))
            if (first.centre[axis] < second.centre[axis]) != before:
                return False
    return True


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_true_of_the_picture(kind, part):
    source = Shapes(image_size=32, num_examples=30, num_val_examples=30, scenes=(kind,)).split(part)
    for example in source:
        found = read_picture(example.image)
        for caption in example.captions:
            assert is_true(caption, found), (caption, found)


def test_the_judge_of_captions_finds_lies():
    found = read_picture(draw([DrawnObject("red", "circle", (0.2, 0.5), SIZES["small"])], 32))
    assert is_true("a small red circle at the left", found)
    for lie in ["a red square", "a large red circle", "a red circle at the top left", "two red circles"]:
        assert not is_true(lie, found), lie
    found = read_picture(
        draw([DrawnObject("red", "circle", (0.25, 0.5), 0.3), DrawnObject("blue", "cross", (0.75, 0.5), 0.3)], 32)
    )
    assert is_true("a red circle left of a blue cross", found) and is_true("a blue cross right of a red circle", found)
    assert is_true("right of the red circle there is a blue cross", found)
    assert not is_true("a blue cross left of a red circle", found)
    assert not is_true("right of the blue cross there is a red circle", found)


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_wordings_are_new_but_their_words_are_known(kind):
    source = Shapes(scenes=(kind,), num_val_examples=50)
    train = set(source.captions())
    words = {word for caption in train for word in caption.split()}
    for scene in SCENES[kind].every():
        new = captions_of(scene, scene.held_out_wordings)
        assert new and train.isdisjoint(new)
        assert {word for caption in new for word in caption.split()} <= words
    for example in source.split("val"):
        assert len(example.captions) == len(scene.wordings) + len(scene.held_out_wordings)
        assert train.isdisjoint(example.captions[len(scene.wordings) :])


def test_captions_are_those_of_training():
    source = Shapes(num_examples=600)
    captions = source.captions()
    assert all_captions(source) <= set(captions)
    assert captions == source.split("val").captions() == Shapes(num_examples=1).captions()
    assert 5_000 < len(captions) < 20_000


# --------------------------------------------------------------------------------------------------------------- splits


def test_splits_share_no_scene():
    source = Shapes(num_examples=600)
    for name, kind in SCENES.items():
        train, val = (set(source.choices[part][name]) for part in ("train", "val"))
        assert not train & val and train | val == set(kind.every())
        assert 0.08 < len(val) / len(train | val) < 0.2
        assert {scene.pairs()[0] for scene in train} == {scene.pairs()[0] for scene in val} == set(PAIRS)
    # the fullest caption names all of a single scene
    full = SCENES["single"].wordings[0]
    of_val = {captions_of(scene, [full])[0] for scene in source.choices["val"]["single"]}
    assert not all_captions(source) & of_val


def test_held_out_pairs_are_in_val_only():
    for number in (1, 18):
        source = Shapes(image_size=16, num_examples=500, num_val_examples=500, hold_out_pairs=number)
        seen = {
            part: {pair for example in source.split(part) for pair in parse_caption(example.captions[0])}
            for part in ("train", "val")
        }
        assert len(seen["train"]) == len(PAIRS) - number and len(seen["val"]) == len(PAIRS)
        assert {colour for colour, _ in seen["train"]} == set(COLOURS)
        assert {shape for _, shape in seen["train"]} == set(SHAPES)
        assert {pair for caption in source.captions() for pair in parse_caption(caption)} == seen["train"]


def test_kinds_come_in_equal_shares():
    counts = Counter(example.captions[0].split()[0] in NUMBERS for example in Shapes(num_examples=300))
    assert counts[True] == 100
    single = Shapes(num_examples=100, scenes=("single",))
    assert all(len(parse_caption(example.captions[0])) == 1 for example in single)


def test_length_is_that_of_the_split():
    source = Shapes(num_examples=7, num_val_examples=5)
    assert len(source) == len(source.split("train")) == len(source.split("val").split("train")) == 7
    assert len(source.split("val")) == len(list(source.split("val"))) == 5
    with pytest.raises(IndexError):
        source[7]


# ---------------------------------------------------------------------------------------------------------- determinism

FINGERPRINT = """
import hashlib
from lit_transfusion.shapes.source import Shapes, single_object_prompts
source, digest = Shapes(num_examples=30, num_val_examples=30, hold_out_pairs=2), hashlib.sha256()
for part in ("train", "val"):
    for example in source.split(part):
        digest.update(example.image.numpy().tobytes() + repr(example.captions).encode())
digest.update(repr((source.captions(), single_object_prompts())).encode())
print(digest.hexdigest())
"""


def test_same_in_every_process(assert_same_in_every_process):
    assert_same_in_every_process(FINGERPRINT)


def test_an_example_depends_only_on_seed_split_and_index():
    def same(a: Shapes, b: Shapes, index: int) -> bool:
        return torch.equal(a[index].image, b[index].image) and a[index].captions == b[index].captions

    source = Shapes(num_examples=50)
    backwards = [source[index] for index in reversed(range(50))][::-1]
    assert all(torch.equal(a.image, b.image) for a, b in zip(source, backwards, strict=True))
    assert all(same(source, Shapes(num_examples=9999), index) for index in range(20))
    assert not any(same(source, Shapes(seed=1), index) for index in range(20))
    assert not any(same(source, source.split("val"), index) for index in range(20))


# --------------------------------------------------------------------------------------------------- prompts and parser


@pytest.mark.parametrize("n", [24, 64, 216])
def test_prompts_are_new_and_even(n):
    prompts = single_object_prompts(n)
    train = set(Shapes().captions())
    assert len({prompt.text for prompt in prompts}) == n and not {prompt.text for prompt in prompts} & train
    counts = Counter((prompt.colour, prompt.shape) for prompt in prompts)
    assert len(counts) == 24 and max(counts.values()) - min(counts.values()) <= 1
    words = {word for caption in train for word in caption.split()}
    for prompt in prompts:
        assert parse_caption(prompt.text) == ((prompt.colour, prompt.shape),)
        assert set(prompt.text.split()) <= words
        assert any(size in prompt.text for size in SIZES) and any(place in prompt.text for place in PLACES)


def test_prompts_are_of_scenes_that_training_never_draws():
    facts = {frozenset(scene.words().items()) for scene in Shapes().choices["train"]["single"]}
    for text, colour, shape in single_object_prompts(216):
        (size,) = (size for size in SIZES if size in text)
        place = max((place for place in PLACES if place in text), key=len)
        assert frozenset({"colour": colour, "shape": shape, "size": size, "place": place}.items()) not in facts


def test_prompts_follow_the_seed():
    assert single_object_prompts(seed=3) == single_object_prompts(seed=3) != single_object_prompts(seed=4)
    with pytest.raises(InputError, match="300"):
        single_object_prompts(300)


@pytest.mark.parametrize(
    ("caption", "objects"),
    [
        ("a red circle", (("red", "circle"),)),
        ("The square is small and BLUE.", (("blue", "square"),)),
        ("a red circle left of a green cross", (("red", "circle"), ("green", "cross"))),
        ("three yellow crosses", (("yellow", "cross"),) * 3),
        ("a circle", ((None, "circle"),)),
        ("a red blue circle", (("red", "circle"), ("blue", None))),
        ("", ()),
    ],
)
def test_parse_caption(caption, objects):
    assert parse_caption(caption) == objects


@pytest.mark.parametrize("kind", KINDS)
def test_every_wording_names_the_objects(kind):
    for scene in SCENES[kind].every():
        for caption in captions_of(scene, scene.wordings + scene.held_out_wordings):
            assert Counter(parse_caption(caption)) == Counter(scene.pairs()), caption


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 15}, "image_size 15 "),
        ({"num_examples": 0}, "num_examples 0"),
        ({"num_val_examples": 0}, "num_val_examples 0"),
        ({"scenes": ("singel",)}, "singel.*single, relation, count"),
        ({"scenes": ()}, "scenes "),
        ({"scenes": ("count", "count")}, "at most once"),
        ({"hold_out_pairs": 19}, "hold_out_pairs 19 .*0 to 18"),
        ({"hold_out_pairs": -1}, "hold_out_pairs -1 "),
    ],
)
def test_a_bad_argument_is_named_in_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        Shapes(**arguments)
    assert "\n" not in str(error.value)
