"""GenEval for shapes: it must judge pictures with known content correctly, and find every fault."""

from dataclasses import astuple
from functools import cache
from math import sqrt
from random import Random

import numpy as np
import pytest
import torch

from lit_transfusion.errors import InputError
from lit_transfusion.evaluation.metric import Subject, Unavailable
from lit_transfusion.generation.settings import Sampling
from lit_transfusion.shapes.edits import ShapeEdits
from lit_transfusion.shapes.geneval import (
    CATEGORIES,
    GenEvalPrompt,
    GenEvalShapes,
    geneval_prompts,
    is_right,
    relations,
)
from lit_transfusion.shapes.scenes import Count, DrawnObject, Relation, Single, draw, parse_caption
from lit_transfusion.shapes.scorer import FoundObject, read_picture
from lit_transfusion.shapes.source import Shapes

OF_SINGLE, OF_RELATION = ("single_object", "colours"), ("two_object", "position", "colour_attr")


def true_picture(prompt, image_size, seed=0):
    """Draw the scene of a prompt; the seed determines the jitter."""
    return draw(prompt.scene.layout(Random(seed)), image_size)


# Prompts


@cache
def training_captions():
    return frozenset(Shapes().captions())


@pytest.mark.parametrize("category", CATEGORIES)
def test_prompts_are_new_but_their_words_are_not(category):
    prompts = geneval_prompts(category, 48)
    texts = {prompt.text for prompt in prompts}
    assert len(texts) == 48 and training_captions().isdisjoint(texts)
    assert set(" ".join(texts).split()) <= set(" ".join(training_captions()).split())
    train = {scene for kind in Shapes().choices["train"].values() for scene in kind}
    for prompt in prompts:
        assert prompt.category == category and prompt.scene not in train
        for field, word in prompt.scene.words().items():
            reverse = {"relation": "reverse", "reverse": "relation"}.get(field)  # both mean the same
            assert word in prompt.text or (reverse and prompt.scene.words()[reverse] in prompt.text)
        assert sorted(set(parse_caption(prompt.text))) == sorted(set(prompt.scene.pairs()))


def test_categories_share_no_scene():
    for categories in (OF_SINGLE, OF_RELATION):
        scenes = [{prompt.scene for prompt in geneval_prompts(category, 48)} for category in categories]
        assert len(set.union(*scenes)) == sum(map(len, scenes))


@pytest.mark.parametrize("category", CATEGORIES)
def test_prompts_cover_everything_evenly(category):
    """The first 24 prompts have all colours and shapes, both wordings, and all relations or numbers."""
    prompts = geneval_prompts(category, 24)
    assert len({prompt.scene for prompt in prompts}) == 24
    assert len({prompt.scene.pairs()[0] for prompt in prompts}) >= 18
    starts = {prompt.text.startswith("there ") for prompt in prompts}
    assert starts == {True, False}
    if category in OF_RELATION:
        words = [next(w for w in ("left", "right", "above", "below") if w in prompt.text) for prompt in prompts]
        assert min(words.count(word) for word in ("left", "right", "above", "below")) >= 3
        for colour, shape, second_colour, second_shape, _ in (astuple(prompt.scene) for prompt in prompts):
            assert colour != second_colour and shape != second_shape
    if category == "counting":
        assert {prompt.scene.number for prompt in prompts} == {"two", "three", "four"}


def test_a_prompt_depends_only_on_its_index_and_the_seed():
    assert geneval_prompts("position", 5) == geneval_prompts("position", 48)[:5]
    assert geneval_prompts("position", seed=1) != geneval_prompts("position")
    for n in (0, 49):
        with pytest.raises(InputError, match=f"{n} prompts of counting.*1 to 48"):
            geneval_prompts("counting", n)


# Pictures of the right and of other scenes


