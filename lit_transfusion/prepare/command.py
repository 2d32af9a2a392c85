"""`prepare`: many pictures with captions become shards, once."""

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
from lit_transfusion.data.shards.files import whole_file
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
from lit_transfusion.data.types import Skipped, in_words
from lit_transfusion.data.worker_feed import as_it_is
from lit_transfusion.errors import InputError
from lit_transfusion.file_lock import locked
from lit_transfusion.generation.pictures import captioned_grid
from lit_transfusion.latents import Codec
from lit_transfusion.prepare.digests import input_contents
from lit_transfusion.prepare.encoding import encoded_shards, record
from lit_transfusion.prepare.maker import Made, ShardMaker
from lit_transfusion.prepare.readers import open_reader
from lit_transfusion.prepare.readers.detect_format import Kind
from lit_transfusion.progress import Progress
from lit_transfusion.wording import counted

SETTINGS = "settings.json"
KEPT = "what is finished is kept: run the same command again to resume"
PREVIEWED = 32  # pictures

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
    """Crop and resize pictures once, and put them with their captions into shards that train fast.

    The input is a folder of pictures as `ImageCaptions` reads it, a metadata file beside pictures, WebDataset tars, a
    captions file of COCO, or a Hugging Face data set (a folder of save_to_disk, .parquet files with the pictures in
    them, or a name on the hub). It is listed first, and shuffled as a whole. Pictures whose files are equal become one,
    with the captions of all; those that look the same otherwise, also mirrored, are trained on or held out together.

    The same command goes on where it was stopped or killed, and the result is the same to the last byte. Run on a
    folder that is finished, it checks the content of all shards.

    Args:
        input: Where the pictures are: one path or name, or several tars, or patterns of them.
        output: Folder for the shards.
        kind: What the input is: folder, webdataset, coco or hugging_face; null sees it from the path.
        image_size: Side of the square pictures in pixels; a run's data.image_size must be the same.
        metadata: Of a folder: the metadata file, if its name is another than metadata.csv, .jsonl or .parquet.
        pictures: Of COCO: the folder of the pictures; null if they are beside the file.
        split: Of a Hugging Face data set; null is train.
        image_column: Of a Hugging Face data set; null takes the only column of pictures, or else of bytes.
        caption_column: Of a Hugging Face data set, or in the .json of WebDataset; null: caption, text or captions.
        format: webp and png keep every pixel; webp is smaller and at 256 pixels faster to read, png is known to more
            programs. jpg changes pixels a little for a third of the space.
        codec: Encodes each picture and its mirror image, on a GPU if there is one, and keeps the result beside the
            picture, so that training on latents never encodes: VAE, with --codec.path. Null keeps the pictures alone.
        shard_size: Pictures of a shard. A shard that is not finished when the command is stopped is made anew.
        max_skipped: Largest share of the input that may be of no use, in [0, 1]; beyond it, the command stops.
        num_workers: Processes; 0 works in this one, null takes one for each CPU. The result is the same.
        seed: Chooses the order.
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
        "codec": None if codec is None else record(codec, image_size),
        "shard_size": shard_size,
        "seed": seed,
        "listing": reader.fingerprint(),
    }
    folder = Path(output)
    if (folder / INDEX).exists():
        check_finished(folder, settings)
        return
    with alone(folder):
        if (folder / INDEX).exists():  # made by the process that was waited for
            check_finished(folder, settings)
            return
        begin(folder, settings)
        with what_is_finished_is_kept():
            contents = input_contents(reader, folder, workers(num_workers, len(reader)))
            maker = ShardMaker(reader, contents, folder, image_size, format, shard_size, seed, codec is not None)
            most = len(maker) if codec is None else len(maker.order)
            make_missing(maker, max_skipped, workers(num_workers, most), codec)
        finish(maker, settings)


def check(image_size: int, shard_size: int, max_skipped: float, num_workers: int | None) -> None:
    for name, value, least in (("image_size", image_size, 1), ("shard_size", shard_size, 1)):
        if value < least:
            raise InputError(f"{name} {value} is less than {least}")
    if num_workers is not None and num_workers < 0:
        raise InputError(f"num_workers {num_workers} is less than 0")
    if not 0 <= max_skipped <= 1:
        raise InputError(f"max_skipped {max_skipped} is not a share between 0 and 1")


def workers(wanted: int | None, most: int) -> int:
    """How many processes: no more than there are shards, or whatever each of them works at."""
    if wanted is None:
        wanted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(wanted, most)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Waits for another process that prepares the same folder. If that was killed, its workers end soon after it; what
    one of them still writes is the same to the last byte, and appears whole or not at all."""

    def waiting() -> None:
        log.info("waiting for another process that prepares %s", folder)

    try:
        if folder.is_dir() and not (folder / PREPARING).exists() and any(folder.iterdir()):
            raise InputError(f"--output {folder} holds other files, and no shards; give a new folder")
        (folder / PREPARING).mkdir(parents=True, exist_ok=True)
        lock = ExitStack()
        lock.enter_context(locked(folder / PREPARING / "lock", waiting))
    except OSError as error:
        raise InputError(f"--output {folder} cannot be written to: {error.strerror}") from error
    with lock:
        yield


def begin(folder: Path, settings: dict[str, Any]) -> None:
    """Note what the shards are made of, or see that those that are there were made of the same."""
    path = folder / PREPARING / SETTINGS
    if not path.exists():
        with whole_file(path) as file:
            file.write(json.dumps(settings).encode())
    compare(folder, json.loads(path.read_text(encoding="utf-8")), settings)
    for place in (folder, folder / PREPARING):
        for partial in place.glob(".*.partial"):  # of a process that was killed
            partial.unlink()


