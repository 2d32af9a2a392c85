"""The command `prepare`: it converts captioned pictures to shards."""

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from lit_transfusion.data.digests import SamePictures
from lit_transfusion.data.images import to_unit_range
from lit_transfusion.data.shards import ShardFolder
from lit_transfusion.data.shards.layout import (
    INDEX,
    KIND,
    MOMENTS,
    MOMENTS_ROW,
    PREPARING,
    PREVIEW,
    ROW,
    ROWS,
    SKIPPED,
    VERSION,
)
from lit_transfusion.data.types import Skipped, format_reasons
from lit_transfusion.data.worker_feed import pass_through
from lit_transfusion.errors import InputError
from lit_transfusion.file_lock import locked
from lit_transfusion.generation.pictures import captioned_grid
from lit_transfusion.latents import Codec
from lit_transfusion.prepare.digests import input_contents
from lit_transfusion.prepare.encoding import describe_codec, encoded_shards
from lit_transfusion.prepare.maker import FinishedShard, ShardMaker
from lit_transfusion.prepare.readers import open_reader
from lit_transfusion.prepare.readers.detect_format import Kind
from lit_transfusion.progress import Progress
from lit_transfusion.whole_file import whole_file
from lit_transfusion.wording import counted

SETTINGS = "settings.json"
RESUME_HINT = "finished shards are saved; run the same command again to resume"
PREVIEWED = 32  # pictures in the preview

log = logging.getLogger(__name__)


def prepare(
    input: list[str],
    output: str,
    kind: Kind | None = None,
    image_size: int = 64,
    metadata: str | None = None,
    pictures: str | None = None,
    split: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    format: Literal["webp", "png", "jpg"] = "webp",
    codec: Codec | None = None,
    shard_size: int = 5000,
    max_skipped: float = 0.05,
    num_workers: int | None = None,
    seed: int = 0,
) -> None:
    """Crop and resize pictures once, and save them with their captions in shards, which are fast to read in training.

    The input is a folder of pictures as `ImageCaptions` reads it, a metadata file beside pictures, WebDataset tars, a
    captions file of COCO, or a Hugging Face data set (a folder of save_to_disk, .parquet files that contain pictures,
    or a name on the hub). It is listed first and then shuffled as a whole. Pictures with equal files become one
    picture, with the captions of all. Other pictures that look the same, also mirrored, go into the same split.

    After an interruption, the same command resumes, and the result is the same to the last byte. On a finished folder,
    it checks the content of all shards.

    Args:
        input: The pictures: one path or name, or several tars or patterns of tars.
        output: Folder for the shards.
        kind: Format of the input: folder, webdataset, coco or hugging_face; null detects it from the path.
        image_size: Side of the square pictures, in pixels; a run's data.image_size must be the same.
        metadata: Folder: the metadata file, if its name is not metadata.csv, .tsv, .jsonl or .parquet.
        pictures: COCO: the folder of the pictures; null if they are beside the file.
        split: Hugging Face data set: the split; null is train.
        image_column: Hugging Face data set: the column of pictures; null takes the only one with pictures, or bytes.
        caption_column: Hugging Face data set or .json of WebDataset: the caption; null: caption, text or captions.
        format: webp and png keep every pixel. webp is smaller and at 256 pixels faster to read; more programs read
            png. jpg changes pixels slightly and needs a third of the space.
        codec: Encodes each picture and its mirror image, on a GPU if available, and saves the moments beside the
            picture, so that training on latents never encodes: VAE, with --codec.path. Null saves only pictures.
        shard_size: Pictures of a shard. An interrupted shard is made again.
        max_skipped: Largest share of the input that may be unusable, in [0, 1]; above it, the command stops.
        num_workers: Processes; 0 works in this process, null uses one for each CPU. The result is the same.
        seed: Seed of the order.
    """
    check(image_size, shard_size, max_skipped, num_workers)
    options = {
        "metadata": metadata,
        "pictures": pictures,
        "split": split,
        "image_column": image_column,
        "caption_column": caption_column,
    }
    kind, reader = open_reader(input, kind, options)
    given = {name: value for name, value in options.items() if value is not None}
    settings = {
        "version": VERSION,
        "input": {"kind": kind, "paths": input, **given},
        "image_size": image_size,
        "format": format,
        "codec": None if codec is None else describe_codec(codec, image_size),
        "shard_size": shard_size,
        "seed": seed,
        "listing": reader.fingerprint(),
    }
    folder = Path(output)
    if (folder / INDEX).exists():
        check_finished(folder, settings)
        return
    with locked_folder(folder):
        if (folder / INDEX).exists():  # finished by the other process during the wait
            check_finished(folder, settings)
            return
        check_or_write_settings(folder, settings)
        with explained_interruptions():
            contents = input_contents(reader, folder, workers(num_workers, len(reader)))
            maker = ShardMaker(reader, contents, folder, image_size, format, shard_size, seed, codec is not None)
            most = len(maker) if codec is None else len(maker.order)
            make_missing(maker, max_skipped, workers(num_workers, most), codec)
        finish(maker, settings)


