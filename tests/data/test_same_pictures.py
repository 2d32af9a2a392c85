"""No held-out picture is in the training split, under any name and in any number of copies."""

import io
import json
import logging
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from lit_transfusion.data.sources import EditTriples, ImageCaptions, Mix, Shards
from lit_transfusion.data.types import EditExample, Example, Skipped
from lit_transfusion.errors import InputError
from lit_transfusion.prepare.command import prepare

SMALL = {"image_size": 8, "shard_size": 7, "num_workers": 0}


def picture(number):
    """A picture of noise, different for each seed."""
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (12, 10, 3), dtype=np.uint8))


def png(number, **options):
    buffer = io.BytesIO()
    picture(number).save(buffer, "PNG", **options)
    return buffer.getvalue()


def put(folder, name, data, caption=None):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    if caption is not None:
        file.with_suffix(".txt").write_text(caption)


def seen(source):
    """The pictures of a source, as bytes."""
    found = []
    for example in (source[i] for i in range(len(source))):
        match example:
            case Example():
                found.append(example.image.numpy().tobytes())
            case EditExample():
                found += [example.input_image.numpy().tobytes(), example.output_image.numpy().tobytes()]
    return found


def held_out_and_trained_on(source):
    val, train = seen(source.split("val")), seen(source.split("train"))
    assert val and train
    return len(set(val)), len(set(val) & set(train))


def captions(source):
    return sorted(source[i].captions for i in range(len(source)))


def test_folder_with_copies_under_other_names(tmp_path, caplog):
    """In a bug report, 71 of 75 held-out pictures were trained on."""
    for i in range(100):
        put(tmp_path, f"{i}.png", png(i), f"picture {i}")
        put(tmp_path, f"copies/copy_{i}.png", png(i), f"copy {i}\npicture {i}")
    with caplog.at_level(logging.INFO):
        source = ImageCaptions(str(tmp_path), 8, 0.3)
    assert len(source) == 100
    held_out, leaked = held_out_and_trained_on(source)
    assert held_out > 15 and leaked == 0
    assert captions(source) == sorted((f"picture {i}", f"copy {i}") for i in range(100))
    assert f"{tmp_path}: 100 pictures merged with others of equal content" in caplog.messages


@pytest.fixture
def row_for_each_caption(tmp_path, monkeypatch):
    """Make a data set of 40 pictures with 5 rows each, as is common on the hub, in the given order."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def row_for_each_caption(name, order=range(200)):
        rows = {
            "image": [{"bytes": png(i % 40), "path": None} for i in order],
            "caption": [f"caption {i // 40} of {i % 40}" for i in order],
        }
        features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / name)
        return tmp_path / name

    return row_for_each_caption


def test_data_set_with_a_row_for_each_caption(row_for_each_caption, tmp_path, capsys):
    """In a bug report, 27 of 27 held-out pictures were trained on."""
    prepare([str(row_for_each_caption("rows"))], str(tmp_path / "out"), **SMALL)
    assert "160 pictures merged with others of equal content" in capsys.readouterr().out
    source = Shards(str(tmp_path / "out"), 8, 0.3)
    assert len(source) == 40
    held_out, leaked = held_out_and_trained_on(source)
    assert held_out > 5 and leaked == 0
    assert captions(source) == sorted(tuple(f"caption {j} of {i}" for j in range(5)) for i in range(40))


def test_split_depends_on_neither_order_nor_names_nor_workers_nor_other_pictures(row_for_each_caption, tmp_path):
    orders = {"rows": range(200), "backwards": range(199, -1, -1), "half": [i for i in range(200) if i % 40 < 20]}
    held_out = {}
    for name, order in orders.items():
        options = {**SMALL, "num_workers": 2 if name == "backwards" else 0}
        prepare([str(row_for_each_caption(name, order))], str(tmp_path / f"out of {name}"), **options)
        held_out[name] = set(seen(Shards(str(tmp_path / f"out of {name}"), 8, 0.3).split("val")))
    for i in range(40):
        put(tmp_path / "in", f"{39 - i}.png", png(i), "a")
    held_out["folder"] = set(seen(ImageCaptions(str(tmp_path / "in"), 8, 0.3).split("val")))
    assert held_out["rows"] == held_out["backwards"] == held_out["folder"]
    first = set(seen(ImageCaptions(str(tmp_path / "in"), 8, 0))) & held_out["rows"]
    assert held_out["half"] < first


def test_folder_and_its_shards_hold_out_the_same_though_there_are_copies(tmp_path):
    for i in range(30):
        put(tmp_path / "in", f"{i}.png", png(i), f"a {i}")
        put(tmp_path / "in", f"z{i % 7}/{i}.png", png(i), f"b {i}")
    prepare([str(tmp_path / "in")], str(tmp_path / "out"), **SMALL)
    folder, shards = ImageCaptions(str(tmp_path / "in"), 8, 0.3), Shards(str(tmp_path / "out"), 8, 0.3)
    for part in ("train", "val"):
        assert captions(folder.split(part)) == captions(shards.split(part))
        assert set(seen(folder.split(part))) == set(seen(shards.split(part)))


def test_pictures_saved_again_or_mirrored_stay_in_one_part(tmp_path, capsys):
    """Their bytes differ, so they are not merged: a caption may mention left and right."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "an editor")
    for i in range(30):
        put(tmp_path / "in", f"{i}.png", png(i), f"a {i}")
        put(tmp_path / "in", f"{i}_saved.png", png(i, pnginfo=info), f"b {i}")
        picture(i).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "in" / f"{i}_mirrored.bmp")
        (tmp_path / "in" / f"{i}_mirrored.txt").write_text(f"c {i}")
    prepare([str(tmp_path / "in")], str(tmp_path / "out"), **SMALL)
    assert "60 pictures in the same split as others that look the same" in capsys.readouterr().out
    source = Shards(str(tmp_path / "out"), 8, 0.3)
    assert len(source) == 90
    sides = {part: {text.split()[1] for text in source.split(part).captions()} for part in ("train", "val")}
    assert len(sides["val"]) > 3 and not sides["val"] & sides["train"]


