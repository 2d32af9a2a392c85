"""Print how often the limits in shapes/fit.py and shapes/scorer.py misread true pictures and other shapes.

python docs/shape_limits.py

The limits were chosen on these pictures and on 64 drawings of the quickstart's model, not on pictures of the tests.
"""

import math
from collections import Counter
from random import Random

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from lit_transfusion.shapes.scenes import COLOURS, SHAPES, coverage, parse_caption
from lit_transfusion.shapes.scorer import read_picture
from lit_transfusion.shapes.source import Shapes

IMAGE_SIZES = (16, 24, 32, 64)
PICTURES = 100
FINE = 8  # oversampling factor


def regular(corners: int, turn: float = -90.0) -> list[tuple[float, float]]:
    angles = [math.radians(turn + 360 * k / corners) for k in range(corners)]
    return [(math.cos(angle), math.sin(angle)) for angle in angles]


OUTLINES = {
    "pentagon": regular(5, 20),
    "heptagon": regular(7, 10),
    "trapezoid": [(-0.5, -1), (0.5, -1), (1, 1), (-1, 1)],
    "parallelogram": [(-0.5, -1), (1, -1), (0.5, 1), (-1, 1)],
    "rectangle": [(-1, -0.66), (1, -0.66), (1, 0.66), (-1, 0.66)],
    "bar": [(-1, -0.33), (1, -0.33), (1, 0.33), (-1, 0.33)],
    "letter T": [(-1, -1), (1, -1), (1, -0.33), (0.33, -0.33), (0.33, 1), (-0.33, 1), (-0.33, -0.33), (-1, -0.33)],
    "letter L": [(-1, -1), (-0.33, -1), (-0.33, 0.33), (1, 0.33), (1, 1), (-1, 1)],
    "triangle upside down": [(-1, -1), (1, -1), (0, 1)],
    "right triangle": [(-1, -1), (1, 1), (-1, 1)],
    "arrow": [(0, -1), (1, 0), (0.35, 0), (0.35, 1), (-0.35, 1), (-0.35, 0), (-1, 0)],
    "kite": [(0, -1), (0.7, -0.3), (0, 1), (-0.7, -0.3)],
    "house": [(0, -1), (1, -0.2), (1, 1), (-1, 1), (-1, -0.2)],
    "quarter disc": [(-1, 1)] + [(2 * x - 1, 2 * y + 1) for x, y in regular(80, -90)[:21]],
}


def picture_of(outline: list[tuple[float, float]], image_size: int, random: Random) -> Tensor:
    """Draw the outline in a random palette colour, size and position: (3, S, S) in [-1, 1]."""
    size, side = random.uniform(0.25, 0.56), image_size * FINE
    corners = torch.tensor(outline)
    low, high = corners.amin(0), corners.amax(0)
    middle = torch.tensor([random.uniform(0.03 + size / 2, 0.97 - size / 2) for _ in "xy"])
    points = side * (middle + size * (corners - (low + high) / 2) / (high - low).max())
    picture = Image.new("RGB", (side, side), "white")
    ImageDraw.Draw(picture).polygon(
        [tuple(point) for point in points.tolist()], fill=random.choice(list(COLOURS.values()))
    )
    return 2 * to_tensor(picture.resize((image_size, image_size), Image.Resampling.BOX)) - 1


def degraded(images: Tensor, seed: int) -> dict[str, Tensor]:
    """The pictures (N, 3, S, S) with the errors of a good model, and with larger ones."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(images.shape, generator=generator)
    shift = torch.randn(*images.shape[:2], 1, 1, generator=generator)
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return {
        "clean": images,
        "noise 0.1": (images + 0.1 * noise).clamp(-1, 1),
        "half blurred, noise 0.06, colours shifted by 0.04": ((images + soft) / 2 + 0.06 * noise + 0.04 * shift).clamp(
            -1, 1
        ),
        "blurred over 3 x 3 pixels": soft,
    }


def main() -> None:
    print("True pictures that are misread, in %\n")
    for image_size in IMAGE_SIZES:
        examples = list(Shapes(image_size, num_examples=PICTURES))
        wanted = [Counter(parse_caption(example.captions[0])) for example in examples]
        images = torch.stack([example.image for example in examples])
        for name, changed in degraded(images, image_size).items():
            found = [Counter((one.colour, one.shape) for one in read_picture(image)) for image in changed]
            wrong = sum(a != b for a, b in zip(found, wanted, strict=True))
            print(f"{image_size:3} pixels, {name}: {100 * wrong / PICTURES:.1f}")
    print(f"\nOther shapes that are read as a known one, in %: at {', '.join(map(str, IMAGE_SIZES))} pixels\n")
    for name, outline in OUTLINES.items():
        shares = []
        for image_size in IMAGE_SIZES:
            random = Random(f"{name} {image_size}")
            found = [read_picture(picture_of(outline, image_size, random)) for _ in range(20)]
            shares.append(100 * sum(any(one.shape for one in objects) for objects in found) / len(found))
        print(f"{name}: {', '.join(f'{share:.0f}' for share in shares)}")
    print("\nMixtures of two palette colours that are read as a palette colour, in %: by the share of the second\n")
    for share in (0.05, 0.1, 0.15, 0.2, 0.3, 0.5):
        read = []
        for paint in COLOURS.values():
            for second in COLOURS.values():
                if paint != second:
                    mixed = (
                        torch.tensor(paint, dtype=torch.float).lerp(torch.tensor(second, dtype=torch.float), share)
                        / 127.5
                        - 1
                    )
                    image = torch.ones(3, 24, 24).lerp(
                        mixed.view(3, 1, 1), coverage(SHAPES["circle"], (0.5, 0.5), 0.4, 24)
                    )
                    read.append(read_picture(image)[0].colour is not None)
        print(f"{share:.2f}: {100 * sum(read) / len(read):.0f}")


if __name__ == "__main__":
    main()
