"""Time of a guided denoising step with and without the prefix cache, and of a token, also in other libraries."""

import contextlib
import importlib.util
import io
from collections.abc import Callable

import torch

from benchmarks.batches import CHANNELS, MARKERS
from benchmarks.report import Table
from benchmarks.timing import Timing, interleave, show
from benchmarks.training import new_net
from lit_transfusion.data.types import TEXT, Document, TextSegment
from lit_transfusion.diffusion import DDPM
from lit_transfusion.generation.denoising import denoise
from lit_transfusion.generation.engine import Images, generate, read_prompts
from lit_transfusion.generation.guidance import guide
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.settings import Sampling
from lit_transfusion.latents import Codec
from lit_transfusion.model import SIZES, NoisyImages

VOCAB, STEPS = 8192, 4


class Latents(Codec):
    """A codec that does nothing: images are latents already."""

    latent_channels, downscale = CHANNELS, 1

    def encode(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return images

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents


def run(quick: bool, device: str = "cpu") -> list[Table]:
    size = SIZES["nano" if quick else "tiny"]
    prefixes = (32, 256) if quick else (32, 256, 2048)
    tables = [drawing(size, prefixes, (64,) if quick else (64, 256), quick), writing(size, prefixes, quick)]
    if importlib.util.find_spec("transfusion_pytorch"):
        tables.append(beside_transfusion_pytorch(size, prefixes[:2], quick))
    return tables


def new_pipeline(size, side: int) -> Pipeline:
    net = new_net(size, VOCAB).eval()
    with torch.no_grad():
        net.head.weight[MARKERS.eos] = 0  # EOS is never the likeliest token, so texts have full length
    return Pipeline(net, DDPM(), Latents(), MARKERS, image_size=side)


def random_prompt(length: int) -> Document:
    """A prompt of BOS and random words. BOI is added later."""
    words = torch.randint(5, VOCAB, (length - 2,), generator=torch.Generator().manual_seed(0))
    return Document((TextSegment((MARKERS.bos, *words.tolist())),))


NULL = Document((TextSegment((MARKERS.bos,)),))


def drawing(size, prefixes, patches, quick: bool) -> Table:
    table = Table(
        f"A denoising step, dim {size.dim}, {size.n_layers} layers",
        ["prefix", "patches", "all computed again", "prefix cached", "ratio", "cached, no guidance"],
        notes=[
            "With guidance, the prompt and BOS alone are two rows of one batch, or two passes of different lengths if "
            "all is recomputed. Combining the two predictions and the DDIM step are included. Cached and recomputed "
            "latents were asserted equal to 1e-4.",
        ],
    )
    for prefix in prefixes:
        for count in patches:
            pipeline = new_pipeline(size, side=int(count**0.5))
            prompt = random_prompt(prefix)
            variants = {
                "again": lambda pipeline=pipeline, prompt=prompt: recomputed(pipeline, prompt),
                "cached": cached(pipeline, [prompt], 3.0),
                "no guidance": cached(pipeline, [prompt], 1.0),
            }
            torch.testing.assert_close(variants["again"](), variants["cached"](), atol=1e-4, rtol=1e-4)
            timing = interleave(variants, rounds=3 if quick or prefix > 256 else 7)
            per_step = {name: Timing(*(seconds / STEPS for seconds in times)) for name, times in timing.items()}
            ratio = per_step["again"].median / per_step["cached"].median
            row = (per_step["again"], per_step["cached"], f"**{show(ratio)}x**", per_step["no guidance"])
            table.add(prefix, count, *row)
    return table


def cached(pipeline: Pipeline, prompts: list[Document], guidance_scale: float) -> Callable[[], torch.Tensor]:
    """A function that denoises images after prefixes that are in the cache."""
    sampling = Sampling(num_inference_steps=STEPS, guidance_scale=guidance_scale)
    with torch.inference_mode():
        decoder = read_prompts(pipeline, prompts, with_boi=True)
        null = read_prompts(pipeline, [NULL] * len(prompts), with_boi=True) if sampling.guided else None
        branch = decoder.branch(range(len(prompts)), null, room=pipeline.patches_per_image)

    @torch.inference_mode()
    def run() -> torch.Tensor:
        return denoise(
            branch, pipeline.latent_shape, [torch.Generator().manual_seed(0) for _ in prompts], sampling, None
        )

    return run


@torch.inference_mode()
def recomputed(pipeline: Pipeline, prompt: Document) -> torch.Tensor:
    """Denoise without a cache: compute both documents completely in each step, each with its own length."""
    latents = torch.randn(pipeline.latent_shape, generator=torch.Generator().manual_seed(0))[None]
    scheduler = pipeline.noise.sampler("ddim", STEPS)
    for timestep in scheduler.timesteps.tolist():
        prompted, null = (whole_document(pipeline, text, latents, timestep) for text in (prompt, NULL))
        latents = scheduler.step(guide(prompted, null, 3.0), timestep, latents).prev_sample
    return latents


def whole_document(pipeline: Pipeline, text: Document, latents: torch.Tensor, timestep: int) -> torch.Tensor:
    count = pipeline.patches_per_image
    tokens = torch.tensor([[*text.segments[0].token_ids, MARKERS.boi, *[MARKERS.pad] * count]])
    image_ids = torch.full_like(tokens, TEXT)
    image_ids[0, -count:] = 0
    positions = torch.arange(tokens.shape[1])[None]
    nowhere = torch.zeros(0, dtype=torch.int64)
    images = [NoisyImages(latents, torch.tensor([timestep]), torch.arange(tokens.shape[1])[None, -count:])]
    output = pipeline.net(tokens, positions, torch.zeros_like(tokens), image_ids, images, nowhere)
    return output.image_predictions[0]


def writing(size, prefixes, quick: bool) -> Table:
    """Time per token: the difference of many tokens and two tokens, which removes the time for the prefix."""
    few, many = 2, 18 if quick else 34
    with_llama = importlib.util.find_spec("transformers") is not None
    columns = ["prefix", "rows", "lit_transfusion", *(["transformers' Llama", "ratio"] if with_llama else [])]
    table = Table(
        f"Text, ms for a token in each row, dim {size.dim}, {size.n_layers} layers",
        columns,
        notes=["Greedy, with a cache of keys and values; the same sizes and vocabulary."],
    )
    pipeline = new_pipeline(size, side=8)
    llama = new_llama(size) if with_llama else None
    for prefix in prefixes:
        for rows in (1, 8) if prefix <= 256 else (1,):
            variants = {}
            for count in (few, many):
                variants["ours", count] = write_with(pipeline, prefix, rows, count)
                if llama:
                    variants["llama", count] = write_with_llama(llama, prefix, rows, count)
            timing = interleave(variants, rounds=3 if quick else 5)
            cells = [per_token(timing[who, few], timing[who, many], many - few) for who, n in variants if n == many]
            ratio = [f"**{cells[1] / cells[0]:.2f}x**"] if llama else []
            table.add(prefix, rows, *(show(1e3 * cell) for cell in cells), *ratio)
    return table


def per_token(few: Timing, many: Timing, tokens: int) -> float:
    """Seconds per token, without the prefix. Medians only: minimums cannot be subtracted."""
    return (many.median - few.median) / tokens


def write_with(pipeline: Pipeline, prefix: int, rows: int, count: int) -> Callable[[], object]:
    prompts, sampling = [random_prompt(prefix)] * rows, Sampling(max_new_tokens=count)

    def run() -> None:
        generated = generate(pipeline, prompts, sampling, images=Images.NEVER)
        assert all(len(sample.token_ids) == count for sample in generated)

    return run


def new_llama(size):
    from transformers import LlamaConfig, LlamaForCausalLM

    from lit_transfusion.model.config import llama_hidden_dim

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=size.dim,
        intermediate_size=llama_hidden_dim(size.dim, size.multiple_of),
        num_hidden_layers=size.n_layers,
        num_attention_heads=size.n_heads,
        max_position_embeddings=4096,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).eval()