def check(image_size: int, shard_size: int, max_skipped: float, num_workers: int | None) -> None:
    """Check the numeric options."""
    for name, value, least in (("image_size", image_size, 1), ("shard_size", shard_size, 1)):
        if value < least:
            raise InputError(f"{name} {value} is less than {least}; use {least} or more")
    if num_workers is not None and num_workers < 0:
        raise InputError(f"num_workers {num_workers} is less than 0; use 0 or more")
    if not 0 <= max_skipped <= 1:
        raise InputError(f"max_skipped {max_skipped} is invalid; use a share from 0 to 1")


def workers(wanted: int | None, most: int) -> int:
    """The number of processes: `wanted` or one for each CPU, but at most `most`."""
    if wanted is None:
        wanted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(wanted, most)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Lock a folder; waits if another process prepares it.

    If that process was killed, its workers end soon. Files that they still write are atomic and equal to the last byte.
    """

    def waiting() -> None:
        log.info("waiting for another process that prepares %s", folder)

    try:
        if folder.is_dir() and not (folder / PREPARING).exists() and any(folder.iterdir()):
            raise InputError(f"--output {folder} contains other files and no shards; give a new folder")
        (folder / PREPARING).mkdir(parents=True, exist_ok=True)
        lock = ExitStack()
        lock.enter_context(locked(folder / PREPARING / "lock", waiting))
    except OSError as error:
        raise InputError(f"--output {folder} cannot be written to: {error.strerror}; give another folder") from error
    with lock:
        yield


def check_or_write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Save the settings of the shards, or check that existing shards have the same settings."""
    path = folder / PREPARING / SETTINGS
    if not path.exists():
        with whole_file(path) as file:
            file.write(json.dumps(settings).encode())
    check_same_settings(folder, json.loads(path.read_text(encoding="utf-8")), settings)
    for place in (folder, folder / PREPARING):
        for partial in place.glob(".*.partial"):  # left by a killed process
            partial.unlink()


def check_same_settings(folder: Path, before: dict[str, Any], settings: dict[str, Any]) -> None:
    """Check that settings are those of the existing shards. The path of the input may differ, its content may not.

    Raises:
        InputError: The settings or the content of the input differ.
    """
    for key, value in settings.items():
        known = before.get(key)
        if key == "codec":  # the path of its weights may differ
            known, value = (codec and codec["identity"] for codec in (known, value))
        if key == "version" and known != value:
            raise InputError(
                f"--output {folder} was made by another version of prepare ({known}; this is {value}), which holds out "
                "other pictures; give a new folder"
            )
        if key not in ("input", "listing") and known != value:
            raise InputError(
                f"--output {folder} was made with {key} {known}, not {value}; use the former, or give a new folder"
            )
    if before["listing"] != settings["listing"]:
        paths = " ".join(before["input"]["paths"])
        raise InputError(
            f"--output {folder} was made from another input ({paths}), or the input has changed; give a new folder"
        )


@contextmanager
def explained_interruptions() -> Iterator[None]:
    """Tell the user how to resume if the command is interrupted or a worker killed."""
    try:
        yield
    except KeyboardInterrupt:
        log.info(RESUME_HINT)
        raise
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):  # another error
            raise
        message = f"{str(error).splitlines()[0]}; fewer --num_workers need less memory; {RESUME_HINT}"
        raise InputError(message) from error


def make_missing(maker: ShardMaker, max_skipped: float, num_workers: int, codec: Codec | None) -> None:
    """Make the shards that are not finished. Stops as soon as too many skips are certain."""
    total = len(maker.order) + len(maker.reader.left_out)
    skipped = list(maker.reader.left_out)
    missing = []
    for shard in range(len(maker)):
        if made := maker.made(shard):
            skipped += made.skipped
            maker.done.value += len(maker.part(shard))
        else:
            missing.append(shard)
    check_skipped(skipped, total, max_skipped)
    if codec is None:
        all_made = DataLoader(
            maker,
            sampler=missing,
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=1 if num_workers else None,
            collate_fn=pass_through,
            in_order=False,
        )
    else:
        all_made = encoded_shards(maker, missing, codec, num_workers)
    with Progress() as progress:
        done = maker.done.value
        progress.add("preparing", len(maker.order), done, unit="pictures", count=lambda: maker.done.value)
        for made in all_made:
            if isinstance(made, str):
                raise InputError(f"{made}; {RESUME_HINT}")
            skipped += made.skipped
            check_skipped(skipped, total, max_skipped)


def check_skipped(skipped: list[Skipped], total: int, max_skipped: float) -> None:
    """Stop with an error if too many pictures are skipped."""
    if len(skipped) > max_skipped * total:
        raise InputError(
            f"{len(skipped)} of {total} pictures cannot be used, more than the share --max_skipped {max_skipped:g} "
            f"allows: {format_reasons(count_reasons(skipped))}; fix them and give a new folder, or raise --max_skipped "
            "to resume"
        )