def holds(category, asked, shown):
    """Whether a scene satisfies a prompt, judged only by its words."""
    shapes = {shape for _, shape in shown.pairs()}
    match category:
        case "single_object":
            return asked.shape == shown.shape
        case "colours":
            return (asked.colour, asked.shape) == (shown.colour, shown.shape)
        case "counting":
            return (asked.number, asked.shape) == (shown.number, shown.shape)
        case "two_object":
            return {asked.shape, asked.second_shape} == shapes
        case "colour_attr":
            return set(asked.pairs()) == set(shown.pairs())
        case "position":
            a, b = ((scene.shape, scene.second_shape, scene.relation) for scene in (asked, shown))
            return a == b


def share_right_on_truth(category, image_size, layouts):
    prompts = geneval_prompts(category, 48)
    right = [is_right(true_picture(p, image_size, layout), p) for layout in range(layouts) for p in prompts]
    return sum(right) / len(right)


@pytest.mark.parametrize("category", CATEGORIES)
def test_true_pictures_are_right(category):
    assert share_right_on_truth(category, 24, layouts=1) >= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("image_size", [16, 32, 64])
@pytest.mark.parametrize("category", CATEGORIES)
def test_many_true_pictures_are_right(category, image_size):
    assert share_right_on_truth(category, image_size, layouts=5) >= 0.99


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_picture_is_judged_by_every_prompt(category):
    """A picture of another prompt is right exactly if its scene satisfies the prompt, for all pairs."""
    prompts = geneval_prompts(category, 48)
    judge = CATEGORIES[category].judge
    found = [read_picture(true_picture(prompt, 24)) for prompt in prompts]
    for asked in prompts:
        for shown, objects in zip(prompts, found, strict=True):
            assert judge(objects, asked.scene) == holds(category, asked.scene, shown.scene), (asked.text, shown.text)


def chance(category):
    """The probability that a picture is right for another prompt, by a count over all pairs."""
    scenes = [prompt.scene for prompt in geneval_prompts(category, 48)]
    pairs = [(a, b) for i, a in enumerate(scenes) for j, b in enumerate(scenes) if i != j]
    return sum(holds(category, *pair) for pair in pairs) / len(pairs)


@pytest.mark.parametrize(
    ("category", "about"),
    [
        ("single_object", 1 / 4),  # shapes
        ("colours", 1 / 24),
        ("counting", 1 / 12),
        ("two_object", 1 / 6),  # pairs of shapes
        ("position", 1 / 24),  # with four relations
        ("colour_attr", 1 / 180),  # pairs of pairs: 24 · 15 / 2
    ],
)
def test_shuffled_captions_are_at_chance(category, about):
    assert chance(category) == pytest.approx(about, abs=0.04)  # 48 prompts are not perfectly even
    prompts, right, count = geneval_prompts(category, 48), 0, 0
    for layout in range(4):
        order = Random(layout).sample(prompts, len(prompts))  # each is judged on the picture of the one before it
        for asked, shown in zip(order, [order[-1], *order[:-1]], strict=True):
            right += is_right(true_picture(shown, 24, layout), asked)
            count += 1
    p = chance(category)
    assert right / count <= p + 3 * sqrt(p * (1 - p) / count)


# Each fault is found by exactly the categories that judge it

RED, BLUE = DrawnObject("red", "circle", (0.25, 0.5), 0.3), DrawnObject("blue", "cross", (0.75, 0.5), 0.3)
YELLOW_AT_TOP = DrawnObject("yellow", "square", (0.5, 0.15), 0.2)
SCENES = {Single: Single("red", "circle", "small", "at the left"), Relation: Relation(*RED[:2], *BLUE[:2], "left of")}


def wrong(kind, objects, image_size):
    """The categories that judge a picture as wrong."""
    image, scene = draw(objects, image_size), SCENES[kind]
    concerned = [category for category, of in CATEGORIES.items() if of.kind is kind]
    return {category for category in concerned if not is_right(image, GenEvalPrompt("", category, scene))}


