"""Edits of shapes: one change each, as instructed, and no edit in both parts."""

import pytest
import torch

from lit_transfusion.data.types import EditExample
from lit_transfusion.errors import InputError
from lit_transfusion.shapes.edits import EDITS, RIM, ShapeEdits, places_apart_from
from lit_transfusion.shapes.scenes import COLOURS, PAIRS, SHAPES, Single, centre, draw, parse_caption
from lit_transfusion.shapes.scorer import read_picture

KINDS = tuple(EDITS)
kinds = pytest.mark.parametrize("kind", KINDS)
parts = pytest.mark.parametrize("part", ["train", "val"])


def some_edits(kind, part="train", count=60):
    source = ShapeEdits(num_examples=count, num_val_examples=count, edits=(kind,)).split(part)
    return [source.edit(index) for index in range(count)]


def changed(edit):
    """The object before and after the edit; None if it does not exist."""
    (other,) = edit.unchanged
    return [next((thing for thing in objects if thing != other), None) for objects in (edit.before, edit.after)]


def place_of(thing):
    return min(RIM, key=lambda place: sum(abs(a - b) for a, b in zip(centre(place, 0.3), thing.centre, strict=True)))


# What is done


@kinds
def test_example_is_the_edit_drawn(kind):
    source = ShapeEdits(image_size=20, num_examples=10, edits=(kind,))
    for index in range(10):
        example, edit = source[index], source.edit(index)
        assert isinstance(example, EditExample) and example.instructions == edit.instructions
        assert torch.equal(example.input_image, draw(edit.before, 20))
        assert torch.equal(example.output_image, draw(edit.after, 20))
        assert not torch.equal(example.input_image, example.output_image)


@parts
@kinds
def test_one_object_changes_in_one_way_and_the_other_stays(kind, part):
    for edit in some_edits(kind, part):
        assert len(edit.unchanged) == 1
        before, after = changed(edit)
        assert edit.kind == kind and (before is None) == (kind == "add") and (after is None) == (kind == "remove")
        if before and after:
            different = [name for name in before._fields if getattr(before, name) != getattr(after, name)]
            assert different == {"recolour": ["colour"], "reshape": ["shape"], "move": ["centre"]}[kind]
        if kind == "move":  # by the distance of the places; the jitter is equal
            steps = [abs(a - b) / 0.3 for a, b in zip(before.centre, after.centre, strict=True)]
            assert all(step == pytest.approx(round(step), abs=1e-6) for step in steps) and max(steps) > 0.9


@kinds
def test_objects_are_at_their_stated_places(kind):
    for edit in some_edits(kind)[:25]:
        for objects in (edit.before, edit.after):
            found = {(one.colour, one.shape) for one in read_picture(draw(objects, 24))}
            assert found == {(one.colour, one.shape) for one in objects}


def test_objects_are_apart():
    for place in RIM:
        assert place not in places_apart_from(place) and places_apart_from(place)
    assert set(places_apart_from("at the top")) == {"at the bottom left", "at the bottom", "at the bottom right"}
    assert places_apart_from("at the top", "at the bottom") == []


# What is asked


@parts
@kinds
def test_instruction_says_what_is_done_and_to_which_object(kind, part):
    for edit in some_edits(kind, part):
        before, after = changed(edit)
        (other,) = edit.unchanged
        named = before or after
        new = ""
        if after is not None:
            new = {"recolour": after.colour, "reshape": after.shape}.get(kind, place_of(after))
        assert 3 <= len(edit.instructions) == len(set(edit.instructions))
        for instruction in edit.instructions:
            words = instruction.split()
            assert named.shape in words and instruction.endswith(new)
            name = f"{named.colour} {named.shape}" if named.colour in words else f"the {named.shape}"
            assert name in instruction and named.colour != other.colour and named.shape != other.shape
            if kind in ("move", "add"):
                assert max((place for place in RIM if place in instruction), key=len) == new


def test_instructions_of_different_kinds_differ():
    instructions = {
        kind: {text for edit in some_edits(kind, count=100) for text in edit.instructions} for kind in KINDS
    }
    assert len(set().union(*instructions.values())) == sum(map(len, instructions.values()))


# What is held out


