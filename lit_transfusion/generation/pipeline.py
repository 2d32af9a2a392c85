"""Everything that generation needs, in one value, and where it is kept: in a checkpoint, a folder, or on the hub."""

import json
import re
import shutil
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from lit_transfusion import __version__
from lit_transfusion.allowed_imports import foreign_modules
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.diffusion import NoiseProcess
from lit_transfusion.errors import InputError
from lit_transfusion.generation.checkpoint import KEY, is_sharded, read_checkpoint
from lit_transfusion.generation.model_card import TEMPLATE
from lit_transfusion.hardware import has_bf16
from lit_transfusion.latents import Codec
from lit_transfusion.model import Patcher, TransformerSize, Transfusion, Visibility
from lit_transfusion.model.block_runner import as_it_is
from lit_transfusion.serialization import build, call, describe

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.model"
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(?<!\.ckpt)")


class Pipeline(
    ModelHubMixin,  # has save_pretrained and push_to_hub
    library_name="lit_transfusion",
    tags=["transfusion", "text-to-image", "image-to-text"],
    model_card_template=TEMPLATE,
):
    """A trained net with the parts that turn its tokens and latents into text and pictures.

    Args:
        net: The net.
        noise: The noise process that it was trained with.
        codec: Of the images.
        tokenizer: Of the text.
        image_size: Side of a picture in pixels.
        sequence_length: Positions of the rows that it was trained on, the longest that a document was; None if unknown.
    """

    def __init__(
        self,
        net: Transfusion,
        noise: NoiseProcess,
        codec: Codec,
        tokenizer: Tokenizer,
        image_size: int,
        sequence_length: int | None = None,
    ) -> None:
        self.net = net
        self.noise = noise
        self.codec = codec
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.sequence_length = sequence_length
        self.recording = False  # whether decoders record and replay their forward passes

    def compile(self) -> None:
        """Decode with compiled blocks, and with steps that a GPU records once for each batch, and then replays.

        It is for many samples on a GPU, since it has to be compiled first; on a CPU it brings nothing.
        """
        self.net.transformer.run_cached_block = torch.compile(as_it_is, dynamic=True)
        self.recording = True

    def generate(self, *prompt: str | Image.Image, images: str = "chosen", **sampling: Any) -> list[str | Image.Image]:
        """Go on from texts and pictures, in any order, with texts and pictures.

            pipeline.generate("a red circle", images="forced")                # [a picture]
            pipeline.generate(picture, images="never")                        # [its caption]
            pipeline.generate(picture, "make it blue", images="forced")       # [the picture changed]
            pipeline.generate("a red circle", num_inference_steps=100)        # what the model makes of it

        Args:
            prompt: Texts and pictures. A picture is cropped to its middle square.
            images: Where an image begins: `chosen` by the model, `forced` right after the prompt, in which case
                nothing follows it, or `never`.
            sampling: Of `Sampling`: guidance_scale, num_inference_steps, temperature, seed, …
        """
        # Here and not above, since these modules know pipelines themselves.
        from lit_transfusion.generation.conversation import go_on

        return go_on(self, prompt, images, **sampling)

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
            "sequence_length": self.sequence_length,
        }

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "Pipeline":
        """A pipeline with random weights."""
        keys = ("size", "rope_theta", "patcher", "mask", "noise", "codec", "tokenizer", "image_size")
        missing = [key for key in keys if key not in description]
        if missing:
            raise InputError(f"the description of the model lacks {', '.join(missing)}")
        tokenizer = Tokenizer(description["tokenizer"])
        net = Transfusion(
            tokenizer.vocab_size,
            call(TransformerSize, description["size"]),
            build(description["patcher"], Patcher),
            build(description["mask"], Visibility),
            description["rope_theta"],
        )
        noise = build(description["noise"], NoiseProcess)
        codec = build(description["codec"], Codec)
        sequence_length = description.get("sequence_length")  # which earlier checkpoints do not tell
        return cls(net.eval(), noise, codec, tokenizer, description["image_size"], sequence_length)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # that of ModelHubMixin knows no checkpoints, which are a `path` too
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        ema: bool = True,
        **download: Any,
    ) -> "Pipeline":
        """The pipeline in a checkpoint of a run, in a folder that `export` wrote, or in such a folder on the hub.

        It has classes of this package. Import the module of any other before, wherever the model is from: it is not
        imported because the model names it.

        Args:
            path: A checkpoint, a folder, or owner/name on the Hugging Face hub.
            device: Where to put it.
            dtype: Of the net's weights and arithmetic. The codec and the samplers stay in float32.
            ema: Take the averaged weights if it is a checkpoint that has any. In a folder there is one set of weights.
            download: Of `huggingface_hub.snapshot_download`: revision, token, cache_dir, local_files_only, …
        """
        local = Path(path)
        if local.is_file() or is_sharded(local):
            pipeline = cls._from_checkpoint(local, ema)
        elif local.is_dir():
            pipeline = cls._from_folder(local, str(path), ema)
        elif HUB_NAME.fullmatch(str(path)):
            pipeline = cls._from_folder(download_model(str(path), **download), str(path), ema)
        else:
            raise InputError(f"checkpoint {path} not found")
        bad = next((key for key, weight in pipeline.net.state_dict().items() if not weight.isfinite().all()), None)
        if bad is not None:
            raise InputError(
                f"{path} cannot be used: its weight {bad} holds NaN or infinite numbers, so the run it comes from has "
                "diverged; use an earlier checkpoint, or train again with a lower learning rate"
            )
        pipeline.net.to(device, dtype)
        pipeline.codec.to(device)
        return pipeline

    @classmethod
    def _from_checkpoint(cls, path: Path, ema: bool) -> "Pipeline":
        checkpoint = read_checkpoint(path)
        pipeline = cls._described(checkpoint[KEY], str(path))
        weights = checkpoint["state_dict"]
        prefix = "ema." if ema and any(name.startswith("ema.") for name in weights) else "net."
        try:
            pipeline.net.load_state_dict(
                {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
            )
        except RuntimeError as error:
            raise InputError(f"{path}: its weights do not fit its own description: {second_line(error)}") from None
        return pipeline

    @classmethod
    def _from_folder(cls, folder: Path, name: str, ema: bool) -> "Pipeline":
        """`name` is what the user calls the folder."""
        description = read_config(folder, name)
        if not ema:
            raise InputError(f"{name} holds one set of weights, chosen when it was exported; ema is for checkpoints")
        description["tokenizer"] = Tokenizer.from_file(str(folder / TOKENIZER)).model
        pipeline = cls._described(description, f"{name}/{CONFIG}")
        if not (folder / WEIGHTS).is_file():
            raise InputError(f"{name} holds no {WEIGHTS}")
        try:
            load_model(pipeline.net, folder / WEIGHTS)
        except SafetensorError as error:
            raise InputError(f"{name}/{WEIGHTS} cannot be read ({error})") from None
        except RuntimeError as error:
            raise InputError(f"{name}/{WEIGHTS} does not fit {CONFIG} beside it: {second_line(error)}") from None
        return pipeline

    @classmethod
    def _described(cls, description: dict[str, Any], source: str) -> "Pipeline":
        try:
            return cls.from_description(description)
        except ValueError as error:  # an InputError, or numbers that make no net
            raise InputError(f"{source}: {error}") from None

    def _save_pretrained(self, save_directory: Path) -> None:
        """What `save_pretrained` calls before it adds the model card."""
        description = self.describe()
        tokenizer = description.pop("tokenizer")
        description["codec"]["init_args"] |= self.codec.save(save_directory)
        try:
            config = json.dumps({"lit_transfusion_version": __version__, **description}, indent=2)
        except TypeError as error:
            raise InputError(f"{CONFIG} holds numbers, texts, lists and mappings of them only: {error}") from None
        # Shared weights are written once, and found again by `load_model`.
        save_model(self.net, str(save_directory / WEIGHTS), metadata={"format": "pt"})
        (save_directory / TOKENIZER).write_bytes(tokenizer)
        for file in (save_directory / WEIGHTS, *save_directory.glob("codec/*")):
            shutil.copymode(save_directory / TOKENIZER, file)  # safetensors lets nobody but the owner read its files
        (save_directory / CONFIG).write_text(config + "\n", encoding="utf-8")  # last: it makes the folder a model

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        modules = foreign_modules(self.describe())
        return super().generate_model_card(
            *args,
            version=__version__,
            parameters=f"{sum(p.numel() for p in self.net.parameters()):,}",
            size=self.net.transformer.size,
            vocab_size=self.tokenizer.vocab_size,
            image_size=self.image_size,
            patches_per_image=self.patches_per_image,
            patcher=type(self.net.patcher).__name__,
            mask=type(self.net.mask).__name__,
            noise=type(self.noise).__name__,
            codec=type(self.codec).__name__,
            modules=modules,
            options="".join(f" --import_module {module}" for module in modules),
            **kwargs,
        )


def open_pipeline(
    ckpt: str, device: str | None, ema: bool = True, compile: bool = False, dtype: str = "float32"
) -> Pipeline:
    """The pipeline that the options of a command name.

    Raises:
        InputError: The device does not exist, or has no bf16 arithmetic, or the checkpoint is invalid.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device}: {str(error).splitlines()[0]}") from None
    if dtype == "bfloat16" and not has_bf16(torch.device(device)):
        raise InputError(f"--dtype bfloat16: {device} has no bf16 arithmetic and would be slower than in float32")
    pipeline = Pipeline.from_pretrained(ckpt, device=device, dtype=getattr(torch, dtype), ema=ema)
    if compile:
        pipeline.compile()
    return pipeline


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """What config.json says, its paths of the codec's weights made those of this machine."""
    if not (folder / CONFIG).is_file():
        last = folder / "checkpoints" / "last.ckpt"
        hint = f"; for this run, give {last}" if last.exists() else ""
        raise InputError(f"{name} is not a model that was exported: it holds no {CONFIG}{hint}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        arguments = config["codec"]["init_args"].items()
    except ValueError as error:
        raise InputError(f"{name}/{CONFIG} is not JSON ({error})") from None
    except (AttributeError, KeyError, TypeError):
        raise InputError(f"{name}/{CONFIG} does not describe a model of lit_transfusion: it has no codec") from None
    config["codec"]["init_args"] = {
        key: str(folder / value) if isinstance(value, str) and value.startswith("./") else value
        for key, value in arguments
    }
    return config


def download_model(name: str, **download: Any) -> Path:
    """The folder in the hub's cache, with what is needed of the repository."""
    files = [CONFIG, WEIGHTS, TOKENIZER, "codec/*"]
    try:
        return Path(snapshot_download(name, allow_patterns=files, **download))
    except Exception as error:  # the hub's own, the network's or the disk's
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 160)
        raise InputError(
            f"{name}: there is no such file or folder here, and the Hugging Face hub did not hand out a model of that "
            f"name ({reason})"
        ) from None


def second_line(error: RuntimeError) -> str:
    """What is wrong, of an error of `load_state_dict`; its first line says where that was noticed."""
    return textwrap.shorten((str(error).splitlines() * 2)[1], 200)
