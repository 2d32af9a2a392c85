"""Prepared data: pictures of one size with their captions in tars, and an index that finds each of them.

    DIR/00000.tar, …    members 000000000.webp, 000000000.json, 000000001.webp, …: tars as WebDataset reads them
    DIR/moments.npy     only if the pictures were encoded too: the sizes of their moments, row by row as in index.npy
    DIR/index.npy       a row for each picture: where it lies. Sorted by the hash of its key; memory-mapped
    DIR/index.json      version, counts, image_size, what it was made of, reasons for skips, checksums of the tars
    DIR/preview.png     some of the pictures with their captions, to look at
    DIR/skipped.jsonl   what was not used and why: {"name": …, "reason": …} a line
    DIR/.preparing/     while it is being made: what is known of the tars that are finished

A .json member is {"key": …, "captions": […]}. The key is the name that the picture had where it came from; as members
are numbered, it may be any text. With a codec, a third member 000000000.moments.npy follows, (2, K, h, w) float16: the
moments (latents/base.py) of the picture and of its mirror image. A run reads the first two members or the last two, and
code that knows nothing of moments reads such a folder as one of pictures.
"""

from lit_transfusion.data.shards.folder import ShardFolder
from lit_transfusion.data.shards.layout import FORMATS
from lit_transfusion.data.shards.writer import ShardWriter

__all__ = ["FORMATS", "ShardFolder", "ShardWriter"]
