"""What a plan needs to know of a run, read from its config without data and without building the net."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import Namespace

from lit_transfusion.data.packing import SquarePatches
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.errors import InputError
from lit_transfusion.latents import Codec
from lit_transfusion.model import SIZES, Patcher, TransformerConfig, Transfusion, Visibility
from lit_transfusion.serialization import build, find_class

MARKERS = 2  # BOI and EOI, which follow the vocabulary of the text


class Latents(NamedTuple):
    """The latents of a codec."""

    channels: int
    downscale: int  # pixels per latent pixel along one side
    num_codes: int  # size of the codebook if images are tokens, else 0
    codec_bytes: int  # of its weights
    assumed: bool = False  # whether the codec could not be opened


@dataclass(frozen=True)
class Setup:
    """The parts of a run that decide its cost."""

    size: TransformerConfig
    vocab_size: int  # V, with the markers and the codes of images
    patcher: Mapping[str, Any]  # class and arguments
    mask: Visibility
    latents: Latents
    image_size: int
    patch_size: int
    images_per_example: int  # of the documents with images
    image_share: float  # share of the positions that are in documents with images, in [0, 1]
    sequence_length: int
    batch_size: int
    accumulated: int  # batches per optimiser step
    max_steps: int
    ema: bool
    optimizer: Mapping[str, Any]  # class and arguments
    bf16: bool
    sharded: bool
    checkpointing: str  # none, selective or full

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the latents of a square picture."""
        side = self.image_size // self.latents.downscale
        return self.latents.channels, side, side

    @property
    def patches(self) -> int:
        """Patches, or codes, of a square picture."""
        return SquarePatches(self.patch_size, self.latents.downscale).of_pixels(self.image_size, self.image_size)

    @property
    def images_are_tokens(self) -> bool:
        return self.latents.num_codes > 0

    def net(self, **changes: Any) -> Transfusion:
        """Build the net on the meta device, with changes of the size."""
        with torch.device("meta"):
            size = dataclasses.replace(self.size, **changes)
            return Transfusion(self.vocab_size, size, build(dict(self.patcher), Patcher), self.mask, "eager")


def read_setup(config: Namespace, latent_channels: int, downscale: int) -> Setup:
    """Read the parsed config of a `fit`.

    Args:
        config: The config, in which classes are not instantiated.
        latent_channels: Channels of the latents if the codec cannot be opened.
        downscale: Pixels per latent pixel if the codec cannot be opened.

    Raises:
        InputError: A value is invalid.
    """
    model, data, trainer = config.model, config.data, config.trainer
    if trainer.max_steps < 1:
        raise InputError(f"trainer.max_steps {trainer.max_steps} is less than 1; set the number of steps")
    if trainer.precision not in (None, "32-true", "bf16-mixed"):
        raise InputError(f"trainer.precision {trainer.precision} cannot be planned; use 32-true or bf16-mixed")
    size = SIZES[model.size] if isinstance(model.size, str) else TransformerConfig(**model.size.as_dict())
    latents = latents_of(part(data.codec), latent_channels, downscale)
    if find_class(model.noise.class_path).images_are_tokens != (latents.num_codes > 0):
        raise InputError("data.codec VQ and model.noise NextToken are used together; set both, or neither")
    patcher = part(model.patcher)
    patcher["init_args"] |= {"latent_channels": latents.channels, "dim": size.dim}
    images_per_example, image_share = documents_of(part(data.source))
    tokenizer = data.tokenizer_model
    pieces = data.vocab_size + MARKERS if tokenizer is None else Tokenizer.from_file(tokenizer).vocab_size
    return Setup(
        size,
        pieces + latents.num_codes,
        patcher,
        build(part(model.mask), Visibility),
        latents,
        data.image_size,
        1 if latents.num_codes else patcher["init_args"].get("patch_size", 1),
        images_per_example,
        image_share,
        data.sequence_length,
        data.batch_size,
        trainer.accumulate_grad_batches,
        trainer.max_steps,
        model.ema_decay is not None,
        part(model.optimizer),
        trainer.precision == "bf16-mixed",
        is_sharded(trainer.strategy),
        model.activation_checkpointing,
    )


def part(namespace: Namespace) -> dict[str, Any]:
    """The class and the arguments of a part, as plain data."""
    plain = namespace.as_dict()
    return {"class_path": plain["class_path"], "init_args": dict(plain.get("init_args") or {})}


def latents_of(codec: dict[str, Any], channels: int, downscale: int) -> Latents:
    """The latents of a codec; if its folder is not on this machine, the assumed ones."""
    path = codec["init_args"].get("path")
    if path is not None and not Path(path).is_dir():
        if find_class(codec["class_path"]).__name__ != "VAE":
            raise InputError(
                f"data.codec.init_args.path {path} is not a folder on this machine, and a plan needs the number of its "
                "codes; use the folder of the codec"
            )
        return Latents(channels, downscale, 0, 0, assumed=True)
    opened = build(codec, Codec)
    weights = sum(p.numel() * p.element_size() for p in opened.parameters())
    return Latents(opened.latent_channels, opened.downscale, opened.num_codes or 0, weights)


def documents_of(source: dict[str, Any]) -> tuple[int, float]:
    """The images of a document that has images, and the share of the positions in such documents."""
    cls, arguments = find_class(source["class_path"]), source["init_args"]
    if "sources" not in arguments:  # not a mix
        return max(cls.images_per_example, 1), float(cls.images_per_example > 0)
    images = {name: find_class(one["class_path"]).images_per_example for name, one in arguments["sources"].items()}
    weights = arguments.get("weights") or dict.fromkeys(images, 1.0)
    whole = sum(weights.values())
    if not whole or weights.keys() != images.keys():
        raise InputError(f"Mix: weights {weights} do not fit the sources {', '.join(images)}; give a weight to each")
    return max(*images.values(), 1), sum(weights[name] for name, number in images.items() if number) / whole


def is_sharded(strategy: Any) -> bool:
    name = strategy if isinstance(strategy, str) else strategy.class_path
    return name == "fsdp2" or name.endswith(".FSDP2Strategy")
