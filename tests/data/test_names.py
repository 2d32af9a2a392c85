"""Spellings of picture names by macOS, Windows and scripts, and pictures in unreadable formats."""

import json
import logging
import unicodedata

import pytest
from PIL import Image

from lit_transfusion.data.sources import EditTriples, ImageCaptions
from lit_transfusion.data.sources.formats import NOT_READ, why_not_read
from lit_transfusion.data.types import Example
from lit_transfusion.errors import InputError
from lit_transfusion.prepare.readers import open_reader

COMPOSED = unicodedata.normalize("NFC", "café")
DECOMPOSED = unicodedata.normalize("NFD", "café")


def put(folder, name, fill=(1, 2, 3)):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), fill).save(folder / name, "PNG")


def error_of(*arguments, **options):
    with pytest.raises(InputError) as caught:
        ImageCaptions(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("on_disk", "named"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_accents_as_one_character_or_two(tmp_path, on_disk, named):
    assert on_disk != named
    put(tmp_path / "csv", f"{on_disk}/{on_disk}.png")
    (tmp_path / "csv" / "metadata.csv").write_text(f"file,text\n{named}/{named}.png,a\n", encoding="utf-8")
    put(tmp_path / "txt", f"{on_disk}.png")
    (tmp_path / "txt" / f"{named}.txt").write_text("a")
    for place in ("csv", "txt"):
        source = ImageCaptions(str(tmp_path / place))
        assert source.captions() == ["a"] and isinstance(source[0], Example)
    images = {"images": [{"id": 1, "file_name": f"{named}/{named}.png"}]}
    (tmp_path / "csv" / "all.json").write_text(json.dumps({**images, "annotations": [{"image_id": 1, "caption": "a"}]}))
    _, reader = open_reader([str(tmp_path / "csv" / "all.json")], None, {})
    assert reader[0].file.is_file()


def spellings(folder):
    return ["b/x.png", "b\\x.png", ".\\b\\x.png", f"../{folder.name}/b/x.png", "b/../b//x.png", str(folder / "b/x.png")]


def test_one_picture_in_several_spellings_is_one(tmp_path):
    put(tmp_path / "pics", "b/x.png")
    rows = [f"{name},{number}" for number, name in enumerate(spellings(tmp_path / "pics"))]
    (tmp_path / "pics" / "metadata.csv").write_text("\n".join(["file,text", *rows]))
    source = ImageCaptions(str(tmp_path / "pics"))
    assert [entry[:2] for entry in source._entries] == [("b/x.png", ("0", "1", "2", "3", "4", "5"))]


def test_pictures_of_edits_in_several_spellings(tmp_path):
    put(tmp_path / "pics", "b/x.png")
    put(tmp_path / "pics", "y.png", (9, 9, 9))
    rows = [f"{name},{number},..\\pics\\y.png" for number, name in enumerate(spellings(tmp_path / "pics"))]
    (tmp_path / "pics" / "metadata.csv").write_text("\n".join(["input,instruction,output", *rows]))
    source = EditTriples(str(tmp_path / "pics"))
    assert [triple[:3] for triple in source._triples] == [("b/x.png", ("0", "1", "2", "3", "4", "5"), "y.png")]


def test_picture_outside_of_the_folder(tmp_path):
    put(tmp_path, f"others/{DECOMPOSED}.png")
    put(tmp_path, "in/a.png", (4, 5, 6))
    (tmp_path / "in" / "metadata.csv").write_text(f"file,text\n../others/{COMPOSED}.png,a\na.png,b\n", encoding="utf-8")
    source = ImageCaptions(str(tmp_path / "in"))
    assert len(source) == 2 and all(isinstance(source[i], Example) for i in range(2))


@pytest.mark.parametrize("written", ["C:\\Users\\ann\\pics\\cat.png", "/home/ann/pics/cat.png", "Cat.PNG", "x/cat.png"])
def test_missing_name_is_reported_with_the_likely_file(tmp_path, written, caplog):
    put(tmp_path, "b/cat.png")
    put(tmp_path, "dog.png", (4, 5, 6))
    (tmp_path / "metadata.csv").write_text(f"file,text\n{written},a\n")
    assert f"(first: {written} (the folder contains b/cat.png))" in error_of(str(tmp_path))
    (tmp_path / "metadata.csv").write_text(f"file,text\n{written},a\ndog.png,b\n")
    with caplog.at_level(logging.WARNING):
        ImageCaptions(str(tmp_path))
    assert f"missing (first: {written} (the folder contains b/cat.png))" in caplog.text


# Formats


def test_pictures_that_are_not_read_are_counted_and_named(tmp_path, caplog):
    put(tmp_path, "a.PNG")
    (tmp_path / "a.txt").write_text("a")
    for name in ("b.svg", "c.SVG", "d.cr2"):
        (tmp_path / name).write_bytes(b"")
        (tmp_path / name).with_suffix(".txt").write_text("b")
    (tmp_path / "a.nef").write_bytes(b"")  # of a.PNG, which is read
    with caplog.at_level(logging.WARNING):
        assert ImageCaptions(str(tmp_path)).captions() == ["a"]
    assert (
        "1 picture used, 3 left out: 2 in the format .svg, which is not read here (convert to .png or .jpg)"
        in caplog.text
    )
    assert "(first: b.svg)" in caplog.text and "1 in the format .cr2" in caplog.text


def test_folder_of_nothing_else(tmp_path):
    (tmp_path / "a.svg").write_bytes(b"<svg>")
    assert "no pictures in" in error_of(str(tmp_path)) and "1 in the format .svg" in error_of(str(tmp_path))


def test_error_names_the_package_for_a_format(monkeypatch):
    monkeypatch.setattr("lit_transfusion.data.sources.formats.PICTURE_SUFFIXES", (".png",))
    assert "pip install pillow-heif" in why_not_read("IMG_1.HEIC")
    assert "pip install 'pillow>=11.3'" in why_not_read("a.avif")
    assert why_not_read("a.png") is None and why_not_read("notes.md") is None
    assert all(suffix.startswith(".") for suffix in NOT_READ)


def test_heic_is_read_if_its_package_is_installed(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.new("RGB", (64, 64), "red")).save(tmp_path / "a.HEIC")
    (tmp_path / "a.txt").write_text("a")
    assert isinstance(ImageCaptions(str(tmp_path))[0], Example)


# No caption


def test_files_that_may_contain_captions_are_named(tmp_path):
    for name in ("a", "b"):
        put(tmp_path, f"{name}.png")
        (tmp_path / f"{name}.caption").write_text("a")
        (tmp_path / f"{name}.png.txt").write_text("a")
    (tmp_path / "captions.json").write_text("{}")
    (tmp_path / "labels.csv").write_text("file,text\n")
    message = error_of(str(tmp_path))
    assert "2 without a caption" in message
    assert "looked in metadata.csv, metadata.tsv, metadata.jsonl, metadata.parquet and a .txt beside each" in message
    assert "captions.json, labels.csv" in message and "set metadata to labels.csv" in message
    assert "2 name.caption (first: a.caption)" in message and "2 name.png.txt (first: a.png.txt)" in message


def test_metadata_file_that_names_none_of_them_is_named(tmp_path):
    put(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text("file,text\na.png,\n")
    assert f"looked in {tmp_path / 'metadata.csv'}" in error_of(str(tmp_path))
