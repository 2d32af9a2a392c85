"""Views during generation, and results that are the same as without them."""

import threading
import time

import pytest
import torch

from lit_transfusion.commands.playground.streaming import View, watch, watch_continuation, watch_drawing, watch_edit
from lit_transfusion.diffusion import DDPM
from lit_transfusion.errors import InputError
from lit_transfusion.generation.engine import draw, edit
from lit_transfusion.generation.pictures import to_pil
from lit_transfusion.generation.settings import Sampling

STEPS = Sampling(num_inference_steps=40, max_new_tokens=4)


@pytest.fixture
def pipeline(make_pipeline):
    return make_pipeline(noise=DDPM(prediction_type="sample"))


def seen(pictures):
    return [picture.tobytes() for picture in pictures]


def test_views_of_a_drawing_from_the_first_step_to_the_result(pipeline):
    *before, last = watch_drawing(pipeline, "two", 2, STEPS)
    assert [view.note for view in before] == [f"step {step} of 40" for step in range(1, 41, 3)]
    assert last.note.startswith("done in ")
    assert all(len(view.parts) == 2 and view.parts[0].size == (4, 4) for view in [*before, last])
    assert len({tuple(seen(view.parts)) for view in before}) == len(before)
    assert seen(last.parts) == seen(to_pil(picture) for picture in draw(pipeline, ["two"] * 2, STEPS))


def test_an_edit_equals_that_of_the_function(pipeline):
    given = torch.linspace(-1, 1, 48).view(3, 4, 4)
    *before, last = watch_edit(pipeline, given, "two", STEPS)
    assert len(before) == 14
    assert seen(last.parts) == [to_pil(edit(pipeline, given[None], ["two"], STEPS)[0]).tobytes()]


def test_the_last_view_has_all_parts_and_the_stop_reason(pipeline, script):
    word, boi = pipeline.tokenizer.decode, pipeline.tokenizer.boi
    script([60, boi, 61, 62, 63])
    first, *before, last = watch_continuation(pipeline, None, "two", STEPS)
    assert first == View([], "writing") and before[-1].note == "step 40 of 40"
    text, picture, more = last.parts
    assert (text, more, picture.size) == (word([60]), word([61, 62, 63]), (4, 4))
    assert last.note.endswith("s, stopped by: token limit")


def test_errors_are_raised_in_the_iterator(pipeline):
    with pytest.raises(InputError, match="num_inference_steps 2000 "):
        list(watch_drawing(pipeline, "two", 1, Sampling(num_inference_steps=2000)))


def test_work_ends_when_the_iterator_is_closed():
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
