"""Everything that generation needs, in one value, and how a checkpoint carries it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.diffusion import NoiseProcess
from lit_transfusion.errors import InputError
from lit_transfusion.latents import Codec
from lit_transfusion.model import Patcher, TransformerSize, Transfusion, Visibility
from lit_transfusion.parts import build, describe

KEY = "lit_transfusion"  # of the description in a Lightning checkpoint


class Pipeline(NamedTuple):
    """A trained net with the parts that turn its tokens and latents into text and pictures."""

    net: Transfusion
    noise: NoiseProcess
    codec: Codec
    tokenizer: Tokenizer
    image_size: int  # side of a picture in pixels

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.codec.latent_shape(self.image_size)

    @property
    def patches_per_image(self) -> int:
        _, height, width = self.latent_shape
        return (height // self.net.patcher.patch_size) * (width // self.net.patcher.patch_size)

    def describe(self) -> dict[str, Any]:
        """Plain data from which `from_description` makes the same pipeline, its weights aside."""
        return {
            "size": asdict(self.net.transformer.size),
            "rope_theta": self.net.transformer.rope_theta,
            "patcher": describe(self.net.patcher),
            "mask": describe(self.net.mask),
            "noise": describe(self.noise),
            "codec": describe(self.codec),
            "tokenizer": self.tokenizer.model,
            "image_size": self.image_size,
        }

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "Pipeline":
        tokenizer = Tokenizer(description["tokenizer"])
        net = Transfusion(
            tokenizer.vocab_size,
            TransformerSize(**description["size"]),
            build(description["patcher"], Patcher),
            build(description["mask"], Visibility),
            description["rope_theta"],
        )
        noise, codec = build(description["noise"], NoiseProcess), build(description["codec"], Codec)
        return cls(net.eval(), noise, codec, tokenizer, description["image_size"])

    @classmethod
    def from_checkpoint(cls, path: str | Path, device: str | torch.device = "cpu", ema: bool = True) -> "Pipeline":
        """The pipeline in a checkpoint of a run, with the averaged weights if it has any and `ema` asks for them."""
        checkpoint = read_checkpoint(path)
        pipeline = cls.from_description(checkpoint[KEY])
        weights = checkpoint["state_dict"]
        prefix = "ema." if ema and any(name.startswith("ema.") for name in weights) else "net."
        pipeline.net.load_state_dict(
            {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        )
        pipeline.net.to(device)
        pipeline.codec.to(device)
        return pipeline


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint file that a run of this project wrote. Reading it executes nothing that is in it."""
    if not Path(path).is_file():
        raise InputError(f"checkpoint {path} not found")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a dozen kinds, depending on where in the file torch loses the thread
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} is not a checkpoint that can be read ({reason})") from None
    if not isinstance(checkpoint, dict) or KEY not in checkpoint:
        raise InputError(f"{path} is not a checkpoint of lit_transfusion: it has no {KEY!r} entry")
    return checkpoint
