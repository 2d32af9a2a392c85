"""Reading pictures of all modes, and broken ones."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from lit_transfusion.data.images import read_image, read_pixels, to_unit_range

RED, WHITE = (255, 0, 0), (255, 255, 255)


def saved(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    file.seek(0)
    return file


def color(pixels, x=0.5, y=0.5):
    """(r, g, b) at a place given as a fraction of the width and the height."""
    size = pixels.shape[-1]
    return tuple(pixels[:, int(y * size), int(x * size)].tolist())


def halves(mode, left, right, size=(32, 32)):
    image = Image.new(mode, size, right)
    image.paste(left, (0, 0, size[0] // 2, size[1]))
    return image


# Shape, range and geometry


def test_image_is_float_in_unit_range(tmp_path):
    file = tmp_path / "picture.png"
    halves("RGB", (0, 0, 0), WHITE).save(file)
    for name in (file, str(file)):
        image = read_image(name, 8)
        assert image.shape == (3, 8, 8)
        assert image.dtype == torch.float32
        assert image.min() == -1
        assert image.max() == 1


def test_unit_range_is_exact_at_all_256_values():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(((to_unit_range(values) + 1) * 127.5).round().to(torch.uint8), values)


@pytest.mark.parametrize("size", [(60, 20), (20, 60), (21, 20), (1, 1), (1, 50), (3, 2)])
def test_any_shape_becomes_a_square(size):
    assert read_pixels(saved(Image.new("RGB", size, RED)), 16).shape == (3, 16, 16)


@pytest.mark.parametrize("size", [(60, 20), (20, 60)])
def test_middle_square_is_kept(size):
    image = Image.new("RGB", size, RED)
    image.paste(WHITE, (size[0] // 2 - 10, size[1] // 2 - 10, size[0] // 2 + 10, size[1] // 2 + 10))
    assert (read_pixels(saved(image), 10) == 255).all()


def test_small_pattern_is_averaged_not_sampled():
    checkers = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    pixels = read_pixels(saved(Image.fromarray(checkers)), 8).float()
    assert ((pixels - 127.5).abs() < 8).all()


def test_big_jpeg_is_like_one_decoded_in_full():
    spots = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    file = saved(Image.fromarray(spots).resize((640, 640), Image.Resampling.BICUBIC), "JPEG", quality=95)
    in_full = np.asarray(Image.open(file).resize((80, 80), Image.Resampling.LANCZOS)).astype(float)
    file.seek(0)
    pixels = read_pixels(file, 80).permute(1, 2, 0).numpy()
    assert np.abs(pixels - in_full).max() <= 3  # 7 if it were decoded at 1/8, straight to the wanted size


# Modes


def test_grey_of_16_bits_keeps_its_range():
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    file = saved(Image.fromarray(ramp))
    assert Image.open(file).mode.startswith("I")
    pixels = read_pixels(file, 64)
    assert torch.equal(pixels[0], torch.from_numpy((ramp / 257).round().astype(np.uint8)))
    assert torch.equal(pixels[0], pixels[2])


def test_cmyk_jpeg():
    file = saved(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG")
    assert Image.open(file).mode == "CMYK"
    r, g, b = color(read_pixels(file, 16))
    assert r > 240
    assert g < 15
    assert b < 15


@pytest.mark.parametrize(("mode", "left", "expected"), [("RGBA", (*RED, 255), RED), ("LA", (90, 255), (90, 90, 90))])
def test_alpha_is_laid_on_white(mode, left, expected):
    transparent_black = (0,) * len(left)
    pixels = read_pixels(saved(halves(mode, left, transparent_black)), 32)
    assert color(pixels, x=0.25) == expected
    assert color(pixels, x=0.75) == WHITE


def test_half_transparent_is_mixed_with_white():
    assert color(read_pixels(saved(Image.new("RGBA", (8, 8), (0, 0, 0, 128))), 8))[0] in (127, 128)


def test_palette_with_transparency():
    image = halves("P", 0, 1)
    image.putpalette([*RED, 0, 0, 255])
    file = saved(image, transparency=1)
    assert Image.open(file).mode == "P"
    pixels = read_pixels(file, 32)
    assert color(pixels, x=0.25) == RED
    assert color(pixels, x=0.75) == WHITE


def test_rgb_with_one_transparent_color():
    pixels = read_pixels(saved(halves("RGB", RED, (0, 0, 255)), transparency=(0, 0, 255)), 32)
    assert color(pixels, x=0.25) == RED
    assert color(pixels, x=0.75) == WHITE


def test_black_and_white():
    pixels = read_pixels(saved(halves("1", 1, 0)), 32)
    assert color(pixels, x=0.25) == WHITE
    assert color(pixels, x=0.75) == (0, 0, 0)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (16, 16), fill) for fill in (RED, (0, 0, 255))]
    file = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image.open(file).n_frames == 2
    assert color(read_pixels(file, 16)) == RED


def test_exif_rotation():
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90° clockwise, which brings the left side to the top
    pixels = read_pixels(saved(halves("RGB", RED, (0, 0, 255)), "JPEG", exif=exif, quality=95, subsampling=0), 16)
    assert color(pixels, y=0.2)[0] > 200
    assert color(pixels, y=0.8)[2] > 200


# Broken ones


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_truncated_picture(format):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = saved(noise, format).getvalue()
    with pytest.raises(ValueError, match=r"^cannot be read: \w+"):
        read_pixels(io.BytesIO(data[: len(data) // 2]), 16)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_picture_with_changed_bytes(monkeypatch, format):
    """Whatever the byte means, the picture is decoded, or reading raises the usual error."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    draws = np.random.default_rng(0)
    data = saved(Image.fromarray(draws.integers(0, 256, (24, 24, 3), dtype=np.uint8)), format).getvalue()
    errors = 0
    for _ in range(150):
        damaged = bytearray(data)
        for place in draws.integers(0, len(data), draws.integers(1, 6)):
            damaged[place] = draws.integers(256)
        try:
            assert read_pixels(io.BytesIO(damaged), 8).shape == (3, 8, 8)
        except ValueError as error:
            assert str(error).startswith("cannot be read: ") or str(error) == "larger than 1 megapixels"
            errors += 1
    assert errors or format == "BMP"


