"""Digests of pictures and their cache."""

import os

import numpy as np
import torch
from PIL import Image

from lit_transfusion.data.digests import SamePictures, as_digests, content_of, is_picture, seen_in
from lit_transfusion.data.sources.digest_cache import contents_of


def put_picture(folder, name, fill):
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), fill).save(folder / name)


def test_content_depends_only_on_bytes_and_other_files_equal_nothing(tmp_path):
    for suffix in ("png", "jpg", "webp", "gif", "bmp", "tif"):
        put_picture(tmp_path, f"a.{suffix}", "red")
        data = (tmp_path / f"a.{suffix}").read_bytes()
        assert is_picture(data)
        assert content_of(data, "x") == content_of(data, "y") != content_of(data + b"\0", "x")
    for data in (b"", b"<html>404 Not Found</html>", b"P"):
        assert not is_picture(data)
        assert content_of(data, "x") == content_of(data, "x") != content_of(data, "y")


def test_mirror_image_has_the_same_digest():
    pixels = torch.arange(48, dtype=torch.uint8).view(3, 4, 4)
    assert seen_in(pixels) == seen_in(pixels.flip(-1)) != seen_in(pixels.flip(-2))


def test_groups_are_in_the_order_of_their_first():
    contents = [bytes([n]) * 8 + bytes([m]) * 8 for n, m in [(9, 1), (3, 0), (9, 1), (3, 1), (3, 0), (9, 1), (0, 0)]]
    same = SamePictures(as_digests(contents))
    assert list(same) == [[0, 2, 5], [1, 4], [3], [6]]
    assert list(same.copies()) == [[0, 2, 5], [1, 4]]
    assert list(SamePictures(np.zeros((0, 2), "<u8"))) == []


def test_file_is_read_again_only_if_size_or_time_have_changed(tmp_path):
    folder = tmp_path / "in"
    put_picture(folder, "a.png", "red")
    put_picture(folder, "b.png", "red")
    one, other = contents_of(folder, ["a.png", "b.png"])
    assert one == other

    file = folder / "b.png"
    data, time = file.read_bytes(), file.stat().st_mtime_ns
    file.write_bytes(data[:-1] + b"x")
    os.utime(file, ns=(time, time))
    assert contents_of(folder, ["a.png", "b.png"]) == [one, one]  # the old digest: the file was not read
    os.utime(file, ns=(time, time + 1))
    again = contents_of(folder, ["a.png", "b.png"])
    assert again[0] == one != again[1]
    file.write_bytes(data[:-1] + b"xy")
    os.utime(file, ns=(time, time + 1))
    assert contents_of(folder, ["b.png"])[0] not in again


def test_damaged_cache_is_replaced_and_a_read_only_folder_uses_the_user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "in"
    put_picture(folder, "a.png", "red")
    expected = contents_of(folder, ["a.png"])
    for damaged in (b"", b"{", b"[]", b'{"version": 1, "pictures": {"a.png": 3}}'):
        (folder / ".lit_transfusion" / "pictures.json").write_bytes(damaged)
        assert contents_of(folder, ["a.png"]) == expected
    assert not (tmp_path / "cache").exists()

    (folder / ".lit_transfusion" / "pictures.json").unlink()
    (folder / ".lit_transfusion").rmdir()
    (folder / ".lit_transfusion").write_text("not a folder")  # the tests may run as root, who may write anywhere
    assert contents_of(folder, ["a.png"]) == expected
    assert len(list((tmp_path / "cache").rglob("pictures.json"))) == 1
    time = (folder / "a.png").stat().st_mtime_ns
    (folder / "a.png").write_bytes(b"x" * (folder / "a.png").stat().st_size)
    os.utime(folder / "a.png", ns=(time, time))
    assert contents_of(folder, ["a.png"]) == expected


def test_missing_or_unreadable_file_is_not_cached(tmp_path):
    put_picture(tmp_path, "a.png", "red")
    (tmp_path / "b.png").write_bytes(b"half a download")
    before = contents_of(tmp_path, ["a.png", "b.png", "c.png"])
    assert len(set(before)) == 3
    assert "b.png" not in (tmp_path / ".lit_transfusion" / "pictures.json").read_text()
