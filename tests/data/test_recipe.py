"""The recipe: documents and their shares (paper, 4.1 and 4.3.4)."""

import math

import pytest
import torch

from lit_transfusion.data.grammar import null_prompt
from lit_transfusion.data.packing import flatten
from lit_transfusion.data.recipe import Recipe
from lit_transfusion.data.types import (
    IGNORE_INDEX,
    NO_LIMIT,
    Document,
    EditExample,
    Example,
    ImageSegment,
    TextExample,
    TextSegment,
)
from lit_transfusion.diffusion import DDPM
from lit_transfusion.errors import InputError
from lit_transfusion.latents import Moments

IMAGE = torch.zeros(3, 2, 2)
CAPTIONS = ("a red circle", "a circle that is red", "two blue squares")
EXAMPLE = Example(IMAGE, CAPTIONS)
DRAWS = 2000


def documents(recipe, tokenizer, count=DRAWS, example=EXAMPLE, max_caption_tokens=100):
    generator = torch.Generator().manual_seed(0)
    return [recipe.document(example, tokenizer, max_caption_tokens, generator) for _ in range(count)]


def is_image_first(document):
    """Whether only BOS is before the image, and more than EOS after it."""
    before, image, after = document.segments
    assert isinstance(image, ImageSegment)
    return len(before.token_ids) == 1 and len(after.token_ids) > 1


def is_unconditional(document):
    return all(len(segment.token_ids) == 1 for segment in document.segments if not isinstance(segment, ImageSegment))


def share(documents, condition):
    return sum(map(condition, documents)) / len(documents)


def three_sigma(p, count=DRAWS):
    return 3 * math.sqrt(p * (1 - p) / count)


# Shares


@pytest.mark.parametrize("caption_first", [0.8, 0.5])
def test_share_of_documents_with_the_image_first(tokenizer, caption_first):
    made = documents(Recipe(caption_first=caption_first), tokenizer)
    assert share(made, is_image_first) == pytest.approx(1 - caption_first, abs=three_sigma(caption_first))


def test_paper_has_eight_of_ten_captions_first():
    assert Recipe().caption_first == 0.8


def test_dropout_is_a_share_of_the_caption_first_documents(tokenizer):
    made = documents(Recipe(caption_first=0.5, caption_dropout=0.3), tokenizer)
    assert share(made, is_unconditional) == pytest.approx(0.15, abs=three_sigma(0.15))
    assert share(made, is_image_first) == pytest.approx(0.5, abs=three_sigma(0.5))  # these keep their caption


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [
        (Recipe(caption_first=0.0, caption_dropout=1.0), is_image_first),
        (Recipe(caption_first=1.0, caption_dropout=1.0), is_unconditional),
        (Recipe(caption_first=1.0, caption_dropout=0.0), lambda d: not is_image_first(d) and not is_unconditional(d)),
    ],
)
def test_shares_of_zero_and_one_have_no_exception(tokenizer, recipe, kind):
    assert all(map(kind, documents(recipe, tokenizer, 300)))


