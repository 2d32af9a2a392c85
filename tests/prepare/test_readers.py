"""Readers: all kinds of input give the same items, and their errors."""

import contextlib
import csv
import gzip
import io
import json
import sys
import tarfile

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from lit_transfusion.data.images import read_pixels
from lit_transfusion.data.sources import ImageCaptions
from lit_transfusion.data.types import Skipped
from lit_transfusion.errors import InputError
from lit_transfusion.prepare.readers import open_reader
from lit_transfusion.prepare.readers.tars import members

COLOURS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255)}


def picture(colour, format="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), colour).save(buffer, format)
    return buffer.getvalue()


def put_tar(path, named):
    """Write a tar of named members in the given order. Names may repeat."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in named:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def opened(*paths, kind=None, **options):
    return open_reader([str(path) for path in paths], kind, options)


def colours_and_captions(reader):
    """{captions: colour of the picture}, which must be plain, and the skipped names by reason."""
    found, skipped = {}, {}
    for item in [*reader.left_out, *(reader[i] for i in range(len(reader)))]:
        if isinstance(item, Skipped):
            skipped.setdefault(item.reason, []).append(item.name)
        else:
            pixels = read_pixels(item.file, 4)
            assert (pixels == pixels[:, :1, :1]).all()
            found[item.captions] = tuple(pixels[:, 0, 0].tolist())
    return found, skipped


EXPECTED = {(f"a {name} square", f"all {name}"): colour for name, colour in COLOURS.items()}


@pytest.fixture(autouse=True)
def cache_of_datasets(tmp_path_factory, monkeypatch):
    with contextlib.suppress(ImportError):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def in_folder(folder):
    for name, colour in COLOURS.items():
        (folder / f"{name}.png").write_bytes(picture(colour))


def folder_with_text(folder):
    in_folder(folder)
    for name in COLOURS:
        (folder / f"{name}.txt").write_text(f"a {name} square\nall {name}")
    return [folder]


def folder_with_csv(folder):
    in_folder(folder)
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [["file_name", "caption"], *([f"{n}.png", c] for n in COLOURS for c in (f"a {n} square", f"all {n}"))]
        )
    return [folder]


def folder_with_jsonl(folder):
    in_folder(folder)
    rows = ({"file_name": f"{name}.png", "captions": [f"a {name} square", f"all {name}"]} for name in COLOURS)
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [folder]


def folder_with_parquet(folder):
    in_folder(folder)
    table = {
        "file_name": [f"{name}.png" for name in COLOURS],
        "caption": [[f"a {name} square", f"all {name}", None] for name in COLOURS],
    }
    parquet.write_table(pyarrow.table(table), folder / "metadata.parquet")
    return [folder]


def metadata_file(folder):
    folder_with_jsonl(folder)
    (folder / "metadata.jsonl").rename(folder / "mine.jsonl")
    return [folder / "mine.jsonl"]


def tars_with_text(folder):
    """Write one tar for each picture. Keys count from zero in each tar."""
    for i, (name, colour) in enumerate(COLOURS.items()):
        text = f"a {name} square\nall {name}\n".encode()
        put_tar(folder / f"{i}.tar", [("x/0.png", picture(colour)), ("x/0.txt", text), ("x/0.json", b"{}")])
    return sorted(folder.glob("*.tar"))


def folder_of_tars(folder):
    tars_with_text(folder)
    return [folder]


def pattern_of_tars(folder):
    tars_with_text(folder)
    return [folder / "?.tar"]


def tar_with_json(folder):
    named = []
    for name, colour in COLOURS.items():
        text = json.dumps({"captions": [f"a {name} square", f"all {name}"]}).encode()
        named += [(f"{name}.JSON", text), (f"{name}.jpg", picture(colour)), (f"{name}.cls", b"3")]
    return [put_tar(folder / "all.tar", named)]


def coco(folder):
    in_folder(folder)
    annotations = [
        {"image_id": i, "id": 7 * i, "caption": f"{text} {name} {end}\n"}
        for text, end in (("a", "square"), ("all", ""))
        for i, name in enumerate(COLOURS)
    ]
    images = [{"id": i, "file_name": f"{name}.png", "height": 4} for i, name in enumerate(COLOURS)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return [folder / "captions.json"]


def dataset():
    datasets = pytest.importorskip("datasets")
    rows = {
        "image": [{"bytes": picture(colour), "path": None} for colour in COLOURS.values()],
        "text": [[f"a {name} square", f"all {name}"] for name in COLOURS],
        "url": ["https://"] * 3,
    }
    features = {"image": datasets.Image(), "text": datasets.List(datasets.Value("string"))}
    return datasets.Dataset.from_dict(rows, features=datasets.Features({**features, "url": datasets.Value("string")}))


def hugging_face(folder):
    dataset().save_to_disk(folder / "saved")
    return [folder / "saved"]


def hugging_face_splits(folder):
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict({"train": dataset(), "test": dataset().select([0])}).save_to_disk(folder / "saved")
    return [folder / "saved"]


def repository(folder):
    """The layout of `push_to_hub`, whose .parquet files mark a column as pictures."""
    (folder / "repository" / "data").mkdir(parents=True)
    dataset().to_parquet(folder / "repository" / "data" / "train-00000-of-00001.parquet")
    (folder / "repository" / "README.md").write_text("---\nlicense: mit\n---\n")
    return [folder / "repository"]


def parquet_of_structs(folder):
    """A .parquet of structs without a mark that they are pictures."""
    pytest.importorskip("datasets")
    table = {
        "picture": [{"bytes": picture(colour), "path": None} for colour in COLOURS.values()],
        "captions": [[f"a {name} square", f"all {name}"] for name in COLOURS],
    }
    parquet.write_table(pyarrow.table(table), folder / "all.parquet")
    return [folder / "all.parquet"]


def folder_of_parquet(folder):
    parquet_of_structs(folder)
    return [folder]


def parquet_of_bytes(folder):
    pytest.importorskip("datasets")
    table = {
        "jpg": list(map(picture, COLOURS.values())),
        "caption": [[f"a {name} square", f"all {name}"] for name in COLOURS],
    }
    parquet.write_table(pyarrow.table(table), folder / "all.parquet")
    return [folder]


PARQUETS = [parquet_of_structs, folder_of_parquet, parquet_of_bytes]
INPUTS = {
    "folder": [folder_with_text, folder_with_csv, folder_with_jsonl, folder_with_parquet, metadata_file],
    "webdataset": [tars_with_text, folder_of_tars, pattern_of_tars, tar_with_json],
    "coco": [coco],
    "hugging_face": [hugging_face, hugging_face_splits, repository, *PARQUETS],
}


@pytest.mark.parametrize(("kind", "make"), [(kind, make) for kind, makes in INPUTS.items() for make in makes])
def test_each_kind_is_recognised_and_gives_the_same_pictures(tmp_path, kind, make):
    paths = make(tmp_path)
    recognised, reader = opened(*paths)
    assert recognised == kind
    assert colours_and_captions(reader) == (EXPECTED, {})
    keys = [reader[i].key for i in range(len(reader))]
    assert len(set(keys)) == len(COLOURS) == len(reader)
    _, again = opened(*paths, kind=kind)
    assert again.fingerprint() == reader.fingerprint()
    assert [again[i].key for i in range(len(again))] == keys


def change_text(folder):
    (folder / "red.txt").write_text("a rose")


def change_tar(folder):
    put_tar(folder / "0.tar", [("x/0.png", picture("red")), ("x/0.txt", b"a rose, of another length")])


def change_coco(folder):
    (folder / "captions.json").write_text((folder / "captions.json").read_text().replace("a red square", "a rose"))


def change_dataset(folder):
    dataset().select([0, 2, 1]).save_to_disk(folder / "saved")


def change_repository(folder):
    """The cache of `datasets` must not give out what was there before."""
    dataset().select([0, 2, 1]).to_parquet(folder / "repository" / "data" / "train-00000-of-00001.parquet")


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (folder_with_text, change_text),
        (tars_with_text, change_tar),
        (coco, change_coco),
        (hugging_face, change_dataset),
        (repository, change_repository),
    ],
)
def test_fingerprint_changes_with_the_input(tmp_path, make, change):
    paths = make(tmp_path)
    before = opened(*paths)[1].fingerprint()
    change(tmp_path)
    assert opened(*paths)[1].fingerprint() != before


def test_keys_of_a_folder_are_names_of_its_source(tmp_path):
    (folder,) = folder_with_text(tmp_path)
    _, reader = opened(folder)
    assert [reader[i].key for i in range(3)] == [entry.name for entry in ImageCaptions(str(folder))._entries]


# Unusable parts of an input


def test_folder_counts_what_it_leaves_out(tmp_path):
    folder_with_text(tmp_path)
    for name, text in (("empty", b" \n"), ("latin", b"caf\xe9"), ("none", None)):
        (tmp_path / f"{name}.png").write_bytes(picture("white"))
        if text is not None:
            (tmp_path / f"{name}.txt").write_bytes(text)
    found, skipped = colours_and_captions(opened(tmp_path)[1])
    assert found == EXPECTED
    assert skipped == {
        "with a caption that is not UTF-8": [str(tmp_path / "latin.png")],
        "without a caption": [str(tmp_path / "empty.png"), str(tmp_path / "none.png")],
    }


def test_half_of_a_surrogate_pair_is_not_text(tmp_path):
    in_folder(tmp_path)
    (tmp_path / "metadata.jsonl").write_text(
        '{"file": "red.png", "text": "r\\ud83d"}\n{"file": "blue.png", "text": "b"}'
    )
    (tmp_path / "green.png").unlink()
    found, skipped = colours_and_captions(opened(tmp_path)[1])
    assert list(found) == [("b",)]
    assert skipped == {"with a caption that is not UTF-8": [str(tmp_path / "red.png")]}


def test_unusable_samples_of_tars_are_counted(tmp_path):
    good = picture("red")
    tar = put_tar(
        tmp_path / "all.tar",
        [
            *[("good.png", good), ("good.txt", b"red")],
            *[("dir/a.b.png", good), ("dir/a.txt", b"its picture has another suffix")],
            ("alone.png", good),
            *[("empty.png", good), ("empty.txt", b" \n ")],
            *[("latin.png", good), ("latin.txt", b"caf\xe9")],
            *[("broken.png", good), ("broken.json", b'{"caption": ')],
            *[("number.png", good), ("number.json", b'{"caption": 3}')],
            *[("other.png", good), ("other.json", b'{"label": "red"}')],
            *[("list.png", good), ("list.json", b'["red"]')],
            *[("twice.png", good), ("twice.txt", b"first"), ("twice.png", b""), ("twice.txt", b"second")],
            *[("._good.png", good), ("README", b"of no sample")],
        ],
    )
    found, skipped = colours_and_captions(opened(tar)[1])
    assert found == {("red",): (255, 0, 0), ("first",): (255, 0, 0)}
    assert {reason: [name.removeprefix(f"{tar}: ") for name in names] for reason, names in skipped.items()} == {
        "without a picture": ["dir/a"],
        "without a caption": ["alone", "empty.png", "other.png", "list.png"],
        "with a caption that is not UTF-8": ["latin.png"],
        "with broken json": ["broken.png"],
        "with a caption that is not text": ["number.png"],
        "with a key that its tar repeats; the first is used": ["twice"],
    }


def test_tar_that_changes_after_listing(tmp_path):
    tars = tars_with_text(tmp_path)
    _, reader = opened(*tars)
    tars[0].write_bytes(tars[0].read_bytes()[:600])
    tars[1].unlink()
    found, skipped = colours_and_captions(reader)
    assert len(found) == 1
    assert [len(names) for reason, names in skipped.items() if reason == "cannot be read from its tar"] == [2]


def test_coco_counts_pictures_without_caption_and_reads_the_others(tmp_path):
    (file,) = coco(tmp_path)
    whole = json.loads(file.read_text())
    whole["images"] += [{"id": 8, "file_name": "none.png"}, {"id": 9, "file_name": "red.png"}]
    whole["annotations"] += [{"image_id": 9, "caption": "red again"}]
    file.write_text(json.dumps(whole))
    (tmp_path / "blue.png").unlink()
    _, reader = opened(file)
    assert [skipped.reason for skipped in reader.left_out] == ["without a caption"]
    assert [reader[i].captions[-1] for i in range(3)] == ["all blue", "all green", "red again"]
    with pytest.raises(ValueError, match="does not exist"):
        read_pixels(reader[0].file, 4)


def test_coco_with_its_pictures_elsewhere(tmp_path):
    (file,) = coco(tmp_path)
    (tmp_path / "annotations").mkdir()
    moved = file.rename(tmp_path / "annotations" / file.name)
    assert colours_and_captions(opened(moved, pictures=str(tmp_path))[1]) == (EXPECTED, {})


def test_unusable_hugging_face_rows(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {
        "picture": [{"bytes": picture("red"), "path": None}, None, {"bytes": picture("blue"), "path": None}],
        "says": ["red", "nothing", ""],
    }
    features = datasets.Features({"picture": datasets.Image(), "says": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    found, skipped = colours_and_captions(opened(tmp_path / "saved", caption_column="says")[1])
    assert found == {("red",): (255, 0, 0)}
    assert {reason: len(names) for reason, names in skipped.items()} == {"without a picture": 1, "without a caption": 1}


def test_hugging_face_pictures_as_bytes_and_as_paths(tmp_path):
    datasets = pytest.importorskip("datasets")
    in_folder(tmp_path)
    rows = {"file": [str(tmp_path / "red.png")], "raw": [picture("green")], "caption": ["c"]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    for column, colour in (("file", COLOURS["red"]), ("raw", COLOURS["green"])):
        assert colours_and_captions(opened(tmp_path / "saved", image_column=column)[1]) == ({("c",): colour}, {})


# Tars that are broken


def test_members_are_those_of_the_standard_library(tmp_path):
    tar = put_tar(tmp_path / "a.tar", [("a.png", b"12345"), ("b.txt", b"6" * 600)])
    content = tar.read_bytes()
    assert [content[place.offset :][: place.size] for _, place in members(str(tar))] == [b"12345", b"6" * 600]
    tar.write_bytes(content[: 512 * 5])  # some programs write no end of the tar
    assert len(members(str(tar))) == 2


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda content: b"", "empty"),
        (lambda content: content[:300], ""),
        (lambda content: content[: 512 * 3 + 100], "unexpected end of data"),
        (lambda content: content[: 512 * 2 + 100], "damaged at byte 1024"),
        (lambda content: content[:1024] + b"x" * 512 + content[1536:], "damaged at byte 1024"),
        (lambda content: b"<html>404 Not Found</html>", ""),
        (gzip.compress, "compressed, which prevents random access; gunzip it"),
    ],
    ids=["empty", "in the first header", "in a file", "in a header", "header of something else", "no tar", "gzip"],
)
def test_broken_tars_are_all_named_before_reading(tmp_path, damage, expected):
    tars = tars_with_text(tmp_path)
    for tar in tars[:2]:
        tar.write_bytes(damage(tar.read_bytes()))
    with pytest.raises(InputError) as caught:
        opened(*tars)
    assert str(caught.value).startswith("2 of 3 tars cannot be read to their end")
    assert all(f"{tar} ({expected}" in str(caught.value) for tar in tars[:2])
    assert "\n" not in str(caught.value)


# Errors


def error_of(*paths, **options):
    with pytest.raises(InputError) as caught:
        opened(*paths, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_inputs(tmp_path):
    assert "no input" in error_of()
    assert error_of(tmp_path / "none").startswith(f"{tmp_path / 'none'} does not exist")
    assert "no tar matches" in error_of(tmp_path / "*.tar")
    assert "no tar matches" in error_of(tmp_path, kind="webdataset")
    (tmp_path / "a.zip").write_bytes(b"")
    assert "neither a tar nor .json" in error_of(tmp_path / "a.zip")


@pytest.mark.parametrize("names", [["in/*.png"], ["in/*"], ["i?"], ["in/red.png", "in/blue.png"]])
def test_pattern_of_pictures_is_an_error(tmp_path, names):
    """Also if a shell has expanded it to several paths."""
    (tmp_path / "in").mkdir()
    folder_with_text(tmp_path / "in")
    message = error_of(*(tmp_path / name for name in names))
    assert "only tars can be several paths or a pattern" in message
    assert message.endswith(f"give their folder {tmp_path / 'in'}")


def test_two_folders_and_two_tars_of_one_name(tmp_path):
    assert "one path, but there are 2" in error_of(tmp_path, tmp_path, kind="folder")
    for place in ("a", "b"):
        put_tar(tmp_path / place / "0.tar", [("0.png", picture("red"))])
    assert "two tars are named 0.tar" in error_of(tmp_path / "a", tmp_path / "b")


def test_options_of_another_kind(tmp_path):
    folder_with_text(tmp_path)
    message = error_of(tmp_path, split="test")
    assert "--split is not an option for an input of kind folder (its options: metadata)" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "line 1: broken json"),
        (b"[]", "is not a captions file of COCO"),
        (b"\xe9", "is not UTF-8; save"),
        (b'{"images": [{"id": 1}], "annotations": []}', "image 0 is invalid"),
        (b'{"images": [], "annotations": [{"image_id": 1, "caption": "a"}]}', "annotation 0 is invalid"),
        (
            b'{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "caption": "a"}]}',
            "none of the 1 captioned pictures",
        ),
    ],
)
def test_files_that_are_not_coco_captions(tmp_path, content, expected):
    (tmp_path / "captions.json").write_bytes(content)
    message = error_of(tmp_path / "captions.json")
    assert str(tmp_path / "captions.json") in message and expected in message


def test_metadata_that_is_not_parquet(tmp_path):
    in_folder(tmp_path)
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    assert f"{tmp_path / 'metadata.parquet'} cannot be read as parquet" in error_of(tmp_path)


def test_parquet_of_texts_needs_a_column_of_pictures(tmp_path):
    pytest.importorskip("datasets")
    parquet.write_table(pyarrow.table({"text": ["a"], "url": ["b"]}), tmp_path / "0.parquet")
    assert f"{tmp_path} is unclear; set image_column to one of text, url" in error_of(tmp_path)


def test_missing_columns_and_splits_of_a_dataset(tmp_path):
    (saved,) = hugging_face_splits(tmp_path)
    assert "has no split val; set split to one of train, test" in error_of(saved, split="val")
    assert "has no column says; set caption_column to one of image, text, url" in error_of(saved, caption_column="says")
    dataset().save_to_disk(tmp_path / "alone")
    assert "has no splits, but split is test; remove it" in error_of(tmp_path / "alone", split="test")
    dataset().remove_columns("image").save_to_disk(tmp_path / "texts")
    assert "set image_column to one of text, url" in error_of(tmp_path / "texts")
    for file in saved.rglob("*.arrow"):
        file.write_bytes(b"")
    assert f"data set {saved} could not be loaded" in error_of(saved)


def test_mistyped_path_sends_no_request_to_the_hub(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "data/pics does not exist, but the folder data does" in error_of("data/pics")
    assert "pics does not exist" in error_of("./pics")


def test_missing_package_datasets(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert 'pip install -e ".[data]"' in error_of(tmp_path, kind="hugging_face")
