"""The memory of a process and its workers does not grow with the data, after hundreds of batches."""

import hashlib
import json
import multiprocessing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_transfusion.data.document_set import DocumentSet
from lit_transfusion.data.loader import PackedLoader
from lit_transfusion.data.recipe import Recipe
from lit_transfusion.data.shards import ShardWriter, layout
from lit_transfusion.data.shards.writer import Picture, picture_file
from lit_transfusion.data.sources import Shards, TextCorpus

SIDE, LENGTH, BATCHES = 8, 64, 300
SHARD_SIZE = 2000
MEGABYTE = 2**20


def shards(folder: Path, count: int) -> Shards:
    """Shards of noise pictures, as `prepare` writes them."""
    folder.mkdir()
    pixels = torch.randint(256, (1 + count // 100, 3, SIDE, SIDE), dtype=torch.uint8)
    pictures = [picture_file(one, "png") for one in pixels]
    listed, rows = [], []
    for shard, start in enumerate(range(0, count, SHARD_SIZE)):
        with (folder / layout.tar_name(shard)).open("wb") as file:
            writer = ShardWriter(file, shard, "png")
            for number in range(start, min(start + SHARD_SIZE, count)):
                digest = hashlib.sha256(str(number).encode()).digest()[:16]  # as if no two pictures were alike
                picture = pictures[number % len(pictures)]
                name = f"{number}.png"
                writer.add(number, Picture(name, name, picture, (f"picture {number}",), digest, digest))
            writer.close()
        listed.append({"name": layout.tar_name(shard), "bytes": writer.size})
        rows.append(writer.rows[list(layout.ROW.names)].astype(layout.ROW))
    np.save(folder / layout.ROWS, np.sort(np.concatenate(rows), order="fraction"))
    index = {"kind": layout.KIND, "version": layout.VERSION, "image_size": SIDE, "num_examples": count}
    (folder / layout.INDEX).write_text(json.dumps({**index, "shards": listed}))
    return Shards(str(folder))


def texts(folder: Path, count: int) -> TextCorpus:
    folder.mkdir()
    with (folder / "texts.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": f"text {number} of some words"}) + "\n" for number in range(count))
    return TextCorpus(str(folder), SIDE)


def own_memory(pid: int) -> int:
    """Anonymous memory of a process in bytes; shared pages count in proportion to the number of processes."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
    return 1024 * next(int(size) for name, size, *_ in lines if name == "Pss_Anon:")


def train(make, folder, count, tokenizer, sender) -> None:
    """Hundreds of batches, in a process that starts with what all of them start with."""
    torch.set_num_threads(1)
    documents = DocumentSet(make(folder, count).split("train"), Recipe(), tokenizer, lambda image: 4, 4, LENGTH, seed=0)
    batches = iter(PackedLoader(documents, 4, (3, SIDE, SIDE), num_workers=2))
    assert len(list(islice(batches, BATCHES))) == BATCHES
    pids = [multiprocessing.current_process().pid, *(child.pid for child in multiprocessing.active_children())]
    assert len(pids) == 3
    sender.send(sum(map(own_memory, pids)))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("make", [shards, texts])
def test_ten_times_the_data_takes_no_more_memory(make, tokenizer, tmp_path):
    context, used = multiprocessing.get_context("fork"), {}
    for count in (10_000, 100_000):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=train, args=(make, tmp_path / f"{count}", count, tokenizer, sender))
        process.start()
        sender.close()
        used[count] = receiver.recv() / MEGABYTE
        process.join()
    print({count: f"{megabytes:.1f} MB" for count, megabytes in used.items()})
    assert used[100_000] < used[10_000] + 20