@pytest.mark.parametrize("name", ["caption_first", "caption_dropout", "instruction_dropout", "mirror"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_share_outside_zero_to_one_is_an_error(name, value):
    with pytest.raises(InputError, match=f"{name} {value}"):
        Recipe(**{name: value})


# The noise cap


def test_only_images_before_their_caption_are_capped(tokenizer):
    for document in documents(Recipe(image_first_max_timestep=500), tokenizer, 300):
        (image,) = document.images
        assert image.max_timestep == (500 if is_image_first(document) else NO_LIMIT)


def test_without_a_cap_no_image_has_one(tokenizer):
    assert {document.images[0].max_timestep for document in documents(Recipe(), tokenizer, 300)} == {NO_LIMIT}


def test_cap_limits_the_drawn_timesteps(tokenizer):
    """Table 8 caps images to describe; images to draw have noise up to the last timestep."""
    made = documents(Recipe(caption_first=0.5, image_first_max_timestep=500), tokenizer, 4000)
    limits = torch.tensor([document.images[0].max_timestep for document in made])
    timesteps = DDPM().draw_timesteps(limits, torch.Generator().manual_seed(0))
    capped = timesteps[limits == 500]
    free = timesteps[limits == NO_LIMIT]
    assert capped.min() < 10 and 490 < capped.max() <= 500
    assert free.min() < 10 and 990 < free.max() <= 999
    assert capped.float().mean() == pytest.approx(250, abs=15) and free.float().mean() == pytest.approx(499.5, abs=25)


@pytest.mark.parametrize("limit", [0, 1])
def test_timesteps_up_to_and_including_a_small_cap_are_drawn(limit):
    timesteps = DDPM().draw_timesteps(torch.full((200,), limit), torch.Generator().manual_seed(0))
    assert set(timesteps.tolist()) == set(range(limit + 1))


# What the documents say


def test_order_of_segments(tokenizer):
    example = Example(IMAGE, CAPTIONS[:1])
    caption = tokenizer.encode(CAPTIONS[0])
    (first,) = documents(Recipe(caption_first=1, caption_dropout=0), tokenizer, 1, example)
    assert [s.token_ids for s in first.segments[::2]] == [(tokenizer.bos, *caption), (tokenizer.eos,)]
    (second,) = documents(Recipe(caption_first=0), tokenizer, 1, example)
    assert [s.token_ids for s in second.segments[::2]] == [(tokenizer.bos,), (*caption, tokenizer.eos)]
    assert first.images[0].value.tensor is second.images[0].value.tensor is IMAGE


def test_nothing_of_the_text_of_a_dropped_caption_is_learned(tokenizer):
    (document,) = documents(Recipe(caption_first=1, caption_dropout=1), tokenizer, 1)
    assert set(flatten(document, tokenizer, lambda image: 4).labels) == {IGNORE_INDEX}
    assert document.segments[:1] == null_prompt(tokenizer).segments  # the null prompt of guidance


def test_all_captions_are_used(tokenizer):
    made = documents(Recipe(caption_first=1, caption_dropout=0), tokenizer)
    captions = [document.segments[0].token_ids[1:] for document in made]
    for caption in CAPTIONS:
        used = captions.count(tokenizer.encode(caption)) / len(captions)
        assert used == pytest.approx(1 / 3, abs=three_sigma(1 / 3))


@pytest.mark.parametrize("caption_first", [0.0, 1.0])
def test_captions_are_cut(tokenizer, caption_first):
    example = Example(IMAGE, ("a red circle " * 10,))
    kept = tokenizer.encode(example.captions[0])[:7]
    (document,) = documents(Recipe(caption_first, caption_dropout=0), tokenizer, 1, example, max_caption_tokens=7)
    image = [tokenizer.boi, *[tokenizer.pad] * PATCHES, tokenizer.eoi]
    tokens = [tokenizer.bos, *kept, *image, tokenizer.eos] if caption_first else [tokenizer.bos, *image, *kept]
    assert flatten(document, tokenizer, lambda image: PATCHES).tokens == tokens


def cut_labels(tokenizer, kept, caption_first):
    """Labels of BOS kept [image] EOS, or BOS [image] kept, if the text continues after `kept`."""
    image = [IGNORE_INDEX] * (1 + PATCHES)  # BOI and patches
    if caption_first:
        return [*kept, IGNORE_INDEX, *image, tokenizer.eos, IGNORE_INDEX]  # no BOI after the last kept token
    return [tokenizer.boi, *image, *kept, IGNORE_INDEX]  # no EOS after the last kept token


@pytest.mark.parametrize("caption_first", [0.0, 1.0])
def test_a_cut_teaches_no_end_of_the_caption(tokenizer, caption_first):
    """Neither BOI nor EOS is learned after a cut caption; after one that just fits, its end is learned."""
    example, recipe = Example(IMAGE, ("a red circle",)), Recipe(caption_first, caption_dropout=0)
    caption = tokenizer.encode("a red circle")
    assert len(caption) > 2

    def labels(room):
        (document,) = documents(recipe, tokenizer, 1, example, room)
        return flatten(document, tokenizer, lambda image: PATCHES).labels

    for room in range(1, len(caption)):
        assert labels(room) == cut_labels(tokenizer, caption[:room], caption_first)
    markers = sorted(label for label in labels(len(caption)) if label in (tokenizer.boi, tokenizer.eos))
    assert markers == [tokenizer.eos, tokenizer.boi]


@pytest.mark.parametrize("learn_instruction", [False, True])
def test_a_cut_teaches_no_end_of_the_instruction(tokenizer, learn_instruction):
    instruction = tokenizer.encode(INSTRUCTIONS[0])
    given, drawn = [IGNORE_INDEX] * (1 + PATCHES + 1), [IGNORE_INDEX] * (1 + PATCHES)  # BOS to patches; BOI and patches
    for room, boi in ((2, IGNORE_INDEX), (len(instruction), tokenizer.boi)):
        kept = instruction[:room] if learn_instruction else [IGNORE_INDEX] * room
        example = EDIT._replace(instructions=INSTRUCTIONS[:1])
        _, flat = edit_document(tokenizer, example, room, learn_instruction=learn_instruction)
        assert flat.labels == [*given, *kept, boi, *drawn, tokenizer.eos, IGNORE_INDEX]


@pytest.mark.parametrize("complete", [True, False])
def test_piece_of_a_text_teaches_no_end_where_the_text_continues(tokenizer, complete):
    text = tokenizer.encode("a red circle")
    pieces = Recipe().documents(TextExample("a red circle", complete), tokenizer, len(text) - 1, torch.Generator())
    first, last = (flatten(piece, tokenizer, lambda image: PATCHES) for piece in pieces)
    assert (first.tokens, first.labels) == ([tokenizer.bos, *text[:-1]], [*text[:-1], IGNORE_INDEX])
    end = [tokenizer.eos] * complete
    assert (last.tokens, last.labels) == ([tokenizer.bos, text[-1], *end], [text[-1], *end, IGNORE_INDEX])


def test_document_depends_only_on_the_generator(tokenizer):
    recipe = Recipe(image_first_max_timestep=500)

    def made(seed):
        document = recipe.document(EXAMPLE, tokenizer, 100, torch.Generator().manual_seed(seed))
        return flatten(document, tokenizer, lambda image: 4)._replace(
            images=[image.max_timestep for image in document.images]
        )

    before = [made(seed) for seed in range(20)]
    torch.manual_seed(1)  # independent of the global state
    assert [made(seed) for seed in range(20)] == before
    assert len({str(document) for document in before}) > 3


# Mirrored pictures

SIDES = torch.arange(12.0).reshape(3, 2, 2)


@pytest.mark.parametrize("mirror", [0.3, 1.0])
def test_share_of_pictures_that_are_mirrored(tokenizer, mirror):
    made = documents(Recipe(mirror=mirror), tokenizer, example=EXAMPLE._replace(image=SIDES))
    images = [document.images[0].value.tensor for document in made]
    assert all(torch.equal(image, SIDES) or torch.equal(image, SIDES.flip(-1)) for image in images)
    flipped = sum(torch.equal(image, SIDES.flip(-1)) for image in images) / len(images)
    assert flipped == pytest.approx(mirror, abs=three_sigma(mirror))


def test_mirror_image_of_moments_is_the_saved_one(tokenizer):
    example = Example(Moments(SIDES.half()), CAPTIONS, mirror_image=Moments(SIDES.half() + 100))
    (document,) = documents(Recipe(mirror=1.0), tokenizer, 1, example)
    assert torch.equal(document.images[0].value.tensor, SIDES.half() + 100)


def test_both_pictures_of_an_edit_are_mirrored_or_neither(tokenizer):
    example = EditExample(SIDES, CAPTIONS, SIDES + 100)
    pairs = [
        [image.value.tensor for image in made.images] for made in documents(Recipe(mirror=0.5), tokenizer, 50, example)
    ]
    found = {torch.equal(given, SIDES.flip(-1)) for given, _ in pairs}
    assert found == {True, False}
    assert all(torch.equal(after, before + 100) for before, after in pairs)


@pytest.mark.parametrize(
    ("example", "draw"),
    [
        (EXAMPLE, lambda g: (torch.rand(2, generator=g), torch.randint(3, (), generator=g))),
        (
            EditExample(IMAGE, CAPTIONS, IMAGE),
            lambda g: (torch.rand((), generator=g), torch.randint(3, (), generator=g)),
        ),
    ],
    ids=["pair", "edit"],
)
def test_no_random_number_is_drawn_without_mirroring(tokenizer, example, draw):
    """So runs that began with an earlier version resume unchanged."""
    ours, expected = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    Recipe().document(example, tokenizer, 100, ours)
    draw(expected)
    assert torch.equal(ours.get_state(), expected.get_state())


# Edits (paper, 4.5)

INPUT, OUTPUT = torch.zeros(3, 2, 2), torch.ones(3, 2, 2)
INSTRUCTIONS = ("a red square", "two blue circles")
EDIT = EditExample(INPUT, INSTRUCTIONS, OUTPUT)
PATCHES = 2


def edit_document(tokenizer, example=EDIT, max_text_tokens=100, **options):
    """The document of an edit and its flat form. Instructions are never dropped unless requested."""
    options = {"instruction_dropout": 0.0} | options
    (document,) = documents(Recipe(**options), tokenizer, 1, example, max_text_tokens)
    return document, flatten(document, tokenizer, lambda image: PATCHES)


def placed(tokenizer, instruction):
    """The tokens of an edit, one by one."""
    image = [tokenizer.boi, *[tokenizer.pad] * PATCHES, tokenizer.eoi]
    return [tokenizer.bos, *image, *instruction, *image, tokenizer.eos]


def test_edit_token_by_token(tokenizer):
    document, flat = edit_document(tokenizer, EDIT._replace(instructions=INSTRUCTIONS[:1]))
    instruction = tokenizer.encode(INSTRUCTIONS[0])
    assert flat.tokens == placed(tokenizer, instruction)
    given = [IGNORE_INDEX] * (1 + PATCHES + 2 + len(instruction) - 1)  # BOS to the last word but one
    drawn = [IGNORE_INDEX] * (1 + PATCHES)
    assert flat.labels == [*given, tokenizer.boi, *drawn, tokenizer.eos, IGNORE_INDEX]
    text = [-1] * (1 + len(instruction) + 1)
    assert flat.image_ids == [-1, -1, *[0] * PATCHES, *text, *[1] * PATCHES, -1, -1]
    assert [image.value.tensor is pixels for image, pixels in zip(document.images, (INPUT, OUTPUT), strict=True)]


def test_input_of_an_edit_is_clean_and_not_learned(tokenizer):
    for document in documents(Recipe(instruction_dropout=0.5), tokenizer, 100, EDIT):
        given, answer = document.images
        assert (given.max_timestep, given.learn) == (0, False)
        assert (answer.max_timestep, answer.learn) == (NO_LIMIT, True)


@pytest.mark.parametrize(("cap", "max_timestep"), [(500, 500), (None, NO_LIMIT)])
def test_input_of_an_edit_can_be_noised_and_learned(tokenizer, cap, max_timestep):
    document, _ = edit_document(tokenizer, input_max_timestep=cap, learn_input=True)
    assert (document.images[0].max_timestep, document.images[0].learn) == (max_timestep, True)


def test_instruction_can_be_learned(tokenizer):
    _, flat = edit_document(tokenizer, EDIT._replace(instructions=INSTRUCTIONS[:1]), learn_instruction=True)
    learned = [label for label in flat.labels if label != IGNORE_INDEX]
    assert learned == [*tokenizer.encode(INSTRUCTIONS[0]), tokenizer.boi, tokenizer.eos]


@pytest.mark.parametrize("learn_instruction", [False, True])
def test_edit_without_its_instruction_begins_as_the_samplers_null_prompt(tokenizer, learn_instruction):
    document, flat = edit_document(tokenizer, instruction_dropout=1.0, learn_instruction=learn_instruction)
    assert flat.tokens == placed(tokenizer, ())
    assert set(flat.labels) == {IGNORE_INDEX}
    assert document.segments[:2] == null_prompt(tokenizer, document.images[:1]).segments
    null = flatten(null_prompt(tokenizer, [ImageSegment(INPUT)]), tokenizer, lambda image: PATCHES)
    assert [*null.tokens, tokenizer.boi] == flat.tokens[: len(null.tokens) + 1]


def test_share_of_edits_without_their_instruction(tokenizer):
    made = documents(Recipe(instruction_dropout=0.3), tokenizer, example=EDIT)
    assert share(made, lambda document: len(document.segments) == 4) == pytest.approx(0.3, abs=three_sigma(0.3))


def test_all_instructions_are_used_and_cut(tokenizer):
    made = documents(Recipe(instruction_dropout=0), tokenizer, 200, EDIT, max_caption_tokens=3)
    texts = {document.segments[2] for document in made}
    assert texts == {TextSegment(tokenizer.encode(text)[:3], learn=False) for text in INSTRUCTIONS}


def test_invalid_example_is_named(tokenizer):
    with pytest.raises(TypeError, match="tuple"):
        documents(Recipe(), tokenizer, 1, example=(INPUT, "text"))


# Texts


def test_text_is_an_unchanged_document(tokenizer):
    ids = tokenizer.encode("a red circle")
    (document,) = Recipe().documents(TextExample("a red circle"), tokenizer, 100, torch.Generator())
    assert document == Document((TextSegment((tokenizer.bos, *ids, tokenizer.eos)),))
    (document,) = Recipe().documents(TextExample("a red circle", complete=False), tokenizer, 100, torch.Generator())
    assert document == Document((TextSegment((tokenizer.bos, *ids)),))


@pytest.mark.parametrize("room", [1, 2, 7, 8, 100])
def test_pieces_of_a_long_text_hold_every_token_once(tokenizer, room):
    text = "two blue squares, a green cross " * 7
    pieces = Recipe().documents(TextExample(text), tokenizer, room, torch.Generator())
    flat = [flatten(document, tokenizer, lambda image: 1) for document in pieces]
    labels = [label for document in flat for label in document.labels if label != IGNORE_INDEX]
    assert labels == [*tokenizer.encode(text), tokenizer.eos]
    assert all(len(document.tokens) <= room + 2 and document.tokens[0] == tokenizer.bos for document in flat)
    assert len(pieces) == -(-len(tokenizer.encode(text)) // room)


def test_caption_or_instruction_that_is_cut_is_marked(tokenizer):
    for order in (0.0, 1.0):
        recipe = Recipe(caption_first=order, caption_dropout=0.0)
        made = [recipe.document(EXAMPLE, tokenizer, room, torch.Generator()) for room in (100, 2)]
        assert [document.cut for document in made] == [False, True]
    assert not Recipe(caption_first=1.0, caption_dropout=1.0).document(EXAMPLE, tokenizer, 2, torch.Generator()).cut
    for dropout, room, cut in ((0.0, 100, False), (0.0, 2, True), (1.0, 2, False)):
        recipe = Recipe(instruction_dropout=dropout)
        assert recipe.document(EDIT, tokenizer, room, torch.Generator()).cut == cut
