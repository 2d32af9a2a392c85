"""`draw_benchmark`: draw the pictures of a public benchmark, in the layout that its own scorer reads."""

import hashlib
import io
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_transfusion.commands.benchmark_file import Benchmark, read_benchmark
from lit_transfusion.errors import InputError, check_at_least
from lit_transfusion.generation.settings import Sampling
from lit_transfusion.progress import reporting
from lit_transfusion.whole_file import whole_file

if TYPE_CHECKING:
    from torch import Tensor

    from lit_transfusion.generation.pipeline import Pipeline

SETTINGS = "settings.json"


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

    After an interruption, run the same command again: it draws only the missing pictures. Picture i depends only on
    seed + i, so shards and batches of any size draw the same pictures.

    Args:
        ckpt: Checkpoint of a run; or a folder that `export` wrote, or its name on the Hugging Face hub.
        prompts: The benchmark's file. Its content determines its format.
        output: Folder for the pictures.
        num_samples: Pictures for each prompt of GenEval (null: 4), or for COCO in total, each for a different image
            (null: 30,000, or one for each image if there are fewer).
        shard: i/n draws the i-th of n parts, such as 1/4, …, 4/4 in four parallel processes; null draws all.
        batch_size: Number of pictures to draw together.
        ema: Use the averaged weights, if the checkpoint has them.
        device: cpu, cuda, cuda:1, …; null uses a GPU if there is one.
        dtype: Type of the net's weights and arithmetic; bfloat16, on GPUs, needs half the memory, and is faster and
            less exact.
        compile: Compile the net's blocks and replay its steps as CUDA graphs. Compilation takes time first, so it is
            for many samples on a GPU; it is not faster on a CPU.
        sampling: How to sample; see Sampling.
    """
    # Imports are here and in the functions below, since they take seconds, and --help is quick.
    from lit_transfusion.generation.engine import draw
    from lit_transfusion.generation.open_pipeline import open_pipeline

    settings = Sampling(**sampling)
    check_at_least("batch_size", batch_size)
    own = part_of(shard)
    benchmark = read_benchmark(prompts, num_samples, settings.seed)
    pipeline = open_pipeline(ckpt, device, ema, compile, dtype)
    check_before_drawing(pipeline, benchmark, settings, prompts)
    folder = Path(output)
    prepare_folder(folder, benchmark, inputs_of(pipeline, benchmark, settings, ckpt, num_samples))

    missing = [i for i in range(len(benchmark.orders))[own] if not (folder / benchmark.orders[i].path).exists()]
    with reporting("pictures") as on_progress:
        on_progress("drawing", 0, len(missing))
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]

            def on_step(step: int, _: "Tensor", start: int = start, count: int = len(batch)) -> None:
                on_progress("drawing", start + count * (step + 1) / settings.num_inference_steps, len(missing))

            texts = [benchmark.orders[i].prompt for i in batch]
            seeds = [settings.seed + i for i in batch]
            drawn = draw(pipeline, texts, settings, on_step, seeds, cut=benchmark.is_of_captions)
            for i, picture in zip(batch, drawn, strict=True):
                write(folder / benchmark.orders[i].path, png(picture))
    there = sum((folder / order.path).exists() for order in benchmark.orders)
    print(f"{folder}: {there} of {len(benchmark.orders)} pictures, {len(missing)} of them drawn now")


def part_of(shard: str | None) -> slice:
    """The pictures of a shard: "2/4" is every fourth, starting with the second."""
    if shard is None:
        return slice(None)
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--shard {shard} is invalid: use the form i/n with i from 1 to n, such as 1/4")
    return slice(int(match[1]) - 1, None, int(match[2]))


def check_before_drawing(pipeline: "Pipeline", benchmark: Benchmark, settings: Sampling, prompts: str) -> None:
    """Report invalid settings and prompts now rather than after hours of drawing."""
    from lit_transfusion.generation.prompts import caption_read, check_lengths, prompt_document

    pipeline.noise.check_sampler(settings.sampler, settings.num_inference_steps)
    wanted = dict.fromkeys(order.prompt for order in benchmark.orders)
    if benchmark.is_of_captions:
        cut = sum(caption_read(pipeline, prompt) != prompt for prompt in wanted)
        if cut:
            print(f"{cut} of {len(wanted)} captions are too long for a training row and are cut")
        return
    documents = [prompt_document(pipeline, prompt) for prompt in wanted]
    check_lengths(pipeline, documents, settings, True, f"prompts {prompts}: the prompt")


def inputs_of(
    pipeline: "Pipeline", benchmark: Benchmark, settings: Sampling, ckpt: str, num_samples: int | None
) -> dict[str, Any]:
    """Everything that the pictures depend on, as plain JSON data, and the name of the checkpoint, for people."""
    inputs = {
        "ckpt": ckpt,
        "num_samples": num_samples,
        **asdict(settings),
        "model": fingerprint(pipeline),
        "prompts": hashlib.sha256(json.dumps(benchmark).encode()).hexdigest(),
    }
    return json.loads(json.dumps(inputs))


def fingerprint(pipeline: "Pipeline") -> str:
    """A hash of a model's parts and weights, which does not depend on the device or the location of its file."""
    from lit_transfusion.latents.base import hash_weights

    left_out = ("codec", "sequence_length")  # the first contains paths, and the second does not change pictures
    parts = {name: part for name, part in pipeline.describe().items() if name not in left_out}
    digest = hashlib.sha256(repr([parts, type(pipeline.codec).__name__]).encode())
    hash_weights(pipeline.net, digest)
    hash_weights(pipeline.codec, digest)
    return digest.hexdigest()


def prepare_folder(folder: Path, benchmark: Benchmark, inputs: dict[str, Any]) -> None:
    """Create the folder and all its files except the pictures; or check that an existing one has the same inputs.

    Several processes may do this at the same time. Partial files are hidden, so that no process mistakes them for files
    of something else.
    """
    files = [path for path in folder.glob("*") if not path.name.startswith(".")]  # listed before the check for SETTINGS
    if not (folder / SETTINGS).exists():
        if files:
            raise InputError(
                f"--output {folder} is not empty and was not created by draw_benchmark (it has no {SETTINGS}); "
                "use a new folder"
            )
        write(folder / SETTINGS, (json.dumps(inputs, indent=2) + "\n").encode())
    try:
        before = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        differing = [key for key in inputs if key != "ckpt" and before.get(key) != inputs[key]]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / SETTINGS} cannot be read ({error}); use a new folder for --output") from None
    if differing:
        key = differing[0]
        described = {"model": f"another model, {before.get('ckpt')}", "prompts": "other prompts"}
        what = described.get(key, f"{key} {before.get(key)}, not {inputs[key]}")
        raise InputError(f"--output {folder} was started with {what}; use the same again, or a new folder")
    for path, text in benchmark.texts.items():
        if not (folder / path).exists():
            write(folder / path, text.encode())


def write(path: Path, content: bytes) -> None:
    """Write a file and its folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}; check --output") from None
    with whole_file(path) as file:  # an incomplete file is hidden, so that scorers ignore it
        file.write(content)


def png(picture: "Tensor") -> bytes:
    """Encode (3, H, W) in [-1, 1] as the bytes of a PNG file."""
    from lit_transfusion.generation.pictures import to_pil

    buffer = io.BytesIO()
    to_pil(picture).save(buffer, format="PNG")
    return buffer.getvalue()
