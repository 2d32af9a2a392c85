"""What `prepare` prints: what was made, what was skipped, and a page of pictures."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lit_transfusion.data.images import to_unit_range
from lit_transfusion.data.shards import ShardFolder
from lit_transfusion.data.shards.layout import PREVIEW, SKIPPED
from lit_transfusion.generation.pictures import captioned_grid
from lit_transfusion.whole_file import whole_file
from lit_transfusion.wording import counted

PREVIEWED = 32  # pictures in the preview


def report(folder: Path, index: dict[str, Any]) -> None:
    """Print the result, with the options to train on it."""
    shards = index["shards"]
    megabytes = sum(shard["bytes"] for shard in shards) / 1e6
    side = index["image_size"]
    codec = index.get("codec")
    made_by, options = "", f"--data.source Shards --data.source.init_args.path {folder} --data.image_size {side}"
    size = f"{side} x {side}"
    if "multiple_of" in index:
        size = f"any aspect ratio and at most the area of {size}"
        options += " --data.keep_ratio true"
    if codec:
        made_by = f", encoded by {codec['identity']},"
        options += f" --data.codec {codec['class_path']}"
        options += "".join(f" --data.codec.init_args.{name} {value}" for name, value in codec["init_args"].items())
    print(
        f"{folder}: {counted(index['num_examples'], 'picture')} of {size}{made_by} in "
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
        pictures = [to_unit_range(sample.pixels) for sample in samples]
        with whole_file(path) as file:
            captioned_grid(pictures, [sample.captions[0] for sample in samples]).save(file, "PNG")
    return path
