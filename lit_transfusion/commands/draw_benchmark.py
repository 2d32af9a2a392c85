"""`draw_benchmark`: the pictures that a public benchmark asks for, where its own scorer looks for them."""

import hashlib
import io
import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lit_transfusion.commands.benchmark_file import Benchmark, read_benchmark
from lit_transfusion.errors import InputError
from lit_transfusion.generation.engine import draw
from lit_transfusion.generation.pictures import to_pil
from lit_transfusion.generation.pipeline import Pipeline, open_pipeline
from lit_transfusion.generation.prompts import caption_read, check_lengths, prompt_document
from lit_transfusion.generation.settings import Sampling
from lit_transfusion.latents.base import hash_weights
from lit_transfusion.progress import reporting

RECORD = "settings.json"


def draw_benchmark(
    ckpt: str,
    prompts: str,
    output: str,
    num_samples: int | None = None,
    shard: str | None = None,
    batch_size: int = 16,
    ema: bool = True,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    compile: bool = False,
    **sampling: Any,
) -> None:
    """Draw the prompts of GenEval, or captions of COCO, in the layout that the public scorers read.

    GenEval's evaluation_metadata.jsonl gives DIR/00000/metadata.jsonl and DIR/00000/samples/00000.png, …, for its
    evaluate_images.py. COCO's captions_val2014.json gives DIR/pictures/<image_id>.png, a flat folder for tools that
    measure FID, and DIR/captions.jsonl. Pictures are as large as the model draws them.

    The same command goes on where it was interrupted. Picture i depends on seed + i alone, so that shards and batches
    of any size draw the same.

    Args:
        ckpt: Checkpoint of a run; or a folder that `export` wrote, or its name on the Hugging Face hub.
        prompts: The benchmark's file. Its format is known by its content.
        output: Folder for the pictures.
        num_samples: Pictures of each prompt of GenEval (null: 4), or of COCO in all, each of another image (null:
            30,000, or all images if they are fewer).
        shard: i/n draws the i-th of n parts, such as 1/4, …, 4/4 in four processes at once; null draws all.
        batch_size: Pictures at once.
        ema: Use the averaged weights, if the checkpoint has them.
        device: cpu, cuda, cuda:1, …; null takes a GPU if there is one.
        dtype: Of the net; bfloat16 is for GPUs: half the memory, faster products, some rounding.
        compile: Compile the net's blocks and replay its steps as CUDA graphs: for many samples on a GPU, since it has
            to be compiled first. On a CPU it brings nothing.
        sampling: How to sample; see Sampling.
    """
    settings = Sampling(**sampling)
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size} is less than 1")
    own = part_of(shard)
    benchmark = read_benchmark(prompts, num_samples, settings.seed)
    pipeline = open_pipeline(ckpt, device, ema, compile, dtype)
    check_before_drawing(pipeline, benchmark, settings, prompts)
    folder = Path(output)
    begin(folder, benchmark, record(pipeline, benchmark, settings, ckpt, num_samples))

    missing = [i for i in range(len(benchmark.orders))[own] if not (folder / benchmark.orders[i].path).exists()]
    with reporting("pictures") as on_progress:
        on_progress("drawing", 0, len(missing))
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]

            def on_step(step: int, _: Tensor, start: int = start, count: int = len(batch)) -> None:
                on_progress("drawing", start + count * (step + 1) / settings.num_inference_steps, len(missing))

            texts = [benchmark.orders[i].prompt for i in batch]
            seeds = [settings.seed + i for i in batch]
            drawn = draw(pipeline, texts, settings, on_step, seeds, cut=benchmark.is_of_captions)
            for i, picture in zip(batch, drawn, strict=True):
                write(folder / benchmark.orders[i].path, png(picture))
    there = sum((folder / order.path).exists() for order in benchmark.orders)
    print(f"{folder}: {there} of {len(benchmark.orders)} pictures, {len(missing)} of them drawn now")


def part_of(shard: str | None) -> slice:
    """Which of the pictures "2/4" draws: every fourth, from the second on."""
    if shard is None:
        return slice(None)
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--shard {shard} is not of the form i/n with i from 1 to n, such as 1/4")
    return slice(int(match[1]) - 1, None, int(match[2]))


def check_before_drawing(pipeline: Pipeline, benchmark: Benchmark, settings: Sampling, prompts: str) -> None:
    """Refuses at once what would be refused hours later."""
    pipeline.noise.sampler(settings.sampler, settings.num_inference_steps)
    wanted = dict.fromkeys(order.prompt for order in benchmark.orders)
    if benchmark.is_of_captions:
        cut = sum(caption_read(pipeline, prompt) != prompt for prompt in wanted)
        if cut:
            print(f"{cut} of {len(wanted)} captions are cut to what a row of training has room for")
        return
    documents = [prompt_document(pipeline, prompt) for prompt in wanted]
    check_lengths(pipeline, documents, True, f"prompts {prompts}: the prompt")


def record(
    pipeline: Pipeline, benchmark: Benchmark, settings: Sampling, ckpt: str, num_samples: int | None
) -> dict[str, Any]:
    """All that the pictures depend on, as JSON reads it again; and the name of the checkpoint, for people."""
    made_of = {
        "ckpt": ckpt,
        "num_samples": num_samples,
        **asdict(settings),
        "model": fingerprint(pipeline),
        "prompts": hashlib.sha256(json.dumps(benchmark).encode()).hexdigest(),
    }
    return json.loads(json.dumps(made_of))


def fingerprint(pipeline: Pipeline) -> str:
    """A name for a model by its parts and weights: the same on all devices, and wherever its file lies."""
    elsewhere = ("codec", "sequence_length")  # the one has paths, and the other changes no picture
    parts = {name: part for name, part in pipeline.describe().items() if name not in elsewhere}
    digest = hashlib.sha256(repr([parts, type(pipeline.codec).__name__]).encode())
    hash_weights(pipeline.net, digest)
    hash_weights(pipeline.codec, digest)
    return digest.hexdigest()


def begin(folder: Path, benchmark: Benchmark, made_of: dict[str, Any]) -> None:
    """Make the folder and all in it that is no picture, or go on in one that was made of the same.

    Several processes may do so at once. What one is about to write is hidden, so that none takes it for a stranger's.
    """
    strangers = [path for path in folder.glob("*") if not path.name.startswith(".")]  # looked for before the record
    if not (folder / RECORD).exists():
        if strangers:
            raise InputError(f"--output {folder} holds files, but no {RECORD} that says what of; give a new folder")
        write(folder / RECORD, (json.dumps(made_of, indent=2) + "\n").encode())
    try:
        before = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        differing = [key for key in made_of if key != "ckpt" and before.get(key) != made_of[key]]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / RECORD} cannot be read ({error})") from None
    if differing:
        key = differing[0]
        said = {"model": f"another model, that of {before.get('ckpt')}", "prompts": "other prompts"}
        what = said.get(key, f"{key} {before.get(key)}, not {made_of[key]}")
        raise InputError(f"--output {folder} was begun with {what}; go on with that, or give a new folder")
    for path, text in benchmark.texts.items():
        if not (folder / path).exists():
            write(folder / path, text.encode())


def write(path: Path, content: bytes) -> None:
    """Whole or not at all, whenever the process may be killed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")  # no scorer takes it for a picture
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def png(picture: Tensor) -> bytes:
    """(3, H, W) in [-1, 1] → the content of a file."""
    buffer = io.BytesIO()
    to_pil(picture).save(buffer, format="PNG")
    return buffer.getvalue()