@pytest.mark.parametrize("val_fraction", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize(("different", "held_out"), [(1, 0), (2, 1)])
def test_groups_of_equal_pictures_are_not_divided_to_fill_a_part(tmp_path, val_fraction, different, held_out):
    for i in range(6):
        info = PngImagePlugin.PngInfo()
        info.add_text("number", str(i))
        put(tmp_path / "in", f"{i}.png", png(i % different, pnginfo=info), f"{i}")
    prepare([str(tmp_path / "in")], str(tmp_path / "out"), **SMALL)
    source = Shards(str(tmp_path / "out"), 8, val_fraction)
    val, train = set(seen(source.split("val"))), set(seen(source.split("train")))
    assert not val & train and len(val | train) == different
    assert len(val) == (held_out if val_fraction else 0)


def test_broken_files_that_are_equal_are_counted_one_by_one(tmp_path):
    """After a failed download, hundreds of files contain the same error page."""
    for i in range(8):
        put(tmp_path / "in", f"{i}.png", png(i), "a")
    for i in range(3):
        put(tmp_path / "in", f"page{i}.jpg", b"<html>404 Not Found</html>", "b")
        put(tmp_path / "in", f"empty{i}.jpg", b"", "c")
    source = ImageCaptions(str(tmp_path / "in"), 8)
    assert sum(isinstance(source[i], Skipped) for i in range(len(source))) == 6
    with pytest.raises(InputError, match="6 of 14 pictures cannot be used"):
        prepare([str(tmp_path / "in")], str(tmp_path / "out"), max_skipped=0.4, **SMALL)


def test_two_tars_and_two_names_in_coco(tmp_path):
    for tar in ("a", "b"):
        with tarfile.open(tmp_path / f"{tar}.tar", "w") as opened:
            for i in range(20):
                for suffix, data in (("png", png(i)), ("txt", f"{tar} {i}".encode())):
                    info = tarfile.TarInfo(f"{i if tar == 'a' else 19 - i:03d}.{suffix}")
                    info.size = len(data)
                    opened.addfile(info, io.BytesIO(data))
    names = [(i, f"{place}/{i}.png") for place in ("x", "y") for i in range(20)]
    for i, name in names:
        put(tmp_path / "coco", name, png(i))
    images = [{"id": number, "file_name": name} for number, (_, name) in enumerate(names)]
    texts = [{"image_id": number, "caption": f"{'ab'[number // 20]} {i}"} for number, (i, _) in enumerate(names)]
    (tmp_path / "coco" / "captions.json").write_text(json.dumps({"images": images, "annotations": texts}))

    for number, paths in enumerate([[tmp_path / "a.tar", tmp_path / "b.tar"], [tmp_path / "coco" / "captions.json"]]):
        prepare(list(map(str, paths)), str(tmp_path / f"out{number}"), **SMALL)
        source = Shards(str(tmp_path / f"out{number}"), 8, 0.3)
        assert captions(source) == sorted((f"a {i}", f"b {i}") for i in range(20))
        assert held_out_and_trained_on(source)[1] == 0


def test_edits_that_share_a_picture_under_two_names(tmp_path, caplog):
    """Equal files connect edits, and equal edits are one edit with all instructions."""
    rows = ["input,instruction,output"]
    for i in range(30):
        for name, number in (("before", i), ("after", 100 + i), ("copy_of_after", 100 + i), ("last", 200 + i)):
            put(tmp_path, f"{name}{i}.png", png(number))
        put(tmp_path, f"twin{i}.png", png(i))
        rows += [f"before{i}.png,darker,after{i}.png", f"copy_of_after{i}.png,lighter,last{i}.png"]
        rows += [f"twin{i}.png,make it darker,copy_of_after{i}.png", f"before{i}.png,darker,after{i}.png"]
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    with caplog.at_level(logging.INFO):
        source = EditTriples(str(tmp_path), 8, 0.3)
    assert f"{tmp_path}: 60 rows merged with others of equal input and output" in caplog.messages
    assert len(source) == 60
    assert {source[i].instructions for i in range(60)} == {("darker", "make it darker"), ("lighter",)}
    held_out, leaked = held_out_and_trained_on(source)
    assert held_out % 3 == 0 and held_out > 10 and leaked == 0


def test_sources_of_a_mix_hold_out_their_common_pictures(tmp_path):
    for i in range(60):
        put(tmp_path / "in", f"{i}.png", png(i), "a")
        if i % 2:
            put(tmp_path / "others", f"other {i}.png", png(i), "b")
    prepare([str(tmp_path / "others")], str(tmp_path / "out"), **SMALL)
    mix = Mix(
        {"all": ImageCaptions(str(tmp_path / "in"), 8, 0.3), "some": Shards(str(tmp_path / "out"), 8, 0.3)}, None, 8
    )
    assert held_out_and_trained_on(mix)[1] == 0


def test_shards_of_version_1_are_an_error(tmp_path):
    put(tmp_path / "in", "a.png", png(0), "a")
    prepare([str(tmp_path / "in")], str(tmp_path / "out"), **SMALL)
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    (tmp_path / "out" / "index.json").write_text(json.dumps({**index, "version": 1}))
    with pytest.raises(InputError, match=r"version 1.*never both held out and trained on.*prepare it again"):
        Shards(str(tmp_path / "out"), 8)


def test_unfinished_shards_of_version_1_are_an_error(tmp_path, monkeypatch):
    put(tmp_path / "in", "a.png", png(0), "a")
    monkeypatch.setattr("lit_transfusion.prepare.making.finish", lambda *_: None)
    prepare([str(tmp_path / "in")], str(tmp_path / "out"), **SMALL)
    monkeypatch.undo()
    settings = tmp_path / "out" / ".preparing" / "settings.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "version": 1}))
    with pytest.raises(InputError, match=r"made by another version of prepare .*; give a new folder"):
        prepare([str(tmp_path / "in")], str(tmp_path / "out"), **SMALL)


def test_split_does_not_depend_on_names(tmp_path):
    for i in range(40):
        put(tmp_path / "in", f"{i}.png", png(i), f"{i}")
    shutil.copytree(tmp_path / "in", tmp_path / "renamed")
    for file in list((tmp_path / "renamed").iterdir()):
        if file.is_file():
            file.rename(file.with_name(f"x{file.name}"))
    parts = [ImageCaptions(str(tmp_path / name), 8, 0.3).split("val") for name in ("in", "renamed")]
    assert captions(parts[0]) == captions(parts[1])
