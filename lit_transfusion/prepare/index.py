"""Writes the index of all shards, which finishes a folder."""

import json
import shutil
from typing import Any

import numpy as np

from lit_transfusion.data.digests import SamePictures
from lit_transfusion.data.shards.layout import INDEX, KIND, MOMENTS, MOMENTS_ROW, PREPARING, ROW, ROWS, SKIPPED
from lit_transfusion.data.types import format_reasons
from lit_transfusion.errors import InputError
from lit_transfusion.prepare.maker import ShardMaker
from lit_transfusion.prepare.report import count_reasons, report
from lit_transfusion.whole_file import whole_file


def finish(maker: ShardMaker, settings: dict[str, Any]) -> None:
    """Write the index of all shards, and report what was made and skipped."""
    folder = maker.folder
    shards = [maker.made(shard) for shard in range(len(maker))]
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
