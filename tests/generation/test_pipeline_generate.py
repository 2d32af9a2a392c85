"""`Pipeline.generate`: prompts of texts and pictures, and equal results to the functions for each task."""

import pytest
import torch
from PIL import Image

from lit_transfusion.data.images import fit, to_unit_range
from lit_transfusion.diffusion import DDPM
from lit_transfusion.errors import InputError
from lit_transfusion.generation.engine import draw, edit, write
from lit_transfusion.generation.pictures import to_pil
from lit_transfusion.generation.settings import Sampling

FAST = {"num_inference_steps": 2, "max_new_tokens": 5}


@pytest.fixture
def pipeline(make_pipeline):
    """A pipeline with small latents, so that the pictures are not only black and white."""
    return make_pipeline(noise=DDPM(prediction_type="sample"))


@pytest.fixture
def picture():
    """A picture of the pipeline's size, which is used unchanged."""
    return to_pil(torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1)


def pixels(picture):
    """(1, 3, S, S) in [-1, 1]."""
    return to_unit_range(fit(picture, 4))[None]


def comparable(parts):
    """Texts and the bytes of pictures, for comparison."""
    return [part if isinstance(part, str) else (part.mode, part.size, part.tobytes()) for part in parts]


GUIDANCES = [{"guidance_scale": 1.0}, {}, {"negative_prompt": "white", "guidance_rescale": 0.5}]


@pytest.mark.parametrize("guidance", GUIDANCES, ids=["alone", "guided", "negative"])
def test_forced_after_a_text_draws_it(pipeline, guidance):
    drawn = draw(pipeline, ["two"], Sampling(**FAST, **guidance, seed=5))
    assert comparable(pipeline.generate("two", images="forced", **FAST, **guidance, seed=5)) == comparable(
        [to_pil(drawn[0])]
    )


@pytest.mark.parametrize("guidance", GUIDANCES, ids=["alone", "guided", "negative"])
def test_forced_after_a_picture_and_a_text_edits_it(pipeline, picture, guidance):
    drawn = edit(pipeline, pixels(picture), ["two"], Sampling(**FAST, **guidance, seed=5))
    edited = pipeline.generate(picture, "two", images="forced", **FAST, **guidance, seed=5)
    assert comparable(edited) == comparable([to_pil(drawn[0])])


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "top_k": 20, "seed": 3}], ids=["greedy", "random"])
def test_never_after_a_picture_describes_it(pipeline, picture, settings):
    described = pipeline.generate(picture, images="never", **FAST, **settings)
    assert described == write(pipeline, pixels(picture), Sampling(**FAST, **settings))


def test_chosen_is_the_default_and_keeps_the_order_of_texts_and_pictures(pipeline, script):
    tokenizer = pipeline.tokenizer
    script([60, tokenizer.boi, 61, 62, tokenizer.boi, tokenizer.eos])
    first, drawn, second, drawn_too = pipeline.generate("two", **FAST, max_images=2)
    assert (first, second) == (tokenizer.decode([60]), tokenizer.decode([61, 62]))
    assert drawn.size == drawn_too.size == (4, 4) and drawn.tobytes() != drawn_too.tobytes()


def test_never_also_if_the_model_would_draw(pipeline, talkative):
    talkative(pipeline)
    parts = [
        part
        for seed in range(8)
        for part in pipeline.generate("two", images="never", num_inference_steps=2, temperature=1.0, seed=seed)
    ]
    assert parts and all(isinstance(part, str) for part in parts)


def test_a_prompt_may_be_of_any_texts_and_pictures(pipeline, picture, record):
    recorder, tokenizer = record(pipeline.net), pipeline.tokenizer
    pipeline.generate("two", picture, "a", picture, images="never", **FAST)
    image = [tokenizer.boi, -1, -1, -1, -1, tokenizer.eoi]
    (read,) = recorder.tokens[0]
    assert read == [tokenizer.bos, *tokenizer.encode("two"), *image, *tokenizer.encode("a"), *image]
    torch.testing.assert_close(recorder.images[0], pixels(picture).repeat(2, 1, 1, 1))


def test_empty_prompt(pipeline, script):
    script([60, pipeline.tokenizer.eos])
    assert pipeline.generate(**FAST) == [pipeline.tokenizer.decode([60])]


def test_guidance_of_an_edit_leaves_out_the_instruction_and_nothing_else(pipeline, picture, record):
    recorder, tokenizer = record(pipeline.net), pipeline.tokenizer
    pipeline.generate(picture, "two", images="forced", **FAST)
    image = [tokenizer.boi, -1, -1, -1, -1, tokenizer.eoi]
    read = [row for rows in recorder.tokens for row in rows]
    assert [tokenizer.bos, *image, *tokenizer.encode("two"), tokenizer.boi] in read
    assert [tokenizer.bos, *image, tokenizer.boi] in read
    assert [tokenizer.bos, tokenizer.boi] not in read


def framed(picture):
    """Wider than high; only the middle square is used."""
    wide = Image.new("RGB", (8, 4), "red")
    wide.paste(picture, (2, 0))
    return wide


def cut_out(picture):
    """The picture with a transparent left half."""
    transparent = picture.convert("RGBA")
    transparent.paste((0, 0, 0, 0), (0, 0, 2, 4))
    return transparent


def on_white(picture):
    white = picture.copy()
    white.paste("white", (0, 0, 2, 4))
    return white


@pytest.mark.parametrize(
    ("given", "same"),
    [
        (framed, lambda picture: picture),
        (cut_out, on_white),
        (lambda picture: picture.convert("L"), lambda picture: picture.convert("L").convert("RGB")),
        (lambda picture: picture.convert("P"), lambda picture: picture.convert("P").convert("RGB")),
        (lambda picture: picture.resize((8, 8), Image.Resampling.NEAREST), None),
    ],
    ids=["wide", "transparent", "grey", "palette", "large"],
)
def test_a_picture_may_be_of_any_shape_and_kind(pipeline, picture, given, same):
    edited = pipeline.generate(given(picture), "two", images="forced", **FAST)
    assert edited[0].size == (4, 4)
    if same:
        assert comparable(edited) == comparable(pipeline.generate(same(picture), "two", images="forced", **FAST))


def test_a_seed_determines_the_result(pipeline):
    first, again, other = (pipeline.generate("two", images="forced", **FAST, seed=seed) for seed in (3, 3, 4))
    assert comparable(first) == comparable(again) != comparable(other)


@pytest.mark.parametrize("images", ["sometimes", "", "force"])
def test_an_unknown_value_of_images_is_named(pipeline, images):
    with pytest.raises(InputError, match=f"images '{images}' .*chosen, forced, never") as caught:
        pipeline.generate("two", images=images)
    assert "\n" not in str(caught.value)


def test_invalid_settings_are_named(pipeline):
    with pytest.raises(InputError, match="top_k 0 "):
        pipeline.generate("two", top_k=0)
