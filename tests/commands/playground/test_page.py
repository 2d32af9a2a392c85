"""The functions of the page's buttons, called without a browser with the values on the page."""

import re

import numpy as np
import pytest
import torch
from sign_codec import Signs

from lit_transfusion.data.images import read_image
from lit_transfusion.diffusion import DDPM, NextToken
from lit_transfusion.errors import InputError
from lit_transfusion.generation.engine import draw, edit, write
from lit_transfusion.generation.pictures import to_pil
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.settings import Sampling
from lit_transfusion.model import Causal, NoPatcher, TransformerConfig, Transfusion

gr = pytest.importorskip("gradio", reason='needs pip install -e ".[playground]"')

from lit_transfusion.commands.playground.page import build_page, own_prompts, to_sampling  # noqa: E402

STEPS, TOKENS = {"Steps": 2}, {"Tokens": 3}


@pytest.fixture
def pipeline(make_pipeline):
    return make_pipeline(noise=DDPM(prediction_type="sample"))


@pytest.fixture
def file(tmp_path):
    to_pil(torch.linspace(-1, 1, 48).view(3, 4, 4)).save(tmp_path / "given.png")
    return str(tmp_path / "given.png")


@pytest.fixture
def press(pipeline):
    return presser(pipeline)


def presser(pipeline):
    """Calls the function of a button with the values on the page, or others for some labels; returns all results."""
    page = build_page(pipeline, "run.ckpt")

    def press(button, values):
        (function,) = [function for function in page.fns.values() if function.api_name == button]
        labels = [component.label for component in function.inputs]
        assert set(values) <= set(labels)
        return list(function.fn(*[values.get(c.label, c.value) for c in function.inputs]))

    return press


def small(picture):
    """Undo the enlargement of a picture, after a check that each pixel became a square of one colour."""
    assert picture.size == (384, 384)
    blocks = np.asarray(picture).reshape(4, 96, 4, 96, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    return blocks[:, 0, :, 0].tobytes()


def test_drawing_shows_pictures_during_denoising(press, pipeline):
    *before, (pictures, note) = press("draw", {"Prompt": "two", "Pictures": 3, "Seed": 5, **STEPS})
    assert [shown[1] for shown in before] == ["step 1 of 2", "step 2 of 2"] and note.startswith("done in")
    drawn = draw(pipeline, ["two"] * 3, Sampling(num_inference_steps=2, seed=5))
    assert [small(picture) for picture in pictures] == [to_pil(picture).tobytes() for picture in drawn]


def test_a_model_of_image_tokens_has_the_settings_of_codes(tokenizer):
    torch.manual_seed(0)
    size = TransformerConfig(dim=32, n_layers=1, n_heads=2, multiple_of=16)
    net = Transfusion(tokenizer.vocab_size + 8, size, NoPatcher(dim=32), Causal()).eval()
    tokens = Pipeline(net, NextToken(), Signs(), tokenizer, image_size=4)
    press = presser(tokens)
    values = {"Temperature of images": 0.5, "Top-k of images": 3}
    *_, (pictures, _) = press("draw", {"Prompt": "two", "Pictures": 2, "Seed": 5, **values})
    drawn = draw(tokens, ["two"] * 2, Sampling(seed=5, image_temperature=0.5, image_top_k=3))
    assert [small(picture) for picture in pictures] == [to_pil(picture).tobytes() for picture in drawn]
    page = build_page(tokens, "run.ckpt")
    labels = {getattr(block, "label", None) for block in page.blocks.values()}
    assert "Negative prompt" in labels and not labels & {"Sampler", "Steps", "Rescale", "From", "To"}


def test_describing_writes_a_caption(press, pipeline, file):
    settings = {"Temperature": 1.0, "Top-k": 20, "Seed": 3}
    expected = write(pipeline, read_image(file, 4)[None], Sampling(temperature=1.0, top_k=20, seed=3, max_new_tokens=3))
    assert press("describe", {"Picture": file, **settings, **TOKENS}) == expected


def test_editing_shows_the_changed_picture(press, pipeline, file):
    *_, (picture, note) = press("edit", {"Picture": file, "Instruction": "two", **STEPS})
    (edited,) = edit(pipeline, read_image(file, 4)[None], ["two"], Sampling(num_inference_steps=2))
    assert small(picture) == to_pil(edited).tobytes() and note.startswith("done in")


@pytest.mark.parametrize("with_picture", [False, True])
def test_interleaved_shows_texts_and_pictures_in_order(press, pipeline, script, file, with_picture):
    script([60, pipeline.tokenizer.boi, 61, pipeline.tokenizer.eos])
    given = {"Picture before the prompt (optional)": file} if with_picture else {}
    *_, (story, note) = press("go_on", {"Prompt": "<b>two", **given, **STEPS, **TOKENS})
    kinds = re.findall(r'<(p|img) class="(\w+)"', story)
    before = [("img", "given")] if with_picture else []
    assert kinds == [*before, ("p", "given"), ("p", "added"), ("img", "added"), ("p", "added")]
    assert "&lt;b&gt;two" in story and "data:image/png;base64," in story
    assert note.endswith("stopped by: end of text")


@pytest.mark.parametrize(
    ("button", "values", "message"),
    [
        ("describe", {}, "no picture given"),
        ("edit", {"Instruction": "two"}, "no picture given"),
        ("draw", {"From": 0.9, "To": 0.1}, "guidance_interval 0.9, 0.1 "),
        ("describe", {"Picture": __file__}, "picture test_page.py: "),
        ("draw", {"Steps": 2000}, "num_inference_steps 2000 "),
    ],
)
def test_errors_are_shown_on_the_page(press, capsys, button, values, message):
    with pytest.raises(gr.Error, match=message) as caught:
        press(button, values)
    assert "\n" not in caught.value.message and not caught.value.print_exception


def test_a_bug_is_not_reported_as_a_users_error(press, monkeypatch):
    monkeypatch.setattr("lit_transfusion.commands.playground.page.write", lambda *_: 1 / 0)
    monkeypatch.setattr("lit_transfusion.commands.playground.page.given", lambda *_: torch.zeros(3, 4, 4))
    with pytest.raises(ZeroDivisionError):
        press("describe", {})


def test_empty_values_on_the_page_are_none():
    chosen = {"top_k": 0, "negative_prompt": "", "seed": None, "guidance_from": 0.2, "guidance_to": 0.7}
    assert to_sampling(chosen) == Sampling(guidance_interval=(0.2, 0.7))
    with pytest.raises(InputError, match="top_p 0"):
        to_sampling({"top_p": 0, "seed": 1})


def test_examples_are_texts_that_the_model_writes_before_an_image(pipeline, script):
    boi, eos, word = pipeline.tokenizer.boi, pipeline.tokenizer.eos, pipeline.tokenizer.decode
    script([60, boi], [61, eos], [60, boi], [boi], [60, 61, boi], *[[eos]] * 3)
    assert own_prompts(pipeline) == [word([60]), word([60, 61])]


def test_the_heading_describes_the_model_and_analytics_are_off(pipeline):
    page = build_page(pipeline, "run.ckpt")
    values = [str(getattr(block, "value", "")) for block in page.blocks.values()]
    (heading,) = [value for value in values if value.startswith("# lit_transfusion")]
    assert "`run.ckpt`" in heading and "4 × 4 pixels" in heading and "dim 32, 2 layers" in heading
    assert page.title.endswith("run.ckpt") and page.analytics_enabled is False
