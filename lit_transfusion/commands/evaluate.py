"""`evaluate`: measure a checkpoint with metrics and print a table."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lit_transfusion import run_folder
from lit_transfusion.allowed_imports import PACKAGE, class_paths, is_within, named, not_allowed
from lit_transfusion.errors import InputError, check_at_least
from lit_transfusion.evaluation.metric import Metric, Subject, Unavailable
from lit_transfusion.evaluation.text_perplexity import TextPerplexity
from lit_transfusion.generation.settings import Sampling
from lit_transfusion.lightning_compat import imports_limited_to
from lit_transfusion.progress import reporting

if TYPE_CHECKING:
    from lit_transfusion.data.sources.base import Source
    from lit_transfusion.generation.pipeline import Pipeline

Columns = dict[str, float]
SHOWN = 8  # number of pictures to save


def evaluate(
    ckpt: str,
    metrics: list[Metric] | None = None,
    data: str | None = None,
    num_examples: int = 200,
    guidance_scale: list[float] = [3.0],  # noqa: B006 (never written to)
    num_inference_steps: int = 25,
    sampler: str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    output: str | None = None,
    ema: bool = True,
    device: str | None = None,
    compile: bool = False,
) -> None:
    """Measure a checkpoint on held-out examples: losses and likelihoods, pictures and captions.

    --metrics NAME NAME ... chooses the metrics; the default is all that download nothing. A metric that cannot be
    measured is left out, and the reason is printed. --guidance_scale 1,1.5,3,5 repeats the metrics that sample at each
    scale.

    Args:
        ckpt: Checkpoint of a run, a folder that `export` wrote, or its name on the Hugging Face hub.
        metrics: Short class names, or in a --config file with arguments; your own classes by their full path.
        data: config.yaml of a run, whose `data.source` has the examples; null uses the config of the checkpoint's run.
        num_examples: Number of held-out examples, at least 2.
        guidance_scale: Weight of the prompt against the null prompt; 1 is no guidance. Give several to compare them.
        num_inference_steps: Number of denoising steps (paper: 250 with ddpm).
        sampler: One of the noise process (DDPM: ddim, ddpm, dpm++; FlowMatching: euler, heun); null: the first.
        seed: Seed for noise.
        batch_size: Number of samples to process together.
        output: Directory for evaluation.json and the first drawn pictures; null writes no files.
        ema: Use the averaged weights, if the checkpoint has them.
        device: cpu, cuda, cuda:1, …; null uses a GPU if there is one.
        compile: Compile the net's blocks and replay its steps as CUDA graphs. Compilation takes time first, so it is
            for many samples on a GPU; it is not faster on a CPU.
    """
    # Imports are here and in the functions below, since they take seconds, and --help is quick.
    from lit_transfusion.generation.open_pipeline import open_pipeline
    from lit_transfusion.generation.prompts import caption_read

    began = time.monotonic()
    # Make the settings of all scales, so that an invalid scale is an error now; the subject uses the first.
    settings, *_ = [Sampling(sampler, num_inference_steps, scale, seed=seed) for scale in check_scales(guidance_scale)]
    if metrics == []:
        raise InputError("--metrics is empty: name at least one metric")
    check_at_least("num_examples", num_examples, 2)
    check_at_least("batch_size", batch_size)
    pipeline = open_pipeline(ckpt, device, ema, compile)
    pipeline.noise.check_sampler(sampler, num_inference_steps)  # before anything is measured
    if data:
        source = source_of(Path(data), pipeline)
    else:  # the user did not pass this config: it was found next to the checkpoint
        with imports_limited_to([PACKAGE, *named]):
            source = source_of(config_beside(ckpt), pipeline, passed=False)
    has_pictures = source.pictures.images_per_example == 1
    if metrics is None:
        metrics = [TextPerplexity()] * source.has_texts + default_metrics() * has_pictures

    with quiet_backends(), reporting() as on_progress:
        subject = Subject(pipeline, source, num_examples, settings, batch_size, on_progress)
        try:
            count = len(subject.examples if has_pictures else subject.texts)
        except Unavailable as reason:
            raise InputError(f"nothing to measure: {reason}; use another config with --data CONFIG.yaml") from None
        by_scale, skipped = measure(metrics, subject, guidance_scale)
        baselines = baselines_of([metric for metric in metrics if type(metric).__name__ not in skipped], subject)
    result = {
        "ckpt": ckpt,
        "num_examples": count,
        "sampling": {
            "sampler": pipeline.noise.known_sampler(sampler),
            "num_inference_steps": num_inference_steps,
            "seed": seed,
        },
        "metrics": {f"{scale:g}": columns for scale, columns in by_scale.items()},
        "baselines": baselines,
        "skipped": skipped,
        "seconds": round(time.monotonic() - began, 1),
    }
    saved = None if output is None else save_result(result, subject, Path(output))  # before anything is printed
    if any(by_scale.values()):
        Console().print(table_of(by_scale, baselines, f"{ckpt}, {count} examples"))
    cut = sum(caption_read(pipeline, prompt) != prompt for prompt in subject.prompts) if has_pictures else 0
    if cut:
        print(f"{cut} of {len(subject.prompts)} captions were too long for a training row and were cut")
    for name, reason in skipped.items():
        print(f"{name} was left out: {reason}")
    if saved is not None:
        print(saved)


@contextmanager
def quiet_backends() -> Iterator[None]:
    """Mute the log of attention backends, which would repeat the choice for each prompt length."""
    log = logging.getLogger("lit_transfusion.model.attention")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


def measure(
    metrics: list[Metric], subject: Subject, scales: list[float]
) -> tuple[dict[float, Columns], dict[str, str]]:
    """Measure all metrics: guidance scale → columns, and metric → reason for those that cannot be measured.

    Metrics that do not sample are measured once, and their columns are the same at each scale.
    """
    once: Columns = {}
    skipped: dict[str, str] = {}

    def add(metric: Metric, judged: Subject, columns: Columns) -> None:
        name = type(metric).__name__
        judged.on_progress(name, 0, 1)
        try:
            columns |= metric(judged)
        except Unavailable as reason:
            skipped[name] = str(reason)

    for metric in metrics:
        if not metric.samples:
            add(metric, subject, once)
    by_scale = {}
    for scale in scales:
        judged = subject  # has the first scale; its pictures and scores are saved
        if scale != scales[0]:
            judged = replace(subject, sampling=replace(subject.sampling, guidance_scale=scale), each={})
        by_scale[scale] = dict(once)
        for metric in metrics:
            if metric.samples:
                add(metric, judged, by_scale[scale])
    return by_scale, skipped


def baselines_of(metrics: list[Metric], subject: Subject) -> dict[str, Columns]:
    """Collect the baselines of all metrics: name of the baseline → columns."""
    baselines: dict[str, Columns] = {}
    for metric in metrics:
        for name, columns in metric.baselines(subject).items():
            baselines.setdefault(name, {}).update(columns)
    return baselines


def table_of(by_scale: dict[float, Columns], baselines: dict[str, Columns], title: str) -> Table:
    """Make a table with a row for each column of the metrics: the model at each scale, then the baselines."""
    heads = [f"guidance {scale:g}" for scale in by_scale] + list(baselines)
    table = Table("", *heads, title=title, show_header=len(heads) > 1)
    for column in next(iter(by_scale.values())):
        numbers = [columns.get(column) for columns in [*by_scale.values(), *baselines.values()]]
        table.add_row(column, *("" if number is None else f"{number:.4g}" for number in numbers))
    return table


def save_result(result: dict[str, Any], subject: Subject, folder: Path) -> Path:
    """Write the result and the first drawn pictures, and return the path of the result."""
    from lit_transfusion.generation.pictures import save, to_pil

    folder.mkdir(parents=True, exist_ok=True)
    if "drawn" in vars(subject):  # a metric has drawn pictures
        for i, image in enumerate(subject.drawn[:SHOWN]):
            save(to_pil(image), folder / run_folder.SAMPLES / f"{i}.png")
        result["prompts"] = subject.prompts[:SHOWN]
    result["each"] = subject.each
    path = folder / run_folder.EVALUATION
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return path


def check_scales(scales: list[float]) -> list[float]:
    if not scales or len(set(scales)) < len(scales):
        raise InputError(f"guidance_scale {scales} is invalid: give at least one scale, and each only once")
    return scales


def config_beside(ckpt: str) -> Path:
    """The config.yaml of the run that wrote a checkpoint."""
    path = run_folder.config_of(ckpt)
    if not path.is_file():
        raise InputError(
            f"no config.yaml found for {ckpt}, so the held-out examples are unknown; name a config with --data "
            "CONFIG.yaml"
        )
    return path


def source_of(path: Path, pipeline: "Pipeline", passed: bool = True) -> "Source":
    """Build the source of a run's config, for pictures of the size of a pipeline.

    Args:
        path: The config.
        pipeline: The model.
        passed: Whether the user named the config; false if it was found next to the checkpoint.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    from lit_transfusion.config.actions import SourceFile
    from lit_transfusion.config.compose import compose
    from lit_transfusion.config.messages import one_line, raising_own_errors
    from lit_transfusion.config.registry import PARTS, import_all
    from lit_transfusion.data.sources.base import Source

    import_all(PARTS)
    contents = [content["data"] for _, content in compose(path) if isinstance(content.get("data"), dict)]
    sources = [data["source"] for data in contents if data.get("source")]
    sources = [{"class_path": source} if isinstance(source, str) else source for source in sources]
    if not sources:
        raise InputError(f"{path} has no data.source; use the config.yaml of a run")
    for class_path in [] if passed else [name for source in sources for name in class_paths(source)]:
        if "." in class_path and not is_within(class_path, [PACKAGE, *named]):
            raise InputError(f"{path}: {not_allowed(class_path)}; or pass the file: --data {path}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action=SourceFile)
    for option in ("vocab_size", "character_coverage"):  # options of the tokenizer, which SourceFile passes on, too
        parser.add_argument(f"--{option}", type=Any)
    parser.add_subclass_arguments(Source, "source")
    words = ["--config", str(path), "--source.init_args.image_size", str(pipeline.image_size)]
    try:
        with raising_own_errors():
            options = parser.parse_args(words)
        try:
            with raising_own_errors():
                source = parser.instantiate(options).source
                source.set_multiple_of(pipeline.multiple_of)
        except InputError as error:  # such as data that have been moved
            raise InputError(f"{path}, data.source: {error}, or use another config with --data CONFIG.yaml") from None
    except ArgumentError as error:
        raise InputError(f"{path}: {one_line(error)}") from None
    if source.pictures.images_per_example > 1:
        name = type(source.pictures).__name__
        raise InputError(f"{path}: data.source {name} has edits, but captions or texts are needed; use score_edits")
    return source


def default_metrics() -> list[Metric]:
    """The metrics of captioned pictures that download nothing."""
    from lit_transfusion.evaluation import (
        BLEU,
        KID,
        CaptionUseGap,
        CIDEr,
        DiffusionLoss,
        EfficientNetLite0,
        ImageShare,
        Perplexity,
        RankedCaptions,
        RecaptionConsistency,
    )
    from lit_transfusion.shapes.captions import ShapeCaptions
    from lit_transfusion.shapes.geneval import GenEvalShapes

    return [
        Perplexity(),
        DiffusionLoss(),
        CaptionUseGap(),
        RankedCaptions(),
        CIDEr(),
        BLEU(),
        RecaptionConsistency(),
        ImageShare(),
        KID(EfficientNetLite0()),
        GenEvalShapes(),
        ShapeCaptions(),
    ]