def count_reasons(skipped: list[Skipped]) -> dict[str, tuple[int, str]]:
    """Map each reason to (count, name of the first), most frequent reason first."""
    first = {}
    for one in skipped:
        first.setdefault(one.reason, one.name)
    counts = Counter(one.reason for one in skipped)
    return {reason: (count, first[reason]) for reason, count in counts.most_common()}


def finish(maker: ShardMaker, settings: dict[str, Any]) -> None:
    """Write the index of all shards, and report what was made and skipped."""
    folder = maker.folder
    shards: list[FinishedShard] = [maker.made(shard) for shard in range(len(maker))]
    skipped = [*maker.reader.left_out, *(one for made in shards for one in made.skipped)]
    if len(skipped) == len(maker.order) + len(maker.reader.left_out):
        raise InputError(f"none of the pictures can be used: {format_reasons(count_reasons(skipped))}; fix the input")
    rows = np.concatenate([maker.rows(shard) for shard in range(len(maker))])
    alike = hold_out_together(rows)
    rows = rows[np.argsort(rows["fraction"], kind="stable")]
    index = {
        "kind": KIND,
        **settings,
        "num_examples": len(rows),
        "num_merged": len(maker.reader) - len(maker.order),
        "num_alike": alike,
        "skipped": {reason: count for reason, (count, _) in count_reasons(skipped).items()},
        "shards": [{name: value for name, value in made._asdict().items() if name != "skipped"} for made in shards],
    }
    parts = {ROWS: ROW, MOMENTS: MOMENTS_ROW} if maker.encoded else {ROWS: ROW}
    for name, dtype in parts.items():
        with whole_file(folder / name) as file:
            np.lib.format.write_array(file, rows[list(dtype.names)].astype(dtype))
    with whole_file(folder / SKIPPED) as file:
        file.writelines(json.dumps(one._asdict()).encode() + b"\n" for one in skipped)
    with whole_file(folder / INDEX) as file:
        file.write(json.dumps(index, indent=1).encode() + b"\n")
    shutil.rmtree(folder / PREPARING)
    report(folder, index)


def hold_out_together(rows: np.ndarray) -> int:
    """Give pictures that look the same one `fraction`, so that they are in the same split.

    It is the fraction of the picture with the lowest content digest. Returns the number of pictures in such groups,
    without the first of each group.
    """
    alike = 0
    for same in SamePictures(rows["seen"]).copies():
        lowest = min(same, key=lambda i: rows["content"][i].tobytes())
        rows["fraction"][same] = rows["fraction"][lowest]
        alike += len(same) - 1
    return alike


def report(folder: Path, index: dict[str, Any]) -> None:
    """Print the result, with the options to train on it."""
    shards = index["shards"]
    megabytes = sum(shard["bytes"] for shard in shards) / 1e6
    side = index["image_size"]
    codec = index.get("codec")
    made_by, options = "", f"--data.source Shards --data.source.init_args.path {folder} --data.image_size {side}"
    if codec:
        made_by = f", encoded by {codec['identity']},"
        options += f" --data.codec {codec['class_path']}"
        options += "".join(f" --data.codec.init_args.{name} {value}" for name, value in codec["init_args"].items())
    print(
        f"{folder}: {counted(index['num_examples'], 'picture')} of {side} x {side}{made_by} in "
        f"{counted(len(shards), 'shard')}, {megabytes:.0f} MB; some of them: {preview(folder)}; train with {options}"
    )
    if merged := index["num_merged"]:
        print(f"{counted(merged, 'picture')} merged with others of equal content; all captions are kept")
    if alike := index["num_alike"]:
        print(f"{counted(alike, 'picture')} in the same split as others that look the same")
    if index["skipped"]:
        table = Table("reason for the skip", "pictures")
        for reason, count in index["skipped"].items():
            table.add_row(reason, str(count))
        Console().print(table)
        print(f"list of skipped pictures: {folder / SKIPPED}")


def preview(folder: Path) -> Path:
    """Write a page of pictures with their captions, unless it exists. Returns its path."""
    path = folder / PREVIEW
    if not path.exists():
        shards = ShardFolder(str(folder))
        samples = [shards[i] for i in range(min(len(shards), PREVIEWED))]
        pictures = torch.stack([to_unit_range(sample.pixels) for sample in samples])
        with whole_file(path) as file:
            captioned_grid(pictures, [sample.captions[0] for sample in samples]).save(file, "PNG")
    return path


def check_finished(folder: Path, settings: dict[str, Any]) -> None:
    """Check that a finished folder has the same settings and that its shards are undamaged."""
    shards = ShardFolder(str(folder))
    check_same_settings(folder, shards.index, settings)
    if damaged := shards.damaged():
        raise InputError(
            f"{folder}: the content of {', '.join(damaged[:10])}{', …' if len(damaged) > 10 else ''} has changed; "
            "copy it again, or remove the folder and prepare again"
        )
    shutil.rmtree(folder / PREPARING, ignore_errors=True)  # left by a process that was killed while removing it
    print(f"{folder} is already finished, and its content is unchanged")
    report(folder, shards.index)
