"""What one sees while something is drawn, and that watching changes nothing."""

import threading
import time

import pytest
import torch

from lit_transfusion.commands.playground.streaming import View, watch, watch_drawing, watch_edit, watch_going_on
from lit_transfusion.diffusion import DDPM
from lit_transfusion.errors import InputError
from lit_transfusion.generation import Sampling, draw
from lit_transfusion.generation.editing import edit
from lit_transfusion.generation.pictures import to_pil

STEPS = Sampling(num_inference_steps=40, max_new_tokens=4)


@pytest.fixture
def pipeline(make_pipeline):
    return make_pipeline(noise=DDPM(prediction_type="sample"))


def seen(pictures):
    return [picture.tobytes() for picture in pictures]


def test_a_drawing_is_seen_from_its_first_step_to_its_end(pipeline):
    *before, last = watch_drawing(pipeline, "two", 2, STEPS)
    assert [view.note for view in before] == [f"step {step} of 40" for step in range(1, 41, 3)]
    assert last.note.startswith("done in ")
    assert all(len(view.parts) == 2 and view.parts[0].size == (4, 4) for view in [*before, last])
    assert len({tuple(seen(view.parts)) for view in before}) == len(before)
    assert seen(last.parts) == seen(to_pil(picture) for picture in draw(pipeline, ["two"] * 2, STEPS))


def test_an_edit_is_what_the_function_for_it_makes(pipeline):
    given = torch.linspace(-1, 1, 48).view(3, 4, 4)
    *before, last = watch_edit(pipeline, given, "two", STEPS)
    assert len(before) == 14
    assert seen(last.parts) == [to_pil(edit(pipeline, given[None], ["two"], STEPS)[0]).tobytes()]


def test_what_the_model_adds_is_told_with_why_it_stopped(pipeline, script):
    word, boi = pipeline.tokenizer.decode, pipeline.tokenizer.boi
    script([60, boi, 61, 62, 63])
    first, *before, last = watch_going_on(pipeline, None, "two", STEPS)
    assert first == View([], "writing") and before[-1].note == "step 40 of 40"
    text, picture, more = last.parts
    assert (text, more, picture.size) == (word([60]), word([61, 62, 63]), (4, 4))
    assert last.note.endswith("s, stopped by: token limit")


def test_what_cannot_be_is_raised_to_who_watches(pipeline):
    with pytest.raises(InputError, match="num_inference_steps 2000 is not between"):
        list(watch_drawing(pipeline, "two", 1, Sampling(num_inference_steps=2000)))


def test_work_ends_when_nobody_watches_any_more():
    ended = threading.Event()

    def work(emit):
        try:
            while True:
                emit(View([], "still here"))
                time.sleep(0.001)
        finally:
            ended.set()

    watching = watch(work)
    assert next(watching).note == "still here"
    watching.close()
    assert ended.wait(timeout=10)
