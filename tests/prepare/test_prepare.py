"""`prepare`: its result, its skips, and equal results after any interruption."""

import fcntl
import json
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from lit_transfusion import cli
from lit_transfusion.data.images import read_image
from lit_transfusion.data.shards import ShardFolder
from lit_transfusion.data.sources import ImageCaptions, Shards
from lit_transfusion.data.types import Example
from lit_transfusion.errors import InputError
from lit_transfusion.latents import VAE
from lit_transfusion.prepare import maker
from lit_transfusion.prepare.command import prepare
from lit_transfusion.prepare.readers import folder as folder_reader
from lit_transfusion.prepare.worker_pool import workers

SMALL = {"image_size": 8, "shard_size": 6, "num_workers": 0}


@pytest.fixture(scope="module")
def pictures(make_pictures, tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("pictures") / "in", 20)


@pytest.fixture(scope="module")
def undisturbed(pictures, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    prepare([str(pictures)], str(output), **SMALL)
    return contents(output)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error_of(*arguments, **options):
    """The message of the InputError. It must be one line."""
    with pytest.raises(InputError) as caught:
        prepare(*arguments, **{**SMALL, **options})
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The same result in all circumstances


def test_files_of_a_finished_folder(undisturbed):
    tars = {f"0000{i}.tar" for i in range(4)}
    assert undisturbed.keys() == {"index.json", "index.npy", "preview.png", "skipped.jsonl", *tars}


def test_preview_shows_the_pictures(pictures, tmp_path, capsys):
    prepare([str(pictures)], str(tmp_path / "out"), **SMALL)
    path = tmp_path / "out" / "preview.png"
    assert str(path) in capsys.readouterr().out
    pixels = ShardFolder(str(tmp_path / "out"))[0].pixels
    scale = 112 // pixels.shape[-1]  # small pictures are enlarged
    shown = np.asarray(Image.open(path).convert("RGB"))[6:118:scale, 6:118:scale]  # inside the margin
    assert np.array_equal(shown, pixels.permute(1, 2, 0).numpy())


def test_workers_make_the_same_bytes(pictures, undisturbed, tmp_path):
    prepare([str(pictures)], str(tmp_path / "out"), **{**SMALL, "num_workers": 2})
    assert contents(tmp_path / "out") == undisturbed


def test_another_seed_gives_another_order(pictures, undisturbed, tmp_path):
    prepare([str(pictures)], str(tmp_path / "out"), **SMALL, seed=1)
    assert contents(tmp_path / "out")["00000.tar"] != undisturbed["00000.tar"]
    shards = Shards(str(tmp_path / "out"), 8)
    assert sorted(shards.captions()) == sorted(ImageCaptions(str(pictures), 8).captions())


@pytest.fixture(scope="module", params=["pictures alone", "latents beside them"])
def kept(request, pictures, save_vae, tmp_path_factory):
    """Options of `prepare`, and its result with them without interruption."""
    folder = tmp_path_factory.mktemp("kept")
    options = SMALL if request.param == "pictures alone" else {"codec": VAE(save_vae(folder / "vae")), **SMALL}
    prepare([str(pictures)], str(folder / "out"), **options)
    return options, contents(folder / "out")


@pytest.mark.parametrize("survived", [0, 1, 9, 13, 19])
def test_killed_and_started_again(pictures, kept, tmp_path, monkeypatch, survived):
    """SIGKILL ends the process after some pictures, within a shard."""
    options, expected = kept
    read, seen = maker.read_pixels, []

    def read_or_die(*arguments):
        if len(seen) == survived:
            os.kill(os.getpid(), signal.SIGKILL)
        seen.append(arguments)
        return read(*arguments)

    monkeypatch.setattr(maker, "read_pixels", read_or_die)
    arguments = ([str(pictures)], str(tmp_path / "out"))
    child = multiprocessing.get_context("fork").Process(target=prepare, args=arguments, kwargs=options)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    finished = sorted((tmp_path / "out").glob("*.tar"))
    assert len(finished) == survived // 6  # no incomplete file has its final name
    assert len(list((tmp_path / "out").glob(".*.partial"))) == 1
    times = [path.stat().st_mtime_ns for path in finished]
    with pytest.raises(InputError, match=r"is not finished.*run the same `prepare` again"):
        Shards(str(tmp_path / "out"), 8)

    monkeypatch.setattr(maker, "read_pixels", read)
    prepare(*arguments, **options)
    assert contents(tmp_path / "out") == expected
    assert [path.stat().st_mtime_ns for path in finished] == times  # not made again


@pytest.mark.parametrize("written", [0, 1, 2])
def test_killed_between_any_two_files_of_a_shard(pictures, undisturbed, tmp_path, monkeypatch, written):
    out = tmp_path / "out"
    monkeypatch.setattr("lit_transfusion.prepare.making.finish", lambda *_: None)
    prepare([str(pictures)], str(out), **SMALL)
    assert (out / ".preparing").is_dir()
    monkeypatch.undo()
    for name in ("00001.tar", ".preparing/00001.npy", ".preparing/00001.json")[written:]:
        (out / name).unlink()
    prepare([str(pictures)], str(out), **SMALL)
    assert contents(out) == undisturbed


def test_killed_after_the_index_was_written(pictures, undisturbed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "rmtree", lambda path: None)
    prepare([str(pictures)], str(tmp_path / "out"), **SMALL)
    monkeypatch.undo()
    assert (tmp_path / "out" / ".preparing").is_dir()
    assert len(Shards(str(tmp_path / "out"), 8)) == 20
    prepare([str(pictures)], str(tmp_path / "out"), **SMALL)
    assert "already finished" in capsys.readouterr().out
    assert contents(tmp_path / "out") == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 3])
