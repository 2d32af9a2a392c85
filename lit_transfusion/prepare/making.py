"""Makes the shards that a folder lacks, in several processes, and the index of all, which finishes the folder."""

import json
import shutil
from typing import Any

import numpy as np

from lit_transfusion.data.digests import SamePictures
from lit_transfusion.data.shards.layout import INDEX, KIND, MOMENTS, MOMENTS_ROW, PREPARING, ROW, ROWS, SKIPPED
from lit_transfusion.data.types import Skipped, count_reasons, format_skipped
from lit_transfusion.errors import InputError
from lit_transfusion.latents import Codec
from lit_transfusion.prepare.encoding import encoded_shards
from lit_transfusion.prepare.maker import ShardMaker
from lit_transfusion.prepare.report import report
from lit_transfusion.prepare.worker_pool import TooManySkipped, in_workers
from lit_transfusion.progress import Progress
from lit_transfusion.whole_file import whole_file


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
        all_made = in_workers(maker.make, missing, num_workers, prefetch=1, in_order=False)
    else:
        all_made = encoded_shards(maker, missing, codec, num_workers)
    with Progress() as progress:
        done = maker.done.value
        progress.add("preparing", len(maker.order), done, unit="pictures", count=lambda: maker.done.value)
        for made in all_made:
            skipped += made.skipped
            check_skipped(skipped, total, max_skipped)


def check_skipped(skipped: list[Skipped], total: int, max_skipped: float) -> None:
    """Stop with an error if too many pictures are skipped."""
    if len(skipped) > max_skipped * total:
        raise TooManySkipped(
            f"{len(skipped)} of {total} pictures cannot be used, more than the share --max_skipped {max_skipped:g} "
            f"allows: {format_skipped(skipped)}; fix them and give a new folder, or raise --max_skipped "
            "to resume"
        )


def finish(maker: ShardMaker, settings: dict[str, Any]) -> None:
    """Write the index of all shards, and report what was made and skipped."""
    folder = maker.folder
    shards = [maker.made(shard) for shard in range(len(maker))]
    skipped = [*maker.reader.left_out, *(one for made in shards for one in made.skipped)]
    if len(skipped) == len(maker.order) + len(maker.reader.left_out):
        raise InputError(f"none of the pictures can be used: {format_skipped(skipped)}; fix the input")
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