def write_with_llama(llama, prefix: int, rows: int, count: int) -> Callable[[], object]:
    tokens = torch.randint(5, VOCAB, (rows, prefix), generator=torch.Generator().manual_seed(0))
    options = {"min_new_tokens": count, "max_new_tokens": count, "do_sample": False, "pad_token_id": 0}

    @torch.inference_mode()
    def run() -> None:
        assert llama.generate(tokens, attention_mask=torch.ones_like(tokens), **options).shape[1] == prefix + count

    return run


def beside_transfusion_pytorch(size, prefixes, quick: bool) -> Table:
    """Time per guided evaluation, from the difference of many and few. Their solver makes two per step."""
    from loguru import logger  # its logger
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.peers import new_theirs

    logger.disable("transfusion_pytorch")

    table = Table(
        f"A guided evaluation of an image of 64 patches, dim {size.dim}, {size.n_layers} layers",
        ["prefix", "lit_transfusion", "transfusion-pytorch", "ratio", "GFLOP counted", "GFLOP/s, ratio"],
        notes=["Theirs is `sample_one(cache_kv=True)`; not the same net (see `peers`). FLOPs by FlopCounterMode."],
    )
    for prefix in prefixes:
        pipeline, theirs = new_pipeline(size, side=8), new_theirs(size)
        ours = cached(pipeline, [random_prompt(prefix)], 3.0)
        text = torch.tensor(random_prompt(prefix).segments[0].token_ids)

        def their_evaluations(steps: int, theirs=theirs, text=text):
            def run() -> None:
                with contextlib.redirect_stderr(io.StringIO()):  # its progress bar and log
                    theirs.sample_one(
                        text, max_length=63, cache_kv=True, force_modality_at_start=(0, (8, 8)), modality_steps=steps
                    )

            return run

        few, many = 2, 4 if quick else 6
        variants = {"ours": ours, "few": their_evaluations(few), "many": their_evaluations(many)}
        flops = {}
        for name, variant in variants.items():
            with FlopCounterMode(display=False) as counter:
                variant()
            flops[name] = counter.get_total_flops()
        timing = interleave(variants, rounds=3 if quick else 5)
        evaluations = 2 * (many - few)
        per_ours = Timing(*(seconds / STEPS for seconds in timing["ours"]))
        per_theirs = per_token(timing["few"], timing["many"], evaluations)
        our_flops, their_flops = flops["ours"] / STEPS, (flops["many"] - flops["few"]) / evaluations
        table.add(
            prefix,
            per_ours,
            show(1e3 * per_theirs),
            f"**{per_theirs / per_ours.median:.2f}x**",
            f"{show(our_flops / 1e9)} and {show(their_flops / 1e9)}",
            f"**{per_theirs / per_ours.median * our_flops / their_flops:.2f}x**",
        )
    return table