def test_command_killed_again_and_again(make_pictures, tmp_path, num_workers):
    """A process and its workers are killed at random times. Workers may survive for a while."""
    source = make_pictures(tmp_path / "in", 300)
    options = {"image_size": 96, "shard_size": 20, "num_workers": num_workers}

    def start(output):
        arguments = ([str(source)], str(output))
        child = multiprocessing.get_context("fork").Process(target=prepare, args=arguments, kwargs=options)
        child.start()
        return child

    def finished():
        return len(list((tmp_path / "out").glob("*.tar")))

    prepare([str(source)], str(tmp_path / "undisturbed"), **options)
    kills, process = 0, start(tmp_path / "out")
    while process.is_alive():
        before = finished()
        while finished() < before + 3 and process.is_alive():
            time.sleep(0.003)
        if process.is_alive():
            process.kill()
            process.join()
            kills, process = kills + 1, start(tmp_path / "out")
    assert process.exitcode == 0 and kills >= 2
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_killed_worker_is_reported_and_finished_shards_are_kept(pictures, undisturbed, tmp_path, monkeypatch):
    read = folder_reader.FolderReader.__getitem__

    def die_at_last(self, index):
        if len(list((tmp_path / "out").glob("*.tar"))) >= 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, index)

    monkeypatch.setattr(folder_reader.FolderReader, "__getitem__", die_at_last)
    message = error_of([str(pictures)], str(tmp_path / "out"), num_workers=1)
    assert message.startswith("DataLoader worker (pid") and "--num_workers" in message
    assert "run the same command again to resume" in message
    monkeypatch.undo()
    assert len(list((tmp_path / "out").glob("*.tar"))) == 2
    prepare([str(pictures)], str(tmp_path / "out"), **SMALL)
    assert contents(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("num_workers", [0, 1])
def test_full_disk_is_reported_and_finished_shards_are_kept(pictures, undisturbed, tmp_path, num_workers):
    """With a limit on the size of files, a write fails like on a full disk."""
    sizes = [len(undisturbed[f"0000{i}.tar"]) for i in range(4)]
    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes) - 1, hard))
    try:
        message = error_of([str(pictures)], str(out), num_workers=num_workers)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be written: File too large" in message and str(out) in message
    assert "run the same command again to resume" in message
    assert not list(out.glob(".*.partial"))
    prepare([str(pictures)], str(out), **SMALL)
    assert contents(out) == undisturbed


def mounted(folder, size):
    """Mount a file system of `size` bytes, or resize a mounted one. Returns whether this worked."""
    option = f"size={size}" if not os.path.ismount(folder) else f"remount,size={size}"
    command = ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(folder)]
    return shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="tmpfs is Linux's")
