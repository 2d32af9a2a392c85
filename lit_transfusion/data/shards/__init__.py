"""Prepared data: pictures (squares of one size, or of any ratio) and their captions in tars, with an index of all.

    DIR/00000.tar, …    members 000000000.webp, 000000000.json, 000000001.webp, …: tars as WebDataset reads them
    DIR/moments.npy     only with a codec: the sizes of the moments, in the row order of index.npy
    DIR/index.npy       one row for each picture: its position. Sorted by `fraction`; memory-mapped
    DIR/index.json      version, counts, image_size, the input, reasons for skips, checksums of the tars
    DIR/preview.png     some of the pictures with their captions
    DIR/skipped.jsonl   unused inputs, one {"name": …, "reason": …} a line
    DIR/.preparing/     only during preparation: records of the finished tars

A .json member is {"key": …, "captions": […]}. The key is the name of the picture in the input; it may be any text,
because members have numbers as names. With a codec, a third member 000000000.moments.npy follows, (2, K, h, w) float16:
the moments (latents/base.py) of the picture and of its mirror image. A run reads the first two members or the last two.
Code without support for moments reads such a folder as one of pictures.
"""

from lit_transfusion.data.shards.folder import ShardFolder
from lit_transfusion.data.shards.layout import FORMATS
from lit_transfusion.data.shards.writer import ShardWriter

__all__ = ["FORMATS", "ShardFolder", "ShardWriter"]
