"""Shards: the same examples as from the original folder, and errors."""

import json
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_transfusion.data.datamodule import TransfusionData
from lit_transfusion.data.shards import layout, open_files
from lit_transfusion.data.sources import ImageCaptions, Mix, Shards
from lit_transfusion.data.types import Example, Skipped
from lit_transfusion.errors import InputError
from lit_transfusion.latents import Pixels
from lit_transfusion.prepare.command import prepare

COUNT = 40


@pytest.fixture(scope="module")
def pictures(make_pictures, tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("pictures") / "in", COUNT)


@pytest.fixture(scope="module")
def prepared(pictures, tmp_path_factory):
    output = tmp_path_factory.mktemp("prepared") / "out"
    prepare([str(pictures)], str(output), image_size=16, shard_size=15, num_workers=0)
    return output


@pytest.fixture
def mine(prepared, tmp_path):
    """A copy of the shards that a test may damage."""
    return shutil.copytree(prepared, tmp_path / "mine")


def by_caption(source):
    return {example.captions[0]: example for example in (source[i] for i in range(len(source)))}


def error_of(path, **options):
    """The message of the InputError. It must be one line."""
    with pytest.raises(InputError) as caught:
        Shards(str(path), **{"image_size": 16, **options})
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The same examples


@pytest.mark.parametrize("format", ["webp", "png"])
@pytest.mark.parametrize("val_fraction", [0.0, 0.2])
def test_examples_equal_those_of_the_folder_in_both_parts(pictures, tmp_path, format, val_fraction):
    prepare([str(pictures)], str(tmp_path / "out"), image_size=16, shard_size=15, format=format, num_workers=0)
    folder = ImageCaptions(str(pictures), 16, val_fraction)
    shards = Shards(str(tmp_path / "out"), 16, val_fraction)
    for name in ("train", "val"):
        expected, found = by_caption(folder.split(name)), by_caption(shards.split(name))
        assert len(found) == len(shards.split(name))
        assert found.keys() == expected.keys()
        for caption, example in expected.items():
            assert torch.equal(found[caption].image, example.image)
            assert found[caption].captions == example.captions
    assert len(shards) == COUNT and len(shards.split("val")) == len(folder.split("val"))


def test_jpg_is_nearly_the_same(pictures, tmp_path):
    prepare([str(pictures)], str(tmp_path / "out"), image_size=16, format="jpg", num_workers=0)
    expected, found = by_caption(ImageCaptions(str(pictures), 16)), by_caption(Shards(str(tmp_path / "out"), 16))
    error = torch.stack([found[caption].image - example.image for caption, example in expected.items()])
    assert 0 < error.abs().mean() < 0.03


@pytest.mark.parametrize(
    ("count", "val_fraction", "num_val"), [(1, 0.5, 0), (2, 0.01, 1), (2, 0.99, 1), (5, 0.001, 1), (5, 0, 0)]
)
def test_neither_part_is_empty_if_possible(make_pictures, tmp_path, count, val_fraction, num_val):
    prepare([str(make_pictures(tmp_path / "in", count))], str(tmp_path / "out"), image_size=4, num_workers=0)
    shards = Shards(str(tmp_path / "out"), 4, val_fraction)
    assert (len(shards.split("val")), len(shards.split("train"))) == (num_val, count - num_val)


def test_batches_of_a_run_hold_the_pictures_of_the_folder(pictures, prepared):
    """Read through the data module: the order differs, but the documents are the same."""
    batches = {}
    for source in (ImageCaptions(str(pictures), 16, 0.5), Shards(str(prepared), 16, 0.5)):
        data = TransfusionData(source, Pixels(), image_size=16, sequence_length=160, batch_size=2, vocab_size=300)
        images = torch.cat([batch.image_groups[0].images.tensor for batch in data.val_dataloader()])
        batches[type(source).__name__] = sorted(images.flatten(1).tolist())
        assert next(iter(data.train_dataloader())).tokens.shape == (2, 160)
    assert len(batches["Shards"]) > 10
    assert batches["Shards"] == batches["ImageCaptions"]


