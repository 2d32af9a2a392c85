"""Write the files of the `generate` command: pictures, and samples.json with prompts, seeds and settings."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from lit_transfusion.data.types import ImageSegment
from lit_transfusion.errors import InputError
from lit_transfusion.generation.pictures import captioned_grid, picture_path, save, to_pil
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.sample_state import Generated


class Exhibit(NamedTuple):
    """One decoded sample."""

    prompt: str | None
    seed: int
    text: str  # the generated text, with [image] in place of each image
    pictures: list[Tensor]  # the drawn pictures, (3, height, width) in [-1, 1]
    stop_reason: str

    @property
    def whole_text(self) -> str:
        """The prompt and the generated text."""
        return f"{self.prompt or ''} {self.text}".strip()


def exhibit(pipeline: Pipeline, sample: Generated, prompt: str | None, seed: int) -> Exhibit:
    words = [
        "[image]" if isinstance(segment, ImageSegment) else pipeline.tokenizer.decode(segment.token_ids)
        for segment in sample.added
    ]
    pictures = pipeline.decode_images(sample.images)
    return Exhibit(prompt, seed, " ".join(word for word in words if word), pictures, sample.stop_reason.value)


class Gallery:
    """Writes samples to one picture file, or to a directory.

    Args:
        output: A picture file, such as .png, for the grid; or a directory for the grid, each picture and samples.json.
    """

    def __init__(self, output: str) -> None:
        self.path = Path(output)
        self.is_directory = self.path.is_dir() or not self.path.suffix
        if not self.is_directory:
            picture_path(output, otherwise="is not a directory and ")

    def open(self) -> None:
        """Create the directory, so that an invalid path is an error before anything is drawn."""
        try:
            (self.path if self.is_directory else self.path.parent).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--output {self.path} cannot be written: {error.strerror}; use another path") from None

    def save_samples(self, exhibits: Sequence[Exhibit], given: Tensor | None, settings: dict[str, Any]) -> list[Path]:
        """Write all samples and return the paths of the main files. The grid starts with `given`, if any."""
        tiles = [(picture, shown.whole_text.replace("[image]", "")) for shown in exhibits for picture in shown.pictures]
        paths = []
        if tiles:
            tiles = tiles if given is None else [(given, "(given)"), *tiles]
            pictures, captions = zip(*tiles, strict=True)
            paths.append(self.save_picture(captioned_grid(pictures, captions), "grid"))
        if self.is_directory:
            samples = [self._save_sample(number, shown) for number, shown in enumerate(exhibits)]
            paths.append(self.path / "samples.json")
            paths[-1].write_text(
                json.dumps(settings | {"samples": samples}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
        return paths

    def save_picture(self, picture: Image.Image, name: str) -> Path:
        if self.is_directory:
            return save(picture, self.path / f"{name}.png")
        return save(picture, self.path if name == "grid" else self.path.with_stem(f"{self.path.stem}_{name}"))

    def _save_sample(self, number: int, shown: Exhibit) -> dict[str, Any]:
        names = [f"{number:04d}.png" if i == 0 else f"{number:04d}_{i}.png" for i in range(len(shown.pictures))]
        for picture, name in zip(shown.pictures, names, strict=True):
            save(to_pil(picture), self.path / name)
        entry = shown._asdict() | {"files": names}
        del entry["pictures"]
        return entry
