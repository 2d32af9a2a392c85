"""Generation with live results: each task yields views of its progress."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from lit_transfusion.generation.denoising import OnStep
from lit_transfusion.generation.engine import draw, edit, generate
from lit_transfusion.generation.pictures import to_pil
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.prompts import prompt_document
from lit_transfusion.generation.settings import Sampling

MOMENTS = 16  # denoising steps that are decoded and shown; few, so that this costs little time


class View(NamedTuple):
    """The current state of a task, to show on the page."""

    parts: list[str | Image.Image]
    note: str  # progress


Emit = Callable[[View | None], None]  # shows a view; None only checks whether the page is still open


class Left(Exception):
    """Raised in the task when the page is closed or stopped."""


def watch_drawing(pipeline: Pipeline, prompt: str, count: int, sampling: Sampling) -> Iterator[View]:
    """Draw `count` pictures of the prompt, with consecutive seeds."""

    def work(emit: Emit) -> None:
        start = time.monotonic()
        pictures = draw(pipeline, [prompt] * count, sampling, moments(pipeline, sampling, emit))
        emit(View([to_pil(picture) for picture in pictures], done(start)))

    return watch(work)


def watch_edit(pipeline: Pipeline, picture: Tensor, instruction: str, sampling: Sampling) -> Iterator[View]:
    """Change the picture (3, height, width) in [-1, 1] as the instruction says."""

    def work(emit: Emit) -> None:
        start = time.monotonic()
        pictures = edit(pipeline, picture[None], [instruction], sampling, moments(pipeline, sampling, emit))
        emit(View([to_pil(pictures[0])], done(start)))

    return watch(work)


def watch_continuation(pipeline: Pipeline, picture: Tensor | None, prompt: str, sampling: Sampling) -> Iterator[View]:
    """Continue the picture and the prompt. Only the last view shows the text, with the stop reason."""

    def work(emit: Emit) -> None:
        start = time.monotonic()
        emit(View([], "writing"))
        document = prompt_document(pipeline, prompt, picture)
        (sample,) = generate(pipeline, [document], sampling, moments(pipeline, sampling, emit))
        emit(View(pipeline.decode(sample.added), f"{done(start)}, stopped by: {sample.stop_reason.value}"))

    return watch(work)


def moments(pipeline: Pipeline, sampling: Sampling, emit: Emit) -> OnStep:
    """Make a callback that shows some denoising steps, including the first; the result shows the last."""
    steps = sampling.num_inference_steps
    every = -(-steps // MOMENTS)

    def on_step(step: int, latents: Tensor) -> None:
        if step % every:
            emit(None)
        else:
            pictures = pipeline.codec.decode(latents)
            emit(View([to_pil(picture) for picture in pictures], f"step {step + 1} of {steps}"))

    return on_step


def done(start: float) -> str:
    return f"done in {time.monotonic() - start:.1f} s"


def watch(work: Callable[[Emit], None]) -> Iterator[View]:
    """Run `work` in its own thread and yield what it emits; it stops early if the iterator or the program is closed."""
    views: SimpleQueue[View | None] = SimpleQueue()
    left = threading.Event()

    def emit(view: View | None) -> None:
        if left.is_set() or not threading.main_thread().is_alive():
            raise Left
        if view is not None:
            views.put(view)

    pool = ThreadPoolExecutor(1)
    working = pool.submit(work, emit)
    working.add_done_callback(lambda _: views.put(None))
    try:
        yield from iter(views.get, None)
        working.result()  # raises the error of the task, if any
    finally:
        left.set()
        pool.shutdown(wait=False)
