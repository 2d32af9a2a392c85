"""The page of the playground: its components, and what its buttons do."""

import base64
import html
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component
from PIL import Image, ImageOps
from torch import Tensor

from lit_transfusion.commands.playground.streaming import watch_continuation, watch_drawing, watch_edit
from lit_transfusion.data.images import read_image
from lit_transfusion.errors import InputError
from lit_transfusion.generation.engine import generate, write
from lit_transfusion.generation.pictures import to_pil
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.prompts import caption_read, prompt_document
from lit_transfusion.generation.sample_state import StopReason
from lit_transfusion.generation.settings import Sampling

SHOWN = 384  # pixels; small pictures are enlarged to at most this width
KEEP = ["download", "fullscreen"]  # buttons of a picture; without gradio's `share`, which uploads it
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
STYLE = """
.pictures .grid-wrap { max-height: none !important; }
.story { display: flex; flex-direction: column; align-items: flex-start; gap: 0.75rem; font-size: 1.1rem; }
.story p.given { opacity: 0.6; }
.story img { border: 1px solid var(--border-color-primary); border-radius: 4px; }
"""


def build_page(pipeline: Pipeline, name: str) -> gr.Blocks:
    """Build the page; `name` is what the user calls the checkpoint."""
    # Shown and uploaded pictures are files, which are deleted when they are an hour old.
    with gr.Blocks(title=f"lit_transfusion · {name}", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(heading(pipeline, name))
        with gr.Tab("Text → image"):
            draw_tab(pipeline)
        with gr.Tab("Image → text"):
            describe_tab(pipeline)
        with gr.Tab("Edit"):
            edit_tab(pipeline)
        with gr.Tab("Interleaved"):
            story_tab(pipeline)
    return page


def heading(pipeline: Pipeline, name: str) -> str:
    net, size = pipeline.net, pipeline.net.transformer.config
    kind = "tokens" if pipeline.images_are_tokens else "patches"
    facts = [
        f"{sum(p.numel() for p in net.parameters()) / 1e6:,.1f} M parameters",
        f"dim {size.dim}, {size.n_layers} layers, {size.n_heads} heads",
        f"pictures of {pipeline.picture_size} in {pipeline.patches_per_image} {kind}",
        f"on {net.head.weight.device}",
    ]
    return f"# lit_transfusion\n`{name}` · {' · '.join(facts)}"


def draw_tab(pipeline: Pipeline) -> None:
    with gr.Row():
        with gr.Column():
            prompt = gr.Textbox(label="Prompt", placeholder="What to draw; empty draws anything")
            examples = own_prompts(pipeline)
            if examples:
                gr.Examples([[text] for text in examples], prompt, label="Prompts that the model wrote itself")
            button, stop = buttons("Draw")
            count = gr.Slider(1, 16, 4, step=1, label="Pictures", info="With consecutive seeds")
            settings = drawing_settings(pipeline)
        with gr.Column():
            gallery = gr.Gallery(
                show_label=False,
                format="png",
                columns=2,
                object_fit="contain",
                height="auto",
                buttons=KEEP,
                elem_classes="pictures",
            )
            note = gr.Markdown()

    def draw(prompt: str, count: int, sampling: Sampling) -> Iterator[tuple]:
        for view in watch_drawing(pipeline, prompt, count, sampling):
            yield [enlarge(picture) for picture in view.parts], view.note

    connect([button.click, prompt.submit], stop, draw, [prompt, count], settings, [gallery, note])


def describe_tab(pipeline: Pipeline) -> None:
    with gr.Row():
        with gr.Column():
            file = upload("Picture")
            button, stop = buttons("Describe")
            settings = writing_settings() | {"seed": seed_box()}
        with gr.Column():
            caption = gr.Textbox(label="Caption", lines=3)

    def describe(file: str | None, sampling: Sampling) -> Iterator[str]:
        yield write(pipeline, given(pipeline, file)[None], sampling)[0]

    connect([button.click], stop, describe, [file], settings, [caption])


def edit_tab(pipeline: Pipeline) -> None:
    gr.Markdown("For a model that was fine-tuned on edits, as `configs/finetune_edit.yaml` does.")
    with gr.Row():
        with gr.Column():
            file = upload("Picture")
            instruction = gr.Textbox(label="Instruction", placeholder="How to change it")
            button, stop = buttons("Edit")
            settings = drawing_settings(pipeline)
        with gr.Column():
            changed = gr.Image(label="Changed", format="png", interactive=False, buttons=KEEP)
            note = gr.Markdown()

    def edit(file: str | None, instruction: str, sampling: Sampling) -> Iterator[tuple]:
        for view in watch_edit(pipeline, given(pipeline, file), instruction, sampling):
            yield enlarge(view.parts[0]), view.note

    connect([button.click, instruction.submit], stop, edit, [file, instruction], settings, [changed, note])


def story_tab(pipeline: Pipeline) -> None:
    with gr.Row():
        with gr.Column():
            prompt = gr.Textbox(label="Prompt", placeholder="Text to continue; may be empty")
            file = upload("Picture before the prompt (optional)")
            button, stop = buttons("Continue")
            max_images = gr.Slider(0, 8, Sampling.max_images, step=1, label="Pictures", info="At most")
            settings = {"max_images": max_images} | writing_settings() | drawing_settings(pipeline)
        with gr.Column():
            story = gr.HTML()
            note = gr.Markdown()

    def go_on(prompt: str, file: str | None, sampling: Sampling) -> Iterator[tuple]:
        picture = None if file is None else given(pipeline, file)
        before = [*([] if picture is None else [to_pil(picture)]), *([prompt] if prompt else [])]
        for view in watch_continuation(pipeline, picture, prompt, sampling):
            yield story_html(before, view.parts), view.note

    connect([button.click, prompt.submit], stop, go_on, [prompt, file], settings, [story, note])


# Shared by the tabs


def connect(
    triggers: Sequence[Callable],
    stop: gr.Button,
    task: Callable[..., Iterator],
    inputs: Sequence[Component],
    settings: dict[str, Component],
    outputs: Sequence[Component],
) -> None:
    """Run `task(*inputs, sampling)` when a trigger fires, one task at a time for all tabs and users."""

    def run(*values: Any) -> Iterator:
        chosen = dict(zip(settings, values[len(inputs) :], strict=True))
        try:
            yield from task(*values[: len(inputs)], to_sampling(chosen))
        except InputError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from None

    running = gr.on(
        triggers,
        run,
        [*inputs, *settings.values()],
        outputs,
        api_name=task.__name__,
        concurrency_id="model",
        show_progress="minimal",
    )
    stop.click(None, cancels=running)


def to_sampling(chosen: dict[str, Any]) -> Sampling:
    """Convert the values on the page: there, 0 and empty mean None, and the guidance interval has two sliders."""
    if "guidance_to" in chosen:
        chosen["guidance_interval"] = chosen.pop("guidance_from"), chosen.pop("guidance_to")
    for name in ("top_k", "image_top_k", "negative_prompt"):
        if name in chosen:
            chosen[name] = chosen[name] or None
    return Sampling(**chosen | {"seed": chosen["seed"] or 0})


def drawing_settings(pipeline: Pipeline) -> dict[str, Component]:
    """The settings that the pictures of this model depend on."""
    with gr.Row():
        settings = code_settings() if pipeline.images_are_tokens else denoising_settings(pipeline.noise.samplers)
    with gr.Row():
        settings |= {
            "guidance_scale": gr.Slider(0, 10, Sampling.guidance_scale, step=0.1, label="Guidance", info="1 is none"),
            "seed": seed_box(),
        }
    with gr.Accordion("More about guidance", open=False):
        settings["negative_prompt"] = gr.Textbox(label="Negative prompt", info="What to steer away from")
        return settings if pipeline.images_are_tokens else settings | guided_denoising_settings()


def denoising_settings(samplers: tuple[str, ...]) -> dict[str, Component]:
    return {
        "sampler": gr.Dropdown(list(samplers), value=samplers[0], label="Sampler"),
        "num_inference_steps": gr.Slider(1, 250, Sampling.num_inference_steps, step=1, label="Steps"),
    }


def code_settings() -> dict[str, Component]:
    start, info = Sampling.image_temperature, "0 takes the likeliest code"
    return {
        "image_temperature": gr.Slider(0, 2, start, step=0.05, label="Temperature of images", info=info),
        "image_top_k": gr.Slider(0, 1000, 0, step=1, label="Top-k of images", info="0 is all"),
    }


def guided_denoising_settings() -> dict[str, Component]:
    info = "To the contrast without guidance"
    rescale = gr.Slider(0, 1, Sampling.guidance_rescale, step=0.05, label="Rescale", info=info)
    first, last = Sampling.guidance_interval
    with gr.Row():
        return {
            "guidance_rescale": rescale,
            "guidance_from": gr.Slider(0, 1, first, step=0.05, label="From", info="0 is clean"),
            "guidance_to": gr.Slider(0, 1, last, step=0.05, label="To", info="1 is noise"),
        }


def writing_settings() -> dict[str, Component]:
    with gr.Row():
        settings = {
            "temperature": gr.Slider(0, 2, Sampling.temperature, step=0.05, label="Temperature", info="0 is greedy"),
            "max_new_tokens": gr.Slider(1, 512, Sampling.max_new_tokens, step=1, label="Tokens", info="At most"),
        }
    with gr.Row():
        return settings | {
            "top_k": gr.Slider(0, 200, 0, step=1, label="Top-k", info="0 is all"),
            "top_p": gr.Slider(0.05, 1, Sampling.top_p, step=0.05, label="Top-p"),
        }


def seed_box() -> gr.Number:
    return gr.Number(Sampling.seed, label="Seed", precision=0)


def buttons(name: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        return gr.Button(name, variant="primary"), gr.Button("Stop")


def upload(label: str) -> gr.Image:
    """A picture box that passes on the unchanged file, since the pipeline handles transparency and EXIF rotation."""
    return gr.Image(label=label, type="filepath", image_mode=None, sources=["upload", "clipboard"], height=260)


def given(pipeline: Pipeline, file: str | None) -> Tensor:
    """The uploaded picture, (3, height, width) in [-1, 1]."""
    if file is None:
        raise InputError("no picture given: drop one into the picture box")
    try:
        return read_image(file, pipeline.image_size, pipeline.multiple_of)
    except ValueError as error:
        raise InputError(f"picture {Path(file).name}: {error}") from None


def own_prompts(pipeline: Pipeline) -> list[str]:
    """A few texts that the model writes without a prompt and then draws, which are like those of its training."""
    written = generate(pipeline, [prompt_document(pipeline)] * 8, Sampling(temperature=1.0, max_images=0))
    drawn_after = [sample for sample in written if sample.stop_reason is StopReason.IMAGE_LIMIT]
    texts = [pipeline.tokenizer.decode(sample.token_ids) for sample in drawn_after]
    texts = [text for text in texts if text and caption_read(pipeline, text) == text]  # an image fits after them
    return list(dict.fromkeys(texts))[:4]


def enlarge(picture: Image.Image) -> Image.Image:
    """Enlarge a picture by an integer factor, so that its pixels stay sharp and square."""
    return ImageOps.scale(picture, max(1, SHOWN // picture.width), Image.Resampling.NEAREST)


def story_html(given: Sequence[str | Image.Image], added: Sequence[str | Image.Image]) -> str:
    """HTML of texts and pictures in order; given and added parts have different CSS classes."""
    parts = [*(("given", part) for part in given), *(("added", part) for part in added)]
    shown = [
        f'<p class="{kind}">{html.escape(part)}</p>'
        if isinstance(part, str)
        else f'<img class="{kind}" src="{data_url(part)}">'
        for kind, part in parts
    ]
    return f'<div class="story">{"".join(shown)}</div>'


def data_url(picture: Image.Image) -> str:
    file = io.BytesIO()
    enlarge(picture).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