@pytest.mark.parametrize("image_size", [16, 24, 32])
@pytest.mark.parametrize(
    ("objects", "categories"),
    [
        ([RED], set()),
        ([], set(OF_SINGLE)),
        ([RED._replace(colour="blue")], {"colours"}),
        ([RED._replace(shape="square")], set(OF_SINGLE)),
        ([RED._replace(centre=(0.7, 0.7))], set()),  # the place is not judged
        ([RED._replace(size=0.5, centre=(0.4, 0.5))], set()),  # the size is not judged
        ([RED, BLUE], set()),  # as in GenEval, extra objects are not wrong
        ([RED, RED._replace(colour="blue", centre=(0.75, 0.5))], set()),
        ([RED._replace(colour="blue"), BLUE._replace(colour="red")], {"colours"}),  # red is there, but no red circle
    ],
)
def test_faults_of_one_object(objects, categories, image_size):
    assert wrong(Single, objects, image_size) == categories


@pytest.mark.parametrize("image_size", [16, 24, 32])
@pytest.mark.parametrize(
    ("objects", "categories"),
    [
        ([RED, BLUE], set()),
        ([BLUE, RED], set()),
        ([], set(OF_RELATION)),
        ([RED], set(OF_RELATION)),
        ([BLUE], set(OF_RELATION)),
        ([RED, BLUE._replace(shape="square")], set(OF_RELATION)),
        ([RED._replace(shape="cross"), BLUE], set(OF_RELATION)),
        ([RED, BLUE._replace(colour="green")], {"colour_attr"}),
        ([RED._replace(colour="blue"), BLUE._replace(colour="red")], {"colour_attr"}),  # colours swapped
        ([RED._replace(shape="cross"), BLUE._replace(shape="circle")], {"position", "colour_attr"}),
        ([RED._replace(centre=BLUE.centre), BLUE._replace(centre=RED.centre)], {"position"}),
        ([RED._replace(centre=(0.5, 0.2)), BLUE._replace(centre=(0.5, 0.8))], {"position"}),
        ([RED._replace(centre=(0.45, 0.2)), BLUE._replace(centre=(0.55, 0.8))], {"position"}),  # barely left
        ([RED._replace(centre=(0.2, 0.25)), BLUE._replace(centre=(0.8, 0.75))], set()),  # left, and also above
        ([RED, BLUE, YELLOW_AT_TOP], set()),
        ([RED, BLUE, RED._replace(centre=(0.75, 0.15), size=0.2)], set()),
    ],
)
def test_faults_of_two_objects(objects, categories, image_size):
    assert wrong(Relation, objects, image_size) == categories


@pytest.mark.parametrize("image_size", [16, 24, 32])
def test_faults_of_counting(image_size):
    quarters = [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]
    circles = [DrawnObject("red", "circle", centre, 0.3) for centre in quarters]
    prompts = {n: GenEvalPrompt("", "counting", Count("red", "circle", "small", n)) for n in ("two", "three", "four")}

    def right(objects):
        return {number for number, prompt in prompts.items() if is_right(draw(objects, image_size), prompt)}

    assert [right(circles[:n]) for n in range(5)] == [set(), set(), {"two"}, {"three"}, {"four"}]
    assert right([*circles[:2], circles[2]._replace(shape="square")]) == {"two"}  # another shape does not count
    assert right([*circles[:2], circles[2]._replace(colour="blue")]) == {"three"}  # another colour does count
    assert right([one._replace(shape="cross") for one in circles]) == set()


def test_relations_equal_those_of_geneval():
    """Compares with GenEval's own rule for bounding boxes."""

    def of_geneval(one, other):
        boxes = [np.array([np.array(o.centre) - o.size / 2, np.array(o.centre) + o.size / 2]) for o in (one, other)]
        (centre_a, centre_b), (dim_a, dim_b) = [box.mean(0) for box in boxes], [box[1] - box[0] for box in boxes]
        offset = centre_a - centre_b
        revised = np.maximum(np.abs(offset) - 0.1 * (dim_a + dim_b), 0) * np.sign(offset)
        dx, dy = revised / np.linalg.norm(offset)
        named = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
        return {name for name, holds in named.items() if holds}

    random, seen = Random(0), set()
    for _ in range(1000):
        one, other = (
            FoundObject("red", "circle", (random.random(), random.random()), random.uniform(0.1, 0.6)) for _ in "ab"
        )
        assert relations(one, other) == of_geneval(one, other)
        seen.add(frozenset(relations(one, other)))
    assert len(seen) == 9  # none, four, and two at a time


