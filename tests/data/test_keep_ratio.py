"""Pictures in their own aspect ratio: the chosen sizes, and several sizes in a batch."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lit_transfusion.data.datamodule import TransfusionData
from lit_transfusion.data.images import fit, fitted_size, read_image
from lit_transfusion.data.sources import ImageCaptions, Mix, Shards
from lit_transfusion.errors import InputError
from lit_transfusion.latents import Moments, Pixels, Raw
from lit_transfusion.prepare.command import prepare
from lit_transfusion.shapes.source import Shapes

SIZES = {"wide": (90, 30), "tall": (30, 90), "square": (50, 50), "photo": (64, 48)}  # width, height


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of several sizes; each is a circle on a background of its own."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, (name, size) in enumerate(SIZES.items()):
        for copy in range(3):
            Image.new("RGB", size, (40 * number, 30 * copy, 100)).save(folder / f"{name}{copy}.png")
            (folder / f"{name}{copy}.txt").write_text(f"a {name} picture")
    return folder


def data_of(source, codec=None, **options):
    defaults = {"image_size": 32, "patch_size": 4, "keep_ratio": True, "sequence_length": 200, "vocab_size": 280}
    return TransfusionData(source, codec or Pixels(), **(defaults | options))


# The size


@given(
    height=st.integers(1, 2000),
    width=st.integers(1, 2000),
    multiple=st.sampled_from([4, 8, 16]),
    side=st.integers(2, 8),
)
@settings(max_examples=300, deadline=None)
def test_size_keeps_the_ratio_within_the_area(height, width, multiple, side):
    rows, columns = (length // multiple for length in fitted_size(height, width, side * multiple, multiple))
    assert rows * columns <= side**2 and rows >= 1 and columns >= 1
    if max(height / width, width / height) <= side**2:  # else even one row of patches is not long enough
        scale = max(rows / height, columns / width)
        assert max(height * scale - rows, width * scale - columns) < 1 + 1e-9  # less than a patch is cropped


def test_square_is_the_middle_as_before():
    assert fitted_size(30, 90, 32) == (32, 32)
    assert fitted_size(50, 50, 32, 4) == (32, 32)
    assert fitted_size(30, 90, 32, 4) == (16, 48)


@pytest.mark.parametrize("size", [(90, 30), (30, 90), (100, 37)])
def test_a_circle_stays_a_circle(size):
    """Its width and its height are the same share of the scale, so that nothing is distorted."""
    from PIL import ImageDraw

    image = Image.new("RGB", size, "white")
    middle, radius = (size[0] / 2, size[1] / 2), 12
    ImageDraw.Draw(image).ellipse([c - radius for c in middle] + [c + radius for c in middle], fill="black")
    dark = fit(image, 64, 4).float().mean(0) < 128
    height, width = (int(dark.any(axis).sum()) for axis in (1, 0))
    assert abs(height - width) <= 1 and height > 10


# In training


def test_batch_has_a_group_for_each_size(folder):
    data = data_of(ImageCaptions(str(folder), 32, val_fraction=0.0))
    found = set()
    for batch, _ in zip(data.train_dataloader(), range(10), strict=False):
        at = torch.cat([group.at.flatten() for group in batch.image_groups])
        assert torch.equal(at.sort().values, (batch.image_ids.flatten() >= 0).nonzero()[:, 0])
        for group in batch.image_groups:
            assert isinstance(group.images, Raw)
            height, width = group.images.tensor.shape[2:]
            assert group.at.shape == (len(group.images.tensor), height * width // 16)
            assert torch.equal(group.at, group.at[:, :1] + torch.arange(group.at.shape[1]))  # consecutive
            found.add((height, width))
    assert found == {(16, 48), (48, 16), (32, 32), fitted_size(48, 64, 32, 4)}


@pytest.mark.parametrize("options", [{}, {"multiple_of": 4}, {"multiple_of": 8}])
def test_prepared_pictures(folder, tmp_path, options):
    prepare([str(folder)], str(tmp_path / "out"), image_size=32, num_workers=0, shard_size=5, **options)
    source = Shards(str(tmp_path / "out"), 32, 0.0)
    data = data_of(source)
    expected = {}
    for i in range(len(source)):
        expected.setdefault(source[i].captions[0].split()[1], source[i].image.shape[1:])
    multiple = options.get("multiple_of")
    assert expected == {name: fitted_size(*size[::-1], 32, multiple) for name, size in SIZES.items()}
    assert next(iter(data.train_dataloader())).num_images
    if options:
        with pytest.raises(InputError, match=r"data\.keep_ratio is false; set it to true"):
            data_of(Shards(str(tmp_path / "out"), 32, 0.0), keep_ratio=False)
        assert json.loads((tmp_path / "out" / "index.json").read_text())["multiple_of"] == multiple
    if multiple == 4:
        with pytest.raises(InputError, match=r"multiples of 4, but patches have 8 .*--multiple_of 8"):
            data_of(Shards(str(tmp_path / "out"), 32, 0.0), patch_size=8)


def test_prepared_pictures_equal_those_of_the_folder(folder, tmp_path):
    prepare([str(folder)], str(tmp_path / "out"), image_size=32, num_workers=0, multiple_of=4)
    source = Shards(str(tmp_path / "out"), 32, 0.0)
    original = {}
    for path in folder.glob("*.png"):
        image = read_image(path, 32, 4)
        original[image.shape, float(image[0, 0, 0]), float(image[1, 0, 0])] = image
    for i in range(len(source)):
        image = source[i].image
        assert torch.equal(original[image.shape, float(image[0, 0, 0]), float(image[1, 0, 0])], image)


def test_invalid_multiple_is_an_error(folder, tmp_path):
    with pytest.raises(InputError, match="multiple_of 5 does not divide image_size 32"):
        prepare([str(folder)], str(tmp_path / "out"), image_size=32, num_workers=0, multiple_of=5)


def test_mix_passes_it_on(folder):
    source = Mix({"own": ImageCaptions(str(folder), val_fraction=0.0), "shapes": Shapes()}, image_size=32)
    data = data_of(source)
    shapes = {
        tuple(group.images.tensor.shape[2:])
        for batch, _ in zip(data.train_dataloader(), range(5), strict=False)
        for group in batch.image_groups
    }
    assert {(32, 32), (16, 48)} <= shapes


def test_moments_of_several_sizes(folder, tmp_path, save_vae):
    from lit_transfusion.latents import VAE

    codec = VAE(save_vae(tmp_path / "vae"))
    multiple = 2 * codec.downscale
    options = {"image_size": 8 * multiple, "num_workers": 0, "multiple_of": multiple, "codec": codec}
    prepare([str(folder)], str(tmp_path / "out"), **options)
    source = Shards(str(tmp_path / "out"), 8 * multiple, 0.0)
    data = data_of(source, codec, image_size=8 * multiple, patch_size=2)
    shapes = set()
    for batch, _ in zip(data.train_dataloader(), range(8), strict=False):
        for group in batch.image_groups:
            assert isinstance(group.images, Moments)
            latents = codec.latents(group.images, torch.Generator().manual_seed(0))
            assert codec.shape_of_latents(group.images) == latents.shape[1:]
            assert group.at.shape[1] == latents.shape[2] * latents.shape[3] // 4
            shapes.add(tuple(latents.shape[2:]))
    assert len(shapes) >= 3
