"""The `Pipeline`: everything that generation needs in one object, loaded from a checkpoint, a folder, or the hub."""

import json
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor

from lit_transfusion import __version__, hub
from lit_transfusion.allowed_imports import foreign_modules
from lit_transfusion.data.images import fit, map_by_size, to_rgb, to_unit_range
from lit_transfusion.data.packing import SquarePatches
from lit_transfusion.data.tokenizer import FOLDER_FILES, Tokenizer
from lit_transfusion.data.types import ImageSegment, TextSegment
from lit_transfusion.diffusion import NoiseProcess
from lit_transfusion.errors import InputError
from lit_transfusion.generation.checkpoint import KEY, is_sharded, read_checkpoint
from lit_transfusion.generation.exported_folder import CONFIG, WEIGHTS, read_config
from lit_transfusion.generation.model_card import TEMPLATE
from lit_transfusion.generation.pictures import to_pil
from lit_transfusion.generation.settings import Sampling
from lit_transfusion.latents import Codec
from lit_transfusion.model import Patcher, TransformerConfig, Transfusion, Visibility
from lit_transfusion.model.block_runner import as_it_is
from lit_transfusion.serialization import build, call, describe


class Pipeline(
    ModelHubMixin,  # provides save_pretrained and push_to_hub
    library_name="lit_transfusion",
    tags=["transfusion", "text-to-image", "image-to-text"],
    model_card_template=TEMPLATE,
):
    """A trained net with the parts that turn its tokens and latents into text and pictures.

    Args:
        net: The net.
        noise: The noise process that it was trained with.
        codec: Encodes and decodes images.
        tokenizer: Encodes and decodes text.
        image_size: Side of a square picture in pixels.
        sequence_length: Positions of a training row, and so of the longest document in training; None if unknown.
        keep_ratio: Whether pictures keep their aspect ratio; their area is then at most that of the square.
    """

    def __init__(
        self,
        net: Transfusion,
        noise: NoiseProcess,
        codec: Codec,
        tokenizer: Tokenizer,
        image_size: int,
        sequence_length: int | None = None,
        keep_ratio: bool = False,
    ) -> None:
        self.net = net
        self.noise = noise
        self.codec = codec
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.sequence_length = sequence_length
        self.keep_ratio = keep_ratio
        self.cuda_graphs = False  # whether decoders capture and replay their forward passes

    def compile(self) -> None:
        """Compile the net's blocks for decoding, and on a GPU replay decoding steps as CUDA graphs.

        Compilation takes time first, so it is for many samples on a GPU. It is not faster on a CPU.
        """
        self.net.transformer.run_cached_block = torch.compile(as_it_is, dynamic=True)
        # Grouping by modality reads the sizes of the groups from the device, which a graph cannot.
        self.cuda_graphs = not self.net.transformer.config.groups_modalities

    def generate(self, *prompt: str | Image.Image, images: str = "chosen", **sampling: Any) -> list[str | Image.Image]:
        """Continue a prompt of texts and pictures, in any order, with texts and pictures.

            pipeline.generate("a red circle", images="forced")                # [a picture]
            pipeline.generate(picture, images="never")                        # [its caption]
            pipeline.generate(picture, "make it blue", images="forced")       # [the picture changed]
            pipeline.generate("a red circle", num_inference_steps=100)        # text and pictures, as the model chooses

        Args:
            prompt: Texts and pictures. Pictures are cropped and resized as in training.
            images: Where an image begins: `chosen` by the model; `forced` directly after the prompt, with nothing
                after the image; or `never`.
            sampling: Arguments of `Sampling`: guidance_scale, num_inference_steps, temperature, seed, …
        """
        # Imported here, since these modules import this one.
        from lit_transfusion.generation.engine import Images, generate
        from lit_transfusion.generation.prompts import interleaved

        if images.upper() not in Images.__members__:
            raise InputError(f"images {images!r} is invalid: use one of {', '.join(Images.__members__).lower()}")
        where, settings = Images[images.upper()], Sampling(**sampling)
        if where is Images.FORCED:
            settings = settings.one_image()
        parts = [part if isinstance(part, str) else self.fitted(part) for part in prompt]
        (sample,) = generate(self, [interleaved(self, parts)], settings, images=where)
        return self.decode(sample.added)

    def fitted(self, picture: Image.Image) -> Tensor:
        """Crop and resize a picture as in training, to (3, height, width) in [-1, 1]."""
        return to_unit_range(fit(to_rgb(picture), self.image_size, self.multiple_of))

    @torch.no_grad()
    def decode_images(self, images: Sequence[ImageSegment]) -> list[Tensor]:
        """Decode latents to pictures (3, height, width) in [-1, 1]; those of one size together."""
        return map_by_size(self.codec.decode, [image.latents for image in images])

    def decode(self, segments: Sequence[TextSegment | ImageSegment]) -> list[str | Image.Image]:
        """Decode the parts of a document to strings and PIL pictures."""
        return [
            self.tokenizer.decode(segment.token_ids)
            if isinstance(segment, TextSegment)
            else to_pil(self.codec.decode(segment.latents[None])[0])
            for segment in segments
        ]

    @property
    def patches(self) -> SquarePatches:
        """Counts the patches of an image."""
        return SquarePatches(self.net.patcher.patch_size, self.codec.downscale)

    @property
    def images_are_tokens(self) -> bool:
        """Whether images are tokens, the codes of the codec, instead of latents that are diffused."""
        return self.noise.images_are_tokens

    @property
    def first_code(self) -> int:
        """The token id of the first code if images are tokens; the ids of the text are smaller."""
        return self.tokenizer.vocab_size

    @property
    def multiple_of(self) -> int | None:
        """The sides of pictures are multiples of this many pixels; None if all are squares."""
        return self.patches.side if self.keep_ratio else None

    @property
    def picture_size(self) -> str:
        """The size of the pictures of training, for people."""
        square = f"{self.image_size} × {self.image_size} pixels"
        return f"any aspect ratio, at most the area of {square}" if self.keep_ratio else square

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the latents of a square image."""
        return self.codec.latent_shape(self.image_size)

    @property
    def patches_per_image(self) -> int:
        """Number of patches of a square image, and of the largest image in training."""
        return self.patches.of_pixels(self.image_size, self.image_size)

    def describe(self) -> dict[str, Any]:
        """Plain data from which `from_description` makes the same pipeline, without its weights."""
        return {
            "size": asdict(self.net.transformer.config),
            "patcher": describe(self.net.patcher),
            "mask": describe(self.net.mask),
            "noise": describe(self.noise),
            "codec": describe(self.codec),
            "tokenizer": self.tokenizer.model,
            "image_size": self.image_size,
            "sequence_length": self.sequence_length,
            "keep_ratio": self.keep_ratio,
        }

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "Pipeline":
        """Make a pipeline with random weights from the result of `describe`."""
        keys = ("size", "patcher", "mask", "noise", "codec", "tokenizer", "image_size")
        missing = [key for key in keys if key not in description]
        if missing:
            raise InputError(
                f"the description of the model lacks {', '.join(missing)}; export or train the model again"
            )
        tokenizer = Tokenizer(description["tokenizer"])
        size = description["size"]
        if "rope_theta" in description:  # version 0.1 has it there
            size = {**size, "rope_theta": description["rope_theta"]}
        codec = build(description["codec"], Codec)
        net = Transfusion(
            tokenizer.vocab_size + (codec.num_codes or 0),
            call(TransformerConfig, size),
            build(description["patcher"], Patcher),
            build(description["mask"], Visibility),
        )
        noise = build(description["noise"], NoiseProcess)
        sequence_length = description.get("sequence_length")  # older checkpoints lack it
        keep_ratio = description.get("keep_ratio", False)
        return cls(net.eval(), noise, codec, tokenizer, description["image_size"], sequence_length, keep_ratio)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # in ModelHubMixin, `path` cannot be a checkpoint
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        ema: bool = True,
        **download: Any,
    ) -> "Pipeline":
        """Load a pipeline from a checkpoint of a run, a folder that `export` wrote, or such a folder on the hub.

        A model that uses classes of another package loads only if their modules are imported before: a module is never
        imported because the model names it.

        Args:
            path: A checkpoint, a folder, or owner/name on the Hugging Face hub.
            device: Device of the net and the codec.
            dtype: Type of the net's weights and arithmetic. The codec and the samplers stay in float32.
            ema: Use the averaged weights of a checkpoint, if it has them. An exported folder has one set of weights.
            download: Arguments of `huggingface_hub.snapshot_download`: revision, token, cache_dir, local_files_only, …

        Raises:
            InputError: The model is missing, damaged, not of this package, or has weights that are not finite.
        """
        local = Path(path)
        if local.is_file() or is_sharded(local):
            pipeline = cls._from_checkpoint(local, ema)
        elif local.is_dir():
            pipeline = cls._from_folder(local, str(path), ema)
        elif hub.NAME.fullmatch(str(path)):
            folder = hub.download(str(path), [CONFIG, WEIGHTS, *FOLDER_FILES, "codec/*"], **download)
            pipeline = cls._from_folder(folder, str(path), ema)
        else:
            raise InputError(f"checkpoint {path} not found; check the path")
        bad = next((key for key, weight in pipeline.net.state_dict().items() if not weight.isfinite().all()), None)
        if bad is not None:
            raise InputError(
                f"{path} cannot be used: its weight {bad} contains NaN or infinite numbers, so its training run has "
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
            raise InputError(
                f"{path}: its weights do not match its description of the model ({second_line(error)}); use the "
                "version of the code that wrote the checkpoint"
            ) from None
        return pipeline

    @classmethod
    def _from_folder(cls, folder: Path, name: str, ema: bool) -> "Pipeline":
        """Load an exported folder; `name` is what the user calls it."""
        description = read_config(folder, name)
        if not ema:
            raise InputError(
                f"{name} is an exported model and has one set of weights, so ema cannot be false; to choose the "
                "weights, export again with --weights raw"
            )
        description["tokenizer"] = Tokenizer.from_file(str(folder)).model
        pipeline = cls._described(description, f"{name}/{CONFIG}")
        if not (folder / WEIGHTS).is_file():
            raise InputError(f"{name} contains no {WEIGHTS}; export the model again")
        try:
            load_model(pipeline.net, folder / WEIGHTS)
        except SafetensorError as error:
            raise InputError(f"{name}/{WEIGHTS} cannot be read ({error}); export the model again") from None
        except RuntimeError as error:
            raise InputError(
                f"{name}/{WEIGHTS} does not match {CONFIG} in the same folder ({second_line(error)}); export the model "
                "again"
            ) from None
        return pipeline

    @classmethod
    def _described(cls, description: dict[str, Any], source: str) -> "Pipeline":
        try:
            return cls.from_description(description)
        except ValueError as error:  # an InputError, or values that are invalid for a net
            raise InputError(f"{source}: {error}") from None

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write config, weights, tokenizer and codec; `save_pretrained` calls this and then adds the model card."""
        description = self.describe()
        del description["tokenizer"]
        description["codec"]["init_args"] |= self.codec.save(save_directory)
        try:
            config = json.dumps({"lit_transfusion_version": __version__, **description}, indent=2)
        except TypeError as error:
            raise InputError(
                f"{CONFIG} can contain only numbers, strings, lists and mappings ({error}); change the arguments of "
                "the part"
            ) from None
        # Shared weights are written once; `load_model` restores the sharing.
        save_model(self.net, str(save_directory / WEIGHTS), metadata={"format": "pt"})
        reference = self.tokenizer.save(save_directory)
        for file in (save_directory / WEIGHTS, *save_directory.glob("codec/*")):
            shutil.copymode(reference, file)  # safetensors makes files that only the owner can read
        (save_directory / CONFIG).write_text(config + "\n", encoding="utf-8")  # last: it marks the folder as a model

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        modules = foreign_modules(self.describe())
        return super().generate_model_card(
            *args,
            version=__version__,
            parameters=f"{sum(p.numel() for p in self.net.parameters()):,}",
            size=self.net.transformer.config,
            vocab_size=self.tokenizer.vocab_size,
            picture_size=self.picture_size,
            patches_per_image=self.patches_per_image,
            patcher=type(self.net.patcher).__name__,
            mask=type(self.net.mask).__name__,
            noise=type(self.noise).__name__,
            codec=type(self.codec).__name__,
            modules=modules,
            options="".join(f" --import_module {module}" for module in modules),
            **kwargs,
        )


def second_line(error: RuntimeError) -> str:
    """The second line of an error of `load_state_dict`, which contains the reason; the first only names the class."""
    return textwrap.shorten((str(error).splitlines() * 2)[1], 200)