def test_disk_without_space_is_reported_and_finished_shards_are_kept(pictures, tmp_path):
    """A real disk, for users who may mount one. Unlike with a limit on sizes, small files fail too."""
    options = {**SMALL, "image_size": 64}
    prepare([str(pictures)], str(tmp_path / "undisturbed"), **options)
    undisturbed = contents(tmp_path / "undisturbed")
    disk = tmp_path / "disk"
    disk.mkdir()
    if not mounted(disk, 16 * 4096 + 5 * len(undisturbed["00000.tar"]) // 2):
        pytest.skip("needs to mount")
    try:
        message = error_of([str(pictures)], str(disk / "out"), image_size=64)
        assert "cannot be written: No space left on device" in message
        assert 0 < len(list((disk / "out").glob("*.tar"))) < 4 and not list((disk / "out").glob(".*.partial"))
        assert mounted(disk, 2**24)
        prepare([str(pictures)], str(disk / "out"), **options)
        assert contents(disk / "out") == undisturbed
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_second_process_waits_for_the_first(pictures, undisturbed, tmp_path, caplog):
    (tmp_path / "out" / ".preparing").mkdir(parents=True)
    with (tmp_path / "out" / ".preparing" / "lock").open("w") as lock, caplog.at_level(logging.INFO):
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=prepare, args=([str(pictures)], str(tmp_path / "out")), kwargs=SMALL)
        second.start()
        deadline = time.monotonic() + 60
        while "waiting for another process" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not list((tmp_path / "out").glob("*.tar"))
    second.join()
    assert contents(tmp_path / "out") == undisturbed


# Pictures and captions of all kinds


