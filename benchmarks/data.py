"""Speed of data loading compared with training, and the cost of a VAE that encodes during training.

Tokens/s that one worker reads from shards and from a folder, and tokens/s that `tiny` trains on.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from benchmarks.report import Table
from benchmarks.timing import interleave, show
from benchmarks.training import new_step
from lit_transfusion.data.datamodule import TransfusionData
from lit_transfusion.data.shards.layout import FORMATS
from lit_transfusion.data.sources import ImageCaptions, Shards, Source
from lit_transfusion.data.types import PackedBatch
from lit_transfusion.latents import VAE, Pixels
from lit_transfusion.model import SIZES, Bidirectional, LinearPatcher, Transfusion
from lit_transfusion.prepare.command import prepare

BATCHES = 4  # read per timed call, so that a call is long enough
WAYS = {"down": "DownEncoder", "up": "UpDecoder"}  # block types of an autoencoder
SIDE = 512  # pixels of a photograph, a common size in web data sets


def run(quick: bool, device: str = "cpu") -> list[Table]:
    sizes = [(64, 8)] if quick else [(64, 8), (256, 16)]
    return [*(compare(image_size, patch_size, quick) for image_size, patch_size in sizes), latents(quick)]


def compare(image_size: int, patch_size: int, quick: bool) -> Table:
    """Time to read and pack documents of one caption and one picture, and a training step on them."""
    count, rounds = (24, 2) if quick else (400, 5)
    patches = (image_size // patch_size) ** 2
    table = Table(
        f"Pictures of {image_size} x {image_size}, {patches} patches of each, from JPEGs of {SIDE} x {SIDE * 3 // 4}",
        ["", "tokens/s", "to training", "bytes a picture"],
        notes=["Asserted before: lossless shards give exactly the pictures of the folder."],
    )
    with tempfile.TemporaryDirectory() as place:
        folder = photographs(Path(place) / "folder", count)
        sources: dict[str, Source] = {"folder": ImageCaptions(str(folder), image_size, 0)}
        size = {"folder": mean_size(folder.glob("*.jpg"), count)}
        for format in FORMATS:
            output = Path(place) / format
            with redirect_stdout(StringIO()):
                prepare([str(folder)], str(output), image_size=image_size, format=format, num_workers=0)
            sources[f"shards, {format}"] = Shards(str(output), image_size, 0)
            size[f"shards, {format}"] = mean_size(output.glob("*.tar"), count)
        for format in ("webp", "png"):
            check_equal(sources["folder"], sources[f"shards, {format}"])

        batches: dict[str, Iterator[PackedBatch]] = {}
        for name, source in sources.items():
            data = TransfusionData(
                source, Pixels(), image_size=image_size, patch_size=patch_size, sequence_length=2048, batch_size=1
            )
            batches[name] = iter(data.train_dataloader())
        batch = next(batches["folder"])
        step = new_step(tiny(data, patch_size), batch)
        timing = interleave(
            {**{name: several(stream) for name, stream in batches.items()}, "trained": step}, rounds=rounds
        )
        tokens = int(batch.lengths.sum())
        trained = tokens / timing["trained"].median
        table.add("trained on by `tiny`", show(trained), "1", "")
        for name in sources:
            made = BATCHES * tokens / timing[name].median  # rows are almost full, and have the same length
            table.add(name, show(made), f"**{made / trained:.1f}x**", show(size[name]))
    return table


def latents(quick: bool) -> Table:
    """Time per picture of latents, with a VAE of the size of Stable Diffusion's and random weights."""
    image_size, channels, count, rounds = (64, (32, 64), 4, 2) if quick else (256, (128, 256, 512, 512), 4, 5)
    with tempfile.TemporaryDirectory() as place, redirect_stdout(StringIO()):
        folder, output = photographs(Path(place) / "folder", count), Path(place) / "shards"
        torch.manual_seed(0)
        blocks = {f"{way}_block_types": (f"{kind}Block2D",) * len(channels) for way, kind in WAYS.items()}
        autoencoder = AutoencoderKL(block_out_channels=channels, layers_per_block=2, latent_channels=8, **blocks)
        autoencoder.save_pretrained(Path(place) / "vae")
        codec = VAE(str(Path(place) / "vae"))
        prepare([str(folder)], str(output), image_size=image_size, codec=codec, num_workers=0)
        kept, pixels = Shards(str(output), image_size, 0), Shards(str(output), image_size, 0, latents=False)

        def drawn() -> Tensor:
            moments = torch.stack([kept[i].image.tensor for i in range(count)])
            return codec.sample(moments.float(), torch.Generator().manual_seed(0))

        def encoded() -> Tensor:
            pictures = torch.stack([pixels[i].image for i in range(count)])
            return codec.encode(pictures, torch.Generator().manual_seed(0))

        torch.testing.assert_close(drawn(), encoded(), atol=5e-3, rtol=5e-3)
        timing = interleave({"encoded in training": encoded, "from shards": drawn}, rounds=rounds, warmup=0)
        millions = sum(parameter.numel() for parameter in codec.parameters()) / 1e6
        table = Table(
            f"Latents of pictures of {image_size} x {image_size}, {millions:.0f}M parameters in the VAE",
            ["", "ms a picture", "ratio", "bytes a picture in the shards"],
            notes=["Asserted before: the same latents from the same generator, within the precision of float16."],
        )
        size = mean_size(output.glob("*.tar"), count)
        for name in timing:
            ratio = timing["encoded in training"].median / timing[name].median
            milliseconds = 1e3 * timing[name].median / count
            table.add(name, show(milliseconds), f"**{show(ratio)}x**", show(size) if name == "from shards" else "")
    return table


def several(batches: Iterator[PackedBatch]) -> Callable[[], None]:
    def make() -> None:
        for _ in range(BATCHES):
            next(batches)

    return make


def tiny(data: TransfusionData, patch_size: int) -> Transfusion:
    torch.manual_seed(0)
    patcher = LinearPatcher(3, SIZES["tiny"].dim, patch_size)
    return Transfusion(data.tokenizer.vocab_size, SIZES["tiny"], patcher, Bidirectional())


def photographs(folder: Path, count: int) -> Path:
    """Write pictures of noise, as large as photographs in bytes, with captions of 5 to 40 words."""
    numbers = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        coarse = Image.fromarray(numbers.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((SIDE, SIDE * 3 // 4), Image.Resampling.BICUBIC)).astype(float)
        grain = numbers.normal(0, 6, smooth.shape)
        picture = Image.fromarray((smooth + grain).round().clip(0, 255).astype(np.uint8))
        picture.save(folder / f"{i}.jpg", quality=90)
        words = numbers.integers(0, 200, numbers.integers(5, 41))
        (folder / f"{i}.txt").write_text(" ".join(f"word{word}" for word in words))
    return folder


def check_equal(folder: Source, shards: Source) -> None:
    pictures = {example.captions: example.image for example in (folder[i] for i in range(len(folder)))}
    assert len(shards) == len(folder)
    for example in (shards[i] for i in range(len(shards))):
        assert torch.equal(pictures[example.captions], example.image)


def mean_size(files: Iterator[Path], count: int) -> float:
    return sum(file.stat().st_size for file in files) / count