@kinds
def test_parts_share_no_edit_and_each_has_all_objects(kind):
    source = ShapeEdits()
    train, val = (set(source.choices[part][kind]) for part in ("train", "val"))
    assert not train & val and train | val == set(EDITS[kind].every())
    assert {(edit.colour, edit.shape) for edit in train} == {(edit.colour, edit.shape) for edit in val} == set(PAIRS)
    news = {"recolour": set(COLOURS), "reshape": set(SHAPES)}.get(kind, set(RIM))
    assert {edit.new for edit in train} == news


@kinds
def test_no_held_out_edit_is_trained(kind):
    def done(edit):
        before, after = changed(edit)
        edited = before or after
        new = {"recolour": "colour", "reshape": "shape"}.get(kind)
        return edited.colour, edited.shape, getattr(after, new) if new else place_of(after or before)

    train, val = ({done(edit) for edit in some_edits(kind, part, 300)} for part in ("train", "val"))
    assert val and not train & val


def test_recolourings_of_validation_are_not_in_training():
    source = ShapeEdits(num_val_examples=100, edits=("recolour",))
    asked = {text for edit in map(source.split("val").edit, range(100)) for text in edit.instructions}
    full = {text for text in asked if len([word for word in text.split() if word in COLOURS]) == 2}
    assert len(full) > 50 and not full & set(source.captions())


def test_kinds_alternate():
    assert [ShapeEdits().edit(index).kind for index in range(10)] == [*KINDS, *KINDS]
    some = ShapeEdits(edits=("move", "add"))
    assert [some.edit(index).kind for index in range(4)] == ["move", "add", "move", "add"]


def test_captions_are_the_instructions_of_training():
    source = ShapeEdits(num_examples=200)
    instructions = {text for example in source for text in example.instructions}
    assert instructions <= set(source.captions()) == set(source.split("val").captions())


# Determinism

FINGERPRINT = """
import hashlib
from lit_transfusion.shapes.edits import ShapeEdits
source, digest = ShapeEdits(num_examples=30, num_val_examples=30), hashlib.sha256()
for part in ("train", "val"):
    for example in source.split(part):
        digest.update(example.input_image.numpy().tobytes() + example.output_image.numpy().tobytes())
        digest.update(repr(example.instructions).encode())
print(digest.hexdigest())
"""


def test_same_in_every_process(assert_same_in_every_process):
    assert_same_in_every_process(FINGERPRINT)


def test_an_edit_depends_only_on_seed_split_and_index():
    source = ShapeEdits(num_examples=40)
    backwards = [source.edit(index) for index in reversed(range(40))][::-1]
    assert backwards == [ShapeEdits(num_examples=999).edit(index) for index in range(40)]
    assert not any(source.edit(index) == ShapeEdits(seed=1).edit(index) for index in range(20))
    assert not any(source.edit(index) == source.split("val").edit(index) for index in range(20))


def test_length_is_that_of_the_split():
    source = ShapeEdits(num_examples=7, num_val_examples=5)
    assert len(source) == len(list(source)) == 7 and len(source.split("val")) == len(list(source.split("val"))) == 5
    with pytest.raises(IndexError):
        source.edit(7)


def test_an_object_looks_as_it_does_in_a_picture_of_its_own():
    """So a net trained on single objects knows it."""
    edit = some_edits("add")[0]
    _, after = changed(edit)
    single = Single(after.colour, after.shape, "small", place_of(after))
    assert parse_caption(single.wordings[0].format(**single.words())) == ((after.colour, after.shape),)
    assert abs(after.size - 0.3) <= 0.01
    assert all(abs(a - b) <= 0.03 for a, b in zip(after.centre, centre(single.place, 0.3), strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 15}, "image_size 15 "),
        ({"num_examples": 0}, "num_examples 0"),
        ({"num_val_examples": 0}, "num_val_examples 0"),
        ({"edits": ("recolor",)}, "recolor.*recolour, reshape"),
        ({"edits": ()}, "edits "),
        ({"edits": ("add", "add")}, "at most once"),
    ],
)
def test_a_bad_argument_is_named_in_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        ShapeEdits(**arguments)
    assert "\n" not in str(error.value)