def compare(folder: Path, before: dict[str, Any], settings: dict[str, Any]) -> None:
    """Refuses to go on with other settings. Where the input lies may have changed, what it holds may not."""
    for key, value in settings.items():
        known = before.get(key)
        if key == "codec":  # wherever its weights lie
            known, value = (said and said["identity"] for said in (known, value))
        if key == "version" and known != value:
            raise InputError(
                f"--output {folder} was made by another version of prepare ({known}; this is {value}), which held out "
                "other pictures; give a new folder"
            )
        if key not in ("input", "listing") and known != value:
            raise InputError(
                f"--output {folder} was made with {key} {known}, not {value}; go on with that, or give a new folder"
            )
    if before["listing"] != settings["listing"]:
        paths = " ".join(before["input"]["paths"])
        raise InputError(
            f"--output {folder} was made of another input ({paths}), or that has changed since; give a new folder"
        )


@contextmanager
def what_is_finished_is_kept() -> Iterator[None]:
    """Says so when the command is stopped, or a worker killed."""
    try:
        yield
    except KeyboardInterrupt:
        log.info(KEPT)
        raise
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):  # one was killed
            raise
        message = f"{str(error).splitlines()[0]}; with fewer --num_workers it needs less memory; {KEPT}"
        raise InputError(message) from error


def make_missing(maker: ShardMaker, max_skipped: float, num_workers: int, codec: Codec | None) -> None:
    """Make the shards that are not finished. Stops as soon as it is certain that too much is skipped."""
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
            collate_fn=as_it_is,
            in_order=False,
        )
    else:
        all_made = encoded_shards(maker, missing, codec, num_workers)
    with Progress() as progress:
        done = maker.done.value
        progress.add("preparing", len(maker.order), done, unit="pictures", count=lambda: maker.done.value)
        for made in all_made:
            if isinstance(made, str):
                raise InputError(f"{made}; {KEPT}")
            skipped += made.skipped
            check_skipped(skipped, total, max_skipped)


def check_skipped(skipped: list[Skipped], total: int, max_skipped: float) -> None:
    if len(skipped) > max_skipped * total:
        raise InputError(
            f"{len(skipped)} of {total} pictures cannot be used, more than the share of {max_skipped:g} that "
            f"--max_skipped allows: {in_words(reasons(skipped))}; mend them, or allow more and go on with the same "
            "folder"
        )


def reasons(skipped: list[Skipped]) -> dict[str, tuple[int, str]]:
    """Reason → how many, and the name of the first; what is most frequent comes first."""
    first = {}
    for one in skipped:
        first.setdefault(one.reason, one.name)
    counts = Counter(one.reason for one in skipped)
    return {reason: (count, first[reason]) for reason, count in counts.most_common()}


def finish(maker: ShardMaker, settings: dict[str, Any]) -> None:
    """Write the index of all shards, and say what was made and what was not."""
    folder = maker.folder
    shards: list[Made] = [maker.made(shard) for shard in range(len(maker))]
    skipped = [*maker.reader.left_out, *(one for made in shards for one in made.skipped)]
    if len(skipped) == len(maker.order) + len(maker.reader.left_out):
        raise InputError(f"not one picture can be used: {in_words(reasons(skipped))}")
    rows = np.concatenate([maker.rows(shard) for shard in range(len(maker))])
    alike = keep_together(rows)
    rows = rows[np.argsort(rows["fraction"], kind="stable")]
    index = {
        "kind": KIND,
        **settings,
        "num_examples": len(rows),
        "num_merged": len(maker.reader) - len(maker.order),
        "num_alike": alike,
        "skipped": {reason: count for reason, (count, _) in reasons(skipped).items()},
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


def keep_together(rows: np.ndarray) -> int:
    """Give all pictures that look the same one place in what is held out: that of the one with the lowest content,
    which does not depend on how many there are. How many there are beside the first of each.
    """
    alike = 0
    for same in SamePictures(rows["seen"]).copies():
        lowest = min(same, key=lambda i: rows["content"][i].tobytes())
        rows["fraction"][same] = rows["fraction"][lowest]
        alike += len(same) - 1
    return alike


def report(folder: Path, index: dict[str, Any]) -> None:
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
        print(f"{counted(merged, 'picture')} merged with others of equal content, captions and all")
    if alike := index["num_alike"]:
        print(f"{counted(alike, 'picture')} held out or trained on together with others that look the same")
    if index["skipped"]:
        table = Table("skipped, because", "pictures")
        for reason, count in index["skipped"].items():
            table.add_row(reason, str(count))
        Console().print(table)
        print(f"which: {folder / SKIPPED}")


def preview(folder: Path) -> Path:
    """A page of pictures with their captions, for whoever wants to see what became of them."""
    path = folder / PREVIEW
    if not path.exists():
        shards = ShardFolder(str(folder))
        samples = [shards[i] for i in range(min(len(shards), PREVIEWED))]
        pictures = torch.stack([to_unit_range(sample.pixels) for sample in samples])
        with whole_file(path) as file:
            captioned_grid(pictures, [sample.captions[0] for sample in samples]).save(file, "PNG")
    return path


def check_finished(folder: Path, settings: dict[str, Any]) -> None:
    """See that a finished folder was made of the same, and that all of it is as it was written."""
    shards = ShardFolder(str(folder))
    compare(folder, shards.index, settings)
    if damaged := shards.damaged():
        raise InputError(
            f"{folder}: the content of {', '.join(damaged[:10])}{', …' if len(damaged) > 10 else ''} is not what was "
            "written; copy it again, or remove the folder and prepare again"
        )
    shutil.rmtree(folder / PREPARING, ignore_errors=True)  # of a process that was killed while it removed that
    print(f"{folder} is finished already, and what it holds is as it was written")
    report(folder, shards.index)