# The metric


class Painter(Subject):
    """A subject that draws the scene of each prompt, or of a later one."""

    shift = 0

    def draw(self, prompts):
        scenes = {prompt.text: prompt for category in CATEGORIES for prompt in geneval_prompts(category, 48)}
        pictures = [true_picture(scenes[text], 24, seed) for seed, text in enumerate(prompts)]
        return torch.stack(pictures).roll(self.shift, 0)


def test_perfect_pictures_score_1_and_mixed_up_ones_almost_0(make_pipeline):
    subject, metric = Painter(make_pipeline(), Shapes()), GenEvalShapes(prompts_per_category=8, pictures_per_prompt=2)
    result = metric(subject)
    assert set(result) == set(metric.columns) and set(result.values()) == {1.0}
    subject.shift = 16  # each category gets pictures of another
    result = metric(subject)
    assert result["geneval"] == pytest.approx(sum(result[f"geneval_{category}"] for category in CATEGORIES) / 6)
    assert result["geneval"] < 0.2
    assert {column: len(scores) for column, scores in subject.each.items()} == {
        column: 48 if column == "geneval" else 8 for column in metric.columns
    }  # one score for each prompt, over two pictures
    for column, scores in subject.each.items():
        assert set(scores) <= {0, 0.5, 1} and sum(scores) / len(scores) == pytest.approx(result[column])


def test_baselines_equal_chance(make_pipeline):
    subject, metric = Subject(make_pipeline(), Shapes(num_examples=500)), GenEvalShapes(prompts_per_category=12)
    baselines = metric.baselines(subject)
    assert set(baselines) == {"noise", "random training pictures"} and metric.baselines(subject) == baselines
    assert set(baselines["noise"]) == set(metric.columns) and set(baselines["noise"].values()) == {0.0}
    # One third of the pictures shows one object, one third two different ones, and one third several equal ones.
    chances = baselines["random training pictures"]
    assert set(chances) == set(metric.columns)
    assert chances["geneval_single_object"] == pytest.approx((1 / 4 + 1 - (1 - 1 / 4) ** 2 + 1 / 4) / 3, abs=0.05)
    assert chances["geneval_colours"] == pytest.approx((1 / 24 + 1 - (1 - 1 / 24) ** 2 + 1 / 24) / 3, abs=0.03)
    assert chances["geneval_counting"] == pytest.approx(1 / 12 / 3 + (1 / 4) ** 2 / 3 / 3, abs=0.03)
    assert chances["geneval_two_object"] == pytest.approx(1 / 8 / 3, abs=0.03)
    assert chances["geneval_position"] == pytest.approx(1 / 32 / 3, abs=0.02)
    assert chances["geneval_colour_attr"] < 0.01


def test_an_untrained_net_is_measured(make_pipeline):
    subject = Subject(make_pipeline(), Shapes(), sampling=Sampling(num_inference_steps=2), batch_size=4)
    result = GenEvalShapes(prompts_per_category=1)(subject)
    assert list(result) == list(GenEvalShapes.columns) and 0 <= result["geneval"] < 0.5


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (ShapeEdits(), "Shapes.*data.source is ShapeEdits"),
        (Shapes(scenes=("single", "count")), "data.source.scenes lacks relation"),
    ],
)
def test_other_sources_are_not_measured(source, reason, make_pipeline):
    with pytest.raises(Unavailable, match=reason):
        GenEvalShapes()(Subject(make_pipeline(), source))


def test_an_invalid_argument_is_named():
    with pytest.raises(InputError, match=r"49 prompts of two_object .*48"):
        GenEvalShapes(prompts_per_category=49)
    with pytest.raises(InputError, match="pictures_per_prompt 0 "):
        GenEvalShapes(pictures_per_prompt=0)
