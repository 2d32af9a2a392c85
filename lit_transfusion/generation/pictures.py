"""Turn image tensors into PIL pictures and grids for people to look at."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from lit_transfusion.errors import InputError
from lit_transfusion.generation.fonts import SIZE, Font, font_for
from lit_transfusion.latents import Codec

SMALLEST = 112  # pixels; smaller pictures are enlarged to at least this side, so that a caption fits below them
MARGIN = 6


def to_pil(image: Tensor) -> Image.Image:
    """Convert (3, H, W) in [-1, 1] to a PIL picture."""
    from torchvision.transforms.functional import to_pil_image  # imported here, since it takes a second

    return to_pil_image((image.float().cpu().clamp(-1, 1) + 1) / 2)


def captioned_grid(images: Sequence[Tensor], captions: Sequence[str], columns: int = 8) -> Image.Image:
    """Make a grid of pictures (3, H, W) in [-1, 1], each with its caption below it, `columns` in a row."""
    fonts = [font_for(caption) for caption in captions]
    scale = max(1, -(-SMALLEST // max(image.shape[-1] for image in images)))  # an integer, so that pixels stay square
    tiles = [to_pil(image) for image in images]
    tiles = [tile.resize((tile.width * scale, tile.height * scale), Image.Resampling.NEAREST) for tile in tiles]
    width, height = (max(sides) for sides in zip(*(tile.size for tile in tiles), strict=True))
    texts = [wrap(caption, font, width) for caption, font in zip(captions, fonts, strict=True)]
    line, pen = 15, ImageDraw.Draw(Image.new("RGB", (1, 1)))
    text_height = line * max(text.count("\n") + 1 for text in texts)
    for text, font in zip(texts, fonts, strict=True):  # some fonts are higher
        text_height = max(text_height, ceil(pen.multiline_textbbox((0, 0), text, font, spacing=line - SIZE)[3]))
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    cell = width + MARGIN, height + text_height + 2 * MARGIN
    page = Image.new("RGB", (columns * cell[0] + MARGIN, rows * cell[1] + MARGIN), (238, 238, 238))
    pen = ImageDraw.Draw(page)
    for i, (tile, text, font) in enumerate(zip(tiles, texts, fonts, strict=True)):
        x, y = MARGIN + i % columns * cell[0], MARGIN + i // columns * cell[1]
        page.paste(tile, (x + (width - tile.width) // 2, y + height - tile.height))
        pen.multiline_text((x, y + height + 2), text, fill=(20, 20, 20), font=font, spacing=line - SIZE)
    return page


def edit_grid(
    inputs: Sequence[Tensor], instructions: Sequence[str], outputs: Sequence[Tensor], truths: Sequence[Tensor]
) -> Image.Image:
    """Show input with instruction, output and truth, each (3, H, W) in [-1, 1], side by side; three edits a line."""
    tiles = [tile for tiles in zip(inputs, outputs, truths, strict=True) for tile in tiles]
    captions = [text for instruction in instructions for text in (instruction, "output", "truth")]
    return captioned_grid(tiles, captions, columns=9)


def wrap(text: str, font: Font, width: int) -> str:
    """Break `text` into at most four lines of at most `width` pixels, between words if possible."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for character in word:  # Chinese and Japanese have no spaces
            if lines[-1] and font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
            if len(lines) > 4:
                break
        if len(lines) > 4:
            break
    return "\n".join(lines if len(lines) <= 4 else [*lines[:3], lines[3] + " …"])


class Frames:
    """Collects eight evenly spaced steps of each denoising, including the first and the last.

    Args:
        codec: Decodes the latents.
        num_inference_steps: Number of denoising steps.
    """

    def __init__(self, codec: Codec, num_inference_steps: int) -> None:
        self.codec = codec
        self.shown = {round(i * (num_inference_steps - 1) / 7) for i in range(8)}
        self.columns: dict[int, list[Tensor]] = {}  # step → pictures (3, H, W)

    def take(self, step: int, latents: Tensor) -> None:
        if step in self.shown:
            self.columns.setdefault(step, []).extend(self.codec.decode(latents))

    def sheet(self) -> Tensor:
        """The collected steps as one picture (3, height, width) in [0, 1], one row for each image."""
        from torchvision.utils import make_grid

        tiles = [tile.float().cpu() for row in zip(*self.columns.values(), strict=True) for tile in row]
        height, width = (max(tile.shape[axis] for tile in tiles) for axis in (1, 2))
        scale = max(1, SMALLEST // 2 // width)
        tiles = [F.pad(tile, (0, width - tile.shape[2], 0, height - tile.shape[1]), value=1.0) for tile in tiles]
        frames = torch.stack(tiles).repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
        return make_grid((frames.clamp(-1, 1) + 1) / 2, nrow=len(self.columns), padding=1, pad_value=1.0)


def picture_path(output: str, otherwise: str = "") -> Path:
    """The path of a picture file to write; an error, before anything is drawn, if its suffix is not a picture format.

    `otherwise` is added to the error message: what else the path could have been.
    """
    path = Path(output)
    if path.is_dir() or path.suffix.lower() not in Image.registered_extensions():
        raise InputError(f"--output {output} {otherwise}does not end in a picture format; use a name that ends in .png")
    return path


def save(picture: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path