def picture_of(mode):
    noise = np.random.default_rng(0).integers(0, 256, (20, 24, 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray((noise[..., 0].astype(np.uint16) << 8) + noise[..., 1])
    if mode == "RGBA":
        return Image.fromarray(noise)
    return Image.fromarray(noise[..., :3]).convert(mode)


def test_pictures_of_all_kinds_are_those_that_training_would_see(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for mode in ("I;16", "P", "RGBA", "L", "1", "LA"):
        picture_of(mode).save(folder / f"{mode.replace(';', '')}.png")
    picture_of("CMYK").save(folder / "CMYK.jpg")
    frames = [picture_of("RGB"), Image.new("RGB", (24, 20))]
    for suffix in ("gif", "webp", "png"):
        frames[0].save(folder / f"animated.{suffix}", save_all=True, append_images=frames[1:])
    names = sorted(os.listdir(folder))
    (tmp_path / "metadata.csv").write_text("file,text\n" + "".join(f"{name},{name}\n" for name in names))
    prepare([str(folder)], str(tmp_path / "out"), metadata=str(tmp_path / "metadata.csv"), image_size=16, num_workers=0)
    shards = Shards(str(tmp_path / "out"), 16)
    assert sorted(shards.captions()) == names
    for example in (shards[i] for i in range(len(names))):
        assert torch.equal(example.image, read_image(folder / example.captions[0], 16))
        assert example.image.std() > 0.1


def put(folder, name, content, text="words"):
    folder.mkdir(exist_ok=True)
    if isinstance(content, Image.Image):
        content.save(folder / name)
    else:
        (folder / name).write_bytes(content)
    (folder / name).with_suffix(".txt").write_bytes(text if isinstance(text, bytes) else text.encode())


def test_unusable_pictures_are_counted_by_reason_and_listed(pictures, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(pictures, tmp_path / "in")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    good = (pictures / "0.png").read_bytes()
    put(folder, "a.png", good[: len(good) // 2])
    put(folder, "b.jpg", (pictures / "1.jpg").read_bytes()[:300])
    put(folder, "c.png", b"<html>404 Not Found</html>")
    put(folder, "d.png", Image.new("1", (200, 200)))
    put(folder, "e.png", good, " \n ")
    put(folder, "f.png", good, b"caf\xe9")
    prepare([str(folder)], str(tmp_path / "out"), max_skipped=0.3, **SMALL)
    shards = Shards(str(tmp_path / "out"), 8)
    assert len(shards) == 20 and all(isinstance(shards[i], Example) for i in range(20))
    reasons = {
        "cannot be read: image file is truncated": ["a.png"],
        "cannot be read: Truncated File Read": ["b.jpg"],
        "cannot be read: not a picture of a known format": ["c.png"],
        "larger than 0 megapixels": ["d.png"],
        "without a caption": ["e.png"],
        "with a caption that is not UTF-8": ["f.png"],
    }
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["skipped"] == {reason: len(names) for reason, names in reasons.items()}
    listed = {}
    for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines():
        skipped = json.loads(line)
        listed.setdefault(skipped["reason"], []).append(skipped["name"])
    expected = {reason: [str(folder / name) for name in names] for reason, names in reasons.items()}
    assert {reason: sorted(names) for reason, names in listed.items()} == expected
    output = capsys.readouterr().out
    assert "20 pictures of 8 x 8 in 4 shards" in output
    assert all(reason in output for reason in reasons)


def test_long_captions_are_kept_whole(tmp_path):
    text = "many words " * 10_000
    put(tmp_path / "in", "a.png", Image.new("RGB", (8, 8)), f"{text}\nshort 你好 🎉")
    prepare([str(tmp_path / "in")], str(tmp_path / "out"), **SMALL)
    assert Shards(str(tmp_path / "out"), 8)[0].captions == (text.strip(), "short 你好 🎉")


def test_names_that_are_not_utf8(tmp_path):
    put(tmp_path / "in", os.fsdecode(b"caf\xe9.png"), Image.new("RGB", (8, 8)))
    put(tmp_path / "in", os.fsdecode(b"bad\xe9.png"), b"")
    prepare([str(tmp_path / "in")], str(tmp_path / "out"), max_skipped=0.5, **SMALL)
    assert Shards(str(tmp_path / "out"), 8)[0].captions == ("words",)


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_too_many_skips_stop_with_reasons_and_a_higher_limit_resumes(make_pictures, tmp_path, num_workers):
    folder = make_pictures(tmp_path / "in", 16)
    for name in ("x", "y", "z"):
        put(folder, f"{name}.png", b"")
    put(folder, "v.png", b"", "")
    message = error_of([str(folder)], str(tmp_path / "out"), max_skipped=0.15, num_workers=num_workers)
    assert "4 of 20 pictures cannot be used" in message and "--max_skipped 0.15" in message
    assert (
        "3 cannot be read: not a picture of a known format (first: " in message
        and f"1 without a caption (first: {folder / 'v.png'})" in message
    )
    prepare([str(folder)], str(tmp_path / "out"), max_skipped=0.2, **SMALL)
    assert len(Shards(str(tmp_path / "out"), 8)) == 16


def test_stops_as_soon_as_it_is_certain(make_pictures, tmp_path):
    folder = make_pictures(tmp_path / "in", 2)
    for i in range(20):
        put(folder, f"x{i}.png", b"")
    error_of([str(folder)], str(tmp_path / "out"), max_skipped=0.2, shard_size=6)
    assert len(list((tmp_path / "out").glob("*.tar"))) == 1


def test_shard_without_usable_pictures(make_pictures, tmp_path):
    folder = make_pictures(tmp_path / "in", 2)
    put(folder, "x.png", b"")
    prepare([str(folder)], str(tmp_path / "out"), max_skipped=0.5, image_size=8, shard_size=1, num_workers=0)
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert sorted(shard["num_examples"] for shard in index["shards"]) == [0, 1, 1]
    assert len(Shards(str(tmp_path / "out"), 8).split("train")) == 1


def test_no_usable_picture(tmp_path):
    put(tmp_path / "in", "x.png", b"")
    message = error_of([str(tmp_path / "in")], str(tmp_path / "out"), max_skipped=1.0)
    assert message.startswith("none of the pictures can be used: 1 cannot be read")


# Output folders


def test_finished_folder_is_checked(pictures, tmp_path, capsys):
    out = tmp_path / "out"
    prepare([str(pictures)], str(out), **SMALL)
    capsys.readouterr()
    prepare([str(pictures)], str(out), **SMALL)
    assert "its content is unchanged" in capsys.readouterr().out
    content = bytearray((out / "00002.tar").read_bytes())
    content[-1] ^= 1  # a byte that no reader uses
    (out / "00002.tar").write_bytes(content)
    assert "00002.tar has changed" in error_of([str(pictures)], str(out))


@pytest.mark.parametrize(
    ("option", "part"),
    [
        ({"image_size": 16}, "was made with image_size 8, not 16"),
        ({"shard_size": 7}, "shard_size 6, not 7"),
        ({"format": "png"}, "format webp, not png"),
        ({"seed": 3}, "seed 0, not 3"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_folder_of_other_settings_does_not_change(pictures, tmp_path, monkeypatch, option, part, finished):
    if not finished:
        monkeypatch.setattr("lit_transfusion.prepare.making.finish", lambda *_: None)
    prepare([str(pictures)], str(tmp_path / "out"), **SMALL)
    before = contents(tmp_path / "out")
    assert part in error_of([str(pictures)], str(tmp_path / "out"), **option)
    assert contents(tmp_path / "out") == before


def test_input_that_has_changed_or_moved(make_pictures, tmp_path):
    folder = make_pictures(tmp_path / "in", 3)
    prepare([str(folder)], str(tmp_path / "out"), **SMALL)
    moved = folder.rename(tmp_path / "moved")
    prepare([str(moved)], str(tmp_path / "out"), **SMALL)  # the same
    put(moved, "new.png", Image.new("RGB", (8, 8)))
    message = error_of([str(moved)], str(tmp_path / "out"))
    assert f"from another input ({folder}), or the input has changed; give a new folder" in message


def test_folder_of_other_files(pictures, tmp_path):
    (tmp_path / "notes.md").write_text("mine")
    assert "contains other files and no shards" in error_of([str(pictures)], str(tmp_path))
    assert os.listdir(tmp_path) == ["notes.md"]
    assert "cannot be written to" in error_of([str(pictures)], str(tmp_path / "notes.md"))


# Options


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"image_size": 0}, "image_size 0 is less than 1"),
        ({"shard_size": 0}, "shard_size 0 is less than 1"),
        ({"num_workers": -1}, "num_workers -1 is less than 0"),
        ({"max_skipped": 5.0}, "max_skipped 5.0 "),
        ({"split": "train"}, "--split is not an option for an input of kind folder"),
    ],
)
def test_invalid_options(pictures, tmp_path, options, part):
    assert part in error_of([str(pictures)], str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


def test_no_more_workers_than_shards():
    assert workers(8, 3) == 3 and workers(2, 3) == 2 and workers(0, 3) == 0
    assert 1 <= workers(None, 1000) <= os.cpu_count()


def test_command_line(pictures, undisturbed, tmp_path, capsys):
    words = ["--input", pictures, "--output", tmp_path / "out", "--image_size", 8, "--shard_size", 6]
    cli.main(["prepare", *map(str, words), "--num_workers", "0"])
    assert "20 pictures of 8 x 8 in 4 shards" in capsys.readouterr().out
    assert contents(tmp_path / "out") == undisturbed
    with pytest.raises(SystemExit):
        cli.main(["prepare", "--input", str(tmp_path / "none"), "--output", str(tmp_path / "more")])
    assert "does not exist; set input to" in capsys.readouterr().err


def test_options_need_neither_the_data_package_nor_lightning():
    """`--help` imports the module of the command, so that must be fast."""
    slow = "{'lightning', 'torchvision', 'lit_transfusion.data'}"
    script = f"import sys, lit_transfusion.prepare.command; print(*({slow} & sys.modules.keys()))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "\n"


def test_one_picture_and_one_shard_are_singular(make_pictures, tmp_path, capsys):
    prepare([str(make_pictures(tmp_path / "in", 1))], str(tmp_path / "out"), **SMALL)
    assert "1 picture of 8 x 8 in 1 shard, " in capsys.readouterr().out


def test_ctrl_c_has_no_traceback(pictures, undisturbed, tmp_path, monkeypatch, capsys, caplog):
    words = ["prepare", "--input", pictures, "--output", tmp_path / "out", "--image_size", 8, "--shard_size", 6]
    words = [*map(str, words), "--num_workers", "0"]
    make = maker.ShardMaker.make

    def interrupted(self, shard):
        if shard == 1:
            raise KeyboardInterrupt
        return make(self, shard)

    with monkeypatch.context() as patch, caplog.at_level(logging.INFO), pytest.raises(SystemExit) as ended:
        patch.setattr(maker.ShardMaker, "make", interrupted)
        cli.main(words)
    assert ended.value.code == 130 and capsys.readouterr().err.splitlines()[-1] == "stopped"
    assert "run the same command again to resume" in caplog.messages[-1]
    cli.main(words)
    assert contents(tmp_path / "out") == undisturbed