def test_captions_for_a_tokenizer_are_all_or_spread_evenly(pictures, prepared, monkeypatch):
    shards = Shards(str(prepared), 16)
    assert sorted(shards.captions()) == sorted(ImageCaptions(str(pictures), 16).captions())
    monkeypatch.setattr("lit_transfusion.data.sources.shards.MOST_READ", 10)
    assert shards.captions() == [caption for i in range(0, COUNT, 4) for caption in shards[i].captions]


def test_index_is_memory_mapped_and_not_sent_to_workers(prepared):
    shards = Shards(str(prepared), 16)
    assert isinstance(shards._shards.rows, np.memmap)
    again = pickle.loads(pickle.dumps(shards.split("train")))
    assert again[3].captions == shards.split("train")[3].captions
    assert len(pickle.dumps(shards)) < 3000  # the index of 40 pictures would add 1,280


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_number_of_pictures(mine):
    """This is the memory of the process itself; mapped pages belong to the cache of the system."""
    rows = np.repeat(np.load(mine / "index.npy"), 500_000 // COUNT)
    np.save(mine / "index.npy", rows)
    index = json.loads((mine / "index.json").read_text())
    (mine / "index.json").write_text(json.dumps({**index, "num_examples": len(rows)}))
    size, rows = rows.nbytes, None

    def own_memory():
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
        return 1024 * int(line.split()[1])

    before = own_memory()
    train = Shards(str(mine), 16).split("train")
    assert all(isinstance(train[i], Example) for i in range(0, len(train), 10_000))
    assert own_memory() - before < size / 4


def test_forked_processes_do_not_disturb_each_other(prepared):
    shards = Shards(str(prepared), 16)
    shards[0]  # opens a file before the fork
    loader = torch.utils.data.DataLoader(shards, batch_size=None, num_workers=2, collate_fn=lambda example: example)
    for here, there in zip((shards[i] for i in range(COUNT)), loader, strict=True):
        assert here.captions == there.captions and torch.equal(here.image, there.image)


def test_few_files_are_open_at_the_same_time(make_pictures, tmp_path, monkeypatch):
    prepare([str(make_pictures(tmp_path / "in", 8))], str(tmp_path / "out"), image_size=4, shard_size=1, num_workers=0)
    monkeypatch.setattr(open_files, "MOST_OPEN", 3)
    shards = Shards(str(tmp_path / "out"), 4)
    for i in (*range(8), *range(8)):
        assert isinstance(shards[i], Example)
        assert len(shards._shards._files._handles) <= 3


def test_index_out_of_range(prepared):
    part = Shards(str(prepared), 16, 0.5).split("val")
    for index in (-1, len(part)):
        with pytest.raises(IndexError):
            part[index]


# The format


def test_any_program_can_read_the_tars(pictures, prepared):
    """The standard library finds members in pairs, at the positions of the index."""
    rows = np.load(prepared / "index.npy")
    assert (np.diff(rows["fraction"]) >= 0).all()
    keys = set()
    for shard in range(3):
        with tarfile.open(prepared / f"{shard:05d}.tar", "r:") as tar:
            members = tar.getmembers()
            assert len(members) == 2 * (rows["shard"] == shard).sum()
            for picture, text in zip(members[::2], members[1::2], strict=True):
                assert picture.name.removesuffix(".webp") == text.name.removesuffix(".json")
                metadata = json.load(tar.extractfile(text))
                (row,) = rows[(rows["shard"] == shard) & (rows["offset"] == picture.offset_data)]
                assert (row["picture_bytes"], row["json_bytes"]) == (picture.size, text.size)
                assert metadata["captions"] == (pictures / metadata["key"]).with_suffix(".txt").read_text().splitlines()
                keys.add(metadata["key"])
    assert keys == {path.name for path in pictures.iterdir() if path.suffix not in (".txt", "")}


def test_pictures_are_shuffled_over_all_shards(prepared):
    order = []
    for shard in range(3):
        with tarfile.open(prepared / f"{shard:05d}.tar") as tar:
            order += [json.load(tar.extractfile(name))["key"] for name in tar.getnames() if name.endswith(".json")]
    places = [sorted(order).index(key) for key in order]
    assert abs(np.corrcoef(places, range(COUNT))[0, 1]) < 0.4
    assert max(places[:15]) > 25 and min(places[-10:]) < 15


# Errors


def test_missing_path_missing_folder_and_other_folders(pictures, tmp_path):
    assert "set path to a folder" in error_of("")
    assert error_of(tmp_path / "none").startswith(f"no such folder: {tmp_path / 'none'}")
    assert error_of(pictures).startswith(f"no index.json in {pictures}")
    for content, expected in (
        ("{", "cannot be read"),
        ("[]", "not written by `prepare`"),
        ('{"kind": 3}', "not written by `prepare`"),
    ):
        (tmp_path / "index.json").write_text(content)
        assert expected in error_of(tmp_path)


@pytest.mark.parametrize("val_fraction", [-0.1, 1.0])
def test_fraction_out_of_range(prepared, val_fraction):
    assert f"val_fraction is {val_fraction}" in error_of(prepared, val_fraction=val_fraction)


def test_another_image_size_is_an_error_that_names_both(prepared):
    message = error_of(prepared, image_size=32)
    assert "16 x 16" in message and "data.image_size is 32;" in message and "--image_size 32" in message


def test_size_of_a_mix_is_used(prepared):
    assert Mix({"pictures": Shards(str(prepared))}, image_size=16)[0].image.shape == (3, 16, 16)
    with pytest.raises(InputError, match=r"16 x 16, but data\.image_size is 32"):
        Mix({"pictures": Shards(str(prepared))}, image_size=32)


def test_another_version(mine):
    index = json.loads((mine / "index.json").read_text())
    (mine / "index.json").write_text(json.dumps({**index, "version": layout.VERSION + 1}))
    assert f"has version {layout.VERSION + 1}" in error_of(mine)


def test_unfinished_folder(mine):
    (mine / "index.json").unlink()
    (mine / ".preparing").mkdir()
    assert "is not finished: run the same `prepare` again" in error_of(mine)


@pytest.mark.parametrize("left", [0, 700, -1])
def test_truncated_tar_is_named(mine, left):
    tar = mine / "00001.tar"
    tar.write_bytes(tar.read_bytes()[:left])
    assert error_of(mine).startswith(f"{tar} has {tar.stat().st_size} bytes instead of ")


def test_missing_tar_is_named(mine):
    (mine / "00002.tar").unlink()
    assert error_of(mine).startswith(f"{mine / '00002.tar'} is missing")


@pytest.mark.parametrize("keep", [0, 50, 600])
def test_truncated_index(mine, keep):
    rows = mine / "index.npy"
    rows.write_bytes(rows.read_bytes()[:keep])
    assert error_of(mine).startswith(f"{rows} cannot be read")


def test_index_of_another_set(mine):
    np.save(mine / "index.npy", np.load(mine / "index.npy")[:-1])
    assert "does not belong to" in error_of(mine)
    np.save(mine / "index.npy", np.zeros(COUNT))
    assert "not an index" in error_of(mine)


def test_flipped_bit_is_skipped_and_counted_and_the_rest_is_used(mine):
    shards = Shards(str(mine), 16)
    for part, index in (("picture", 3), ("json", 7)):
        row = shards._shards.rows[index]
        place = int(row["offset"]) + (5 if part == "picture" else layout.span(row) - 9)
        tar = mine / f"{row['shard']:05d}.tar"
        content = bytearray(tar.read_bytes())
        content[place] ^= 4
        tar.write_bytes(content)
    found = [shards[i] for i in range(COUNT)]
    damaged = [example for example in found if isinstance(example, Skipped)]
    assert [i for i, example in enumerate(found) if isinstance(example, Skipped)] == [3, 7]
    assert {example.reason for example in damaged} == {"damaged in its shard"}
    assert all(str(mine) in example.name for example in damaged)


def test_tar_that_vanishes_or_shrinks_while_training(mine):
    shards = Shards(str(mine), 16)
    (mine / "00000.tar").unlink()
    (mine / "00001.tar").write_bytes((mine / "00001.tar").read_bytes()[:3000])
    reasons = {shards[i].reason for i in range(COUNT) if isinstance(shards[i], Skipped)}
    assert reasons == {"shard cannot be read", "damaged in its shard"}