@pytest.mark.parametrize("data", [b"", b"<html>404 Not Found</html>", b"\x89PNG\r\n\x1a\n"])
def test_file_that_is_not_a_picture(tmp_path, data):
    file = tmp_path / "picture.jpg"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"^cannot be read: not a picture of a known format$"):
        read_image(file, 16)


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"^does not exist$"):
        read_image(tmp_path / "picture.jpg", 16)


@pytest.mark.parametrize("side", [1200, 2000])  # Pillow itself warns about the first and raises for the second
def test_picture_beyond_the_limit(monkeypatch, side):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    with pytest.raises(ValueError, match=r"^larger than 1 megapixels$"):
        read_pixels(saved(Image.new("1", (side, side))), 16)


def test_reason_comes_from_the_library_and_is_equal_for_one_kind(tmp_path):
    reasons = set()
    for side in (64, 80):
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))
        (tmp_path / f"{side}.jpg").write_bytes(saved(noise, "JPEG").getvalue()[:-500])
        with pytest.raises(ValueError) as caught:
            read_pixels(tmp_path / f"{side}.jpg", 8)
        reasons.add(str(caught.value))
    (reason,) = reasons
    assert "truncated" in reason and str(tmp_path) not in reason
    with pytest.raises(ValueError, match=r"^cannot be read: Is a directory$"):
        read_pixels(tmp_path, 8)


@pytest.mark.parametrize("progressive", [False, True])
def test_size_of_a_jpeg_is_its_decoded_size(monkeypatch, progressive):
    """A picture of 108 megapixels from a phone is under Pillow's limit at 1/8, 1/4 or 1/2 of its size."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    for side in (1200, 1900):  # Pillow itself warns about the first and raises for the second
        file = saved(halves("RGB", RED, WHITE, (side, side)), "JPEG", quality=95, progressive=progressive)
        assert color(read_pixels(file, 64), x=0.2)[1] < 20 and color(read_pixels(file, 64), x=0.8) == WHITE
    with pytest.raises(ValueError, match=r"^larger than 1 megapixels$"):
        read_pixels(file, 1000)  # the requested size is as large
    with pytest.raises(ValueError, match=r"^larger than 4 megapixels$"):
        read_pixels(saved(Image.new("L", (2100, 2100)), "JPEG", progressive=progressive), 64)


def test_floating_point_picture():
    with pytest.raises(ValueError, match=r"^cannot be read: floating-point pixels"):
        read_pixels(saved(Image.new("F", (8, 8), 0.5), "TIFF"), 8)
