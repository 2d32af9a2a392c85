"""ImageCaptions: both forms of captions, the split, and errors in the folder."""

import json
import logging
import pickle
import zlib

import pytest
import torch
from PIL import Image

from lit_transfusion.data.document_set import DocumentSet
from lit_transfusion.data.recipe import Recipe
from lit_transfusion.data.sources.image_captions import ImageCaptions
from lit_transfusion.data.types import Example, Skipped
from lit_transfusion.errors import InputError


def put_picture(folder, name, caption=None, fill=None):
    """Write a picture. Without `colour`, its name determines the colour."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    fill = fill or tuple(zlib.crc32(name.encode()).to_bytes(4)[:3])
    Image.new("RGB", (12, 10), fill).save(file, None if "." in name else "PNG")
    if caption is not None:
        file.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return file


def captions_by_name(source):
    return {entry.name: entry.captions for entry in source._entries}


def error_of(*args, **options):
    """The message of the InputError. It must be one line."""
    with pytest.raises(InputError) as caught:
        ImageCaptions(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Captions in text files


def test_example_is_a_picture_with_its_captions(tmp_path):
    put_picture(tmp_path, "cat.png", "a cat\n\n  a   small cat \n", fill=(255, 0, 0))
    source = ImageCaptions(str(tmp_path), image_size=8)
    assert len(source) == 1
    example = source[0]
    assert isinstance(example, Example)
    assert example.captions == ("a cat", "a small cat")
    assert torch.equal(example.image, torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, 8, 8))
    assert source.captions() == ["a cat", "a small cat"]


def test_folders_in_the_folder_and_suffixes_in_capitals(tmp_path):
    put_picture(tmp_path, "b/c/dog.JPG", "a dog")
    put_picture(tmp_path, "a.PNG").with_suffix(".TXT").write_text("an ant")
    put_picture(tmp_path, "no.1.webp", "one")
    put_picture(tmp_path, ".hidden/x.png", "hidden")
    put_picture(tmp_path, "._a.png", "hidden")
    (tmp_path / "notes.md").write_text("no picture")
    source = ImageCaptions(str(tmp_path))
    assert captions_by_name(source) == {"a.PNG": ("an ant",), "b/c/dog.JPG": ("a dog",), "no.1.webp": ("one",)}


def test_text_file_with_a_byte_order_mark(tmp_path):
    put_picture(tmp_path, "a.png").with_suffix(".txt").write_bytes("\ufeffein Bär\r\n".encode())
    assert ImageCaptions(str(tmp_path)).captions() == ["ein Bär"]


def test_pictures_without_a_caption_are_left_out_with_one_warning(tmp_path, caplog):
    put_picture(tmp_path, "a.png", "a")
    put_picture(tmp_path, "b.png", " \n")
    put_picture(tmp_path, "c.png")
    put_picture(tmp_path, "d.png").with_suffix(".txt").write_bytes(b"caf\xe9")
    with caplog.at_level(logging.WARNING):
        source = ImageCaptions(str(tmp_path))
    assert captions_by_name(source) == {"a.png": ("a",)}
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{tmp_path}: 1 picture used, 3 left out: 2 without a caption (first: b.png), "
        "1 with a caption that is not UTF-8 (first: d.png)"
    )


def test_no_warning_without_faults(tmp_path, caplog):
    put_picture(tmp_path, "a.png", "a")
    ImageCaptions(str(tmp_path))
    assert not caplog.records


def test_broken_picture_is_skipped_on_access(tmp_path):
    file = put_picture(tmp_path, "a.png", "a")
    file.write_bytes(file.read_bytes()[:40])
    skipped = ImageCaptions(str(tmp_path))[0]
    assert skipped.name == str(file) and skipped.reason.startswith("cannot be read: ")


def test_picture_deleted_later(tmp_path):
    file = put_picture(tmp_path, "a.png", "a")
    source = ImageCaptions(str(tmp_path))
    file.unlink()
    assert source[0] == Skipped(str(file), "does not exist")


@pytest.mark.parametrize("unit", ["many words ", "x", "你"])
def test_caption_of_a_hundred_thousand_characters_is_cut_to_its_row(tmp_path, tokenizer, unit):
    put_picture(tmp_path, "a.png", unit * (100_000 // len(unit)))
    documents = DocumentSet(
        ImageCaptions(str(tmp_path), 4), Recipe(caption_dropout=0.0), tokenizer, lambda image: 4, 4, 64, seed=0
    )
    (document,) = documents[0, 0]
    assert len(document.tokens) == 64 and document.cut


# Captions in a metadata file


@pytest.mark.parametrize("file_column", ["file_name", "file", "image", "path", " File_Name "])
@pytest.mark.parametrize("caption_column", ["caption", "text", "Text"])
def test_csv(tmp_path, file_column, caption_column):
    put_picture(tmp_path, "a.png", "not read")
    put_picture(tmp_path, "b/c.jpg")
    rows = f'id,{file_column},{caption_column}\n1,a.png,"red, all over"\n\n2,./b/c.jpg,c\n3,a.png,a\n'
    (tmp_path / "metadata.csv").write_text(rows)
    source = ImageCaptions(str(tmp_path))
    assert captions_by_name(source) == {"a.png": ("red, all over", "a"), "b/c.jpg": ("c",)}
    assert all(isinstance(source[index], Example) for index in range(2))


def test_jsonl(tmp_path):
    rows = [
        {"file_name": "a.png", "text": "a"},
        {"file_name": "b.png", "captions": ["b", "bee", ""]},
        {"file_name": "b.png", "caption": "B"},
    ]
    for row in rows:
        put_picture(tmp_path, row["file_name"])
    (tmp_path / "metadata.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    assert captions_by_name(ImageCaptions(str(tmp_path))) == {"a.png": ("a",), "b.png": ("b", "bee", "B")}


def test_metadata_of_another_name_and_pictures_without_a_suffix(tmp_path):
    pictures = tmp_path / "pictures"
    put_picture(pictures, "0001")
    for file in (pictures / "train.csv", tmp_path / "elsewhere.csv"):
        file.write_text("image,caption\n0001,one\n")
    for metadata in ("train.csv", str(tmp_path / "elsewhere.csv")):
        source = ImageCaptions(str(pictures), metadata=metadata)
        assert captions_by_name(source) == {"0001": ("one",)}
        assert isinstance(source[0], Example)


def test_differences_of_metadata_and_folder_are_counted(tmp_path, caplog):
    for name in ("a.png", "b.png", "c.png"):
        put_picture(tmp_path, name)
    (tmp_path / "metadata.csv").write_text(f"file_name,caption\na.png,a\nb.png,\nz.png,z\n{'y' * 300},y\n")
    assert captions_by_name(ImageCaptions(str(tmp_path))) == {"a.png": ("a",)}
    (record,) = caplog.records
    assert "1 picture used, 4 left out" in record.getMessage()
    assert "2 named in metadata.csv but missing (first: yyy" in record.getMessage()
    assert "2 without a caption (first: b.png)" in record.getMessage()


# Training and validation


def filled(folder, n):
    for i in range(n):
        put_picture(folder, f"{i}.png", f"caption {i}")
    return folder


@pytest.mark.parametrize("seed", [0, 1])
def test_parts_share_nothing_and_make_up_the_whole(tmp_path, seed):
    source = ImageCaptions(str(filled(tmp_path, 200)), val_fraction=0.2, seed=seed)
    train, val = source.split("train"), source.split("val")
    assert 20 <= len(val) <= 60
    assert sorted(train.captions() + val.captions()) == sorted(source.captions())
    assert len(source) == 200
    assert val[0].captions[0] in val.captions()


def test_another_seed_holds_out_other_pictures(tmp_path):
    filled(tmp_path, 50)
    first, second = (
        ImageCaptions(str(tmp_path), val_fraction=0.2, seed=seed).split("val").captions() for seed in (0, 1)
    )
    assert first != second


def test_new_pictures_do_not_move_old_ones(tmp_path):
    before = set(ImageCaptions(str(filled(tmp_path, 100)), val_fraction=0.2).split("val").captions())
    after = set(ImageCaptions(str(filled(tmp_path, 200)), val_fraction=0.2).split("val").captions())
    old = {f"caption {i}" for i in range(100)}
    assert after & old == before
    assert len(after) > len(before)


def test_split_does_not_depend_on_where_the_folder_is(tmp_path):
    parts = [ImageCaptions(str(filled(tmp_path / place, 40)), val_fraction=0.3).split("val") for place in ("x", "y/z")]
    assert parts[0].captions() == parts[1].captions()


@pytest.mark.parametrize(
    ("n", "val_fraction", "num_val"), [(1, 0.5, 0), (2, 0.01, 1), (2, 0.99, 1), (5, 0.001, 1), (5, 0, 0)]
)
def test_neither_part_is_empty_if_possible(tmp_path, n, val_fraction, num_val):
    source = ImageCaptions(str(filled(tmp_path, n)), val_fraction=val_fraction)
    assert len(source.split("val")) == num_val
    assert len(source.split("train")) == n - num_val


def test_source_can_be_pickled(tmp_path):
    source = ImageCaptions(str(filled(tmp_path, 3))).split("train")
    again = pickle.loads(pickle.dumps(source))
    assert again[0].captions == source[0].captions


# Errors


def test_no_path():
    assert "set path to a folder" in error_of()


def test_missing_folder(tmp_path):
    assert error_of(str(tmp_path / "x")).startswith(f"no such folder: {tmp_path / 'x'}; set path")


def test_path_that_is_a_file(tmp_path):
    file = put_picture(tmp_path, "a.png")
    assert error_of(str(file)).startswith(f"not a folder: {file}; set path")


def test_folder_without_pictures(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    assert error_of(str(tmp_path)).startswith(f"no pictures in {tmp_path}")


def test_folder_without_captions(tmp_path):
    put_picture(tmp_path, "a.png")
    message = error_of(str(tmp_path))
    assert message.startswith(f"no picture in {tmp_path} has a caption: 1 without a caption (first: a.png)")
    assert "name.txt beside name.jpg" in message
    assert "metadata.csv or metadata.jsonl" in message


@pytest.mark.parametrize("val_fraction", [-0.1, 1.0])
def test_fraction_out_of_range(tmp_path, val_fraction):
    assert f"val_fraction is {val_fraction}" in error_of(str(tmp_path), val_fraction=val_fraction)


def with_metadata(folder, text, name="metadata.csv"):
    put_picture(folder, "a.png")
    data = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(data)
    return folder / name


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "metadata.csv",
            "name,caption\na.png,a\n",
            ", line 2: no column file_name (or file, image, path); it has name, ",
        ),
        (
            "metadata.csv",
            "file,label\na.png,a\n",
            ", line 2: no column caption (or text, captions); it has file, label",
        ),
        (
            "metadata.csv",
            "file,text\na.png,red, green\n",
            ", line 2: 3 columns but the header has 2 (file, text); put",
        ),
        ("metadata.csv", "file,text\na.png,a\na.png\n", ", line 3: 1 columns but the header has 2"),
        ("metadata.csv", 'file,text\na.png,"open\n', ", line 2: broken csv (unexpected end of data)"),
        ("metadata.csv", "file,text\n,a\n", ", line 2, column file: the name of the picture is ''"),
        ("metadata.csv", b"file,text\na.png,caf\xe9\n", ", line 2 is not UTF-8; save"),
        ("metadata.csv", "file,text\nx.png,a\ny.png,a\n", "none of the 2 files named in "),
        ("metadata.csv", "file,text\n", "has a caption: 1 without a caption (first: a.png)"),
        ("metadata.csv", "", "has a caption: 1 without a caption (first: a.png)"),
        ("metadata.jsonl", '{"file": "a.png", "text": "a"}\n{"file": \n', ", line 2: broken json ("),
        ("metadata.jsonl", '{"file": "a.png"}\n', ", line 1: no column caption (or text, captions); it has file"),
        ("metadata.jsonl", '["a.png", "a"]\n', ", line 1: not a json object"),
        ("metadata.jsonl", '{"file": 3, "text": "a"}\n', ", line 1, column file: the name of the picture is 3"),
        (
            "metadata.jsonl",
            f'{{"file": "{" " * 9999}"}}\n',
            f", line 1, column file: the name of the picture is '{' ' * 99}; ",
        ),
        ("metadata.jsonl", '{"file": "a.png", "text": 3}\n', ", line 1, column text: [3] is not a text"),
    ],
)
def test_broken_metadata(tmp_path, name, text, expected):
    file = with_metadata(tmp_path, text, name)
    message = error_of(str(tmp_path))
    assert expected in message
    assert str(file if "has a caption" not in expected else tmp_path) in message


def test_metadata_in_an_empty_folder(tmp_path):
    (tmp_path / "metadata.csv").write_text("file,text\n")
    assert "none is named in" in error_of(str(tmp_path))


def test_two_metadata_files(tmp_path):
    with_metadata(tmp_path, "file,text\na.png,a\n")
    with_metadata(tmp_path, '{"file": "a.png", "text": "b"}', "metadata.jsonl")
    assert "set metadata to the one to use" in error_of(str(tmp_path))
    assert ImageCaptions(str(tmp_path), metadata="metadata.jsonl").captions() == ["b"]


def test_missing_or_unknown_metadata_file(tmp_path):
    with_metadata(tmp_path, "[]", "all.json")
    assert error_of(str(tmp_path), metadata="x.csv").startswith(f"no such file: {tmp_path / 'x.csv'}; set metadata")
    assert "neither .csv nor .tsv nor .jsonl" in error_of(str(tmp_path), metadata="all.json")
