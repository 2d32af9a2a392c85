"""Makes shards with the moments of a codec: other processes read the pictures, this one encodes them.

A codec is large, and may be on a GPU that no process forked from this one could use. So there is one, here, with all
threads of the CPU or with the GPU, and it is given the same batches however many processes read.
"""

import logging
from collections.abc import Iterable, Iterator
from inspect import signature
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_transfusion.data.images import to_unit_range
from lit_transfusion.data.shards.folder import decoded
from lit_transfusion.data.types import Skipped
from lit_transfusion.data.worker_feed import as_it_is
from lit_transfusion.errors import InputError
from lit_transfusion.latents import Codec
from lit_transfusion.prepare.maker import Made, Picture, ShardMaker
from lit_transfusion.serialization import describe

PIXELS_AT_ONCE = 2**20  # of mirror images, too: 16 images of 256 x 256, half a GB for each tensor of 128 channels
MOST_AT_ONCE = 64  # pictures

log = logging.getLogger(__name__)


def record(codec: Codec, image_size: int) -> dict[str, Any]:
    """What the index says of a codec.

    Raises:
        InputError: Nothing that it makes of a picture can be kept.
    """
    cls = type(codec)
    if cls.moments is Codec.moments:
        raise InputError(
            f"--codec {cls.__name__} encodes in one step, of which nothing can be kept: give it moments() and sample() "
            "in place of encode(), or leave --codec out"
        )
    shape = codec.moments_shape(image_size)
    if shape == (3, image_size, image_size):  # which training could not tell from pictures either
        raise InputError(f"--codec {cls.__name__} makes nothing of a picture that shards do not hold; leave it out")
    said = describe(codec)
    defaults = {name: parameter.default for name, parameter in signature(cls.__init__).parameters.items()}
    return {
        "identity": codec.identity(),
        "class_path": cls.__name__ if cls.__module__.startswith("lit_transfusion.") else said["class_path"],
        "init_args": {name: value for name, value in said["init_args"].items() if value != defaults[name]},
        "shape": [2, *shape],
    }


def encoded_shards(maker: ShardMaker, shards: list[int], codec: Codec, num_workers: int) -> Iterator[Made | str]:
    """What was made of each of these shards, one after the other."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    codec.to(device)
    log.info("encoding on %s", device)
    pictures = iter(
        DataLoader(
            Pictures(maker),
            sampler=chain.from_iterable(map(maker.part, shards)),
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=16 if num_workers else None,
            collate_fn=as_it_is,
        )
    )
    for shard in shards:
        yield maker.make(shard, with_moments(islice(pictures, len(maker.part(shard))), codec, maker.image_size))


class Pictures(Dataset):
    """Position in the order → the picture and its pixels, uint8 (3, S, S), as a run will read them.

    Errors are said in words, as by ShardMaker.
    """

    def __init__(self, maker: ShardMaker) -> None:
        self.maker = maker

    def __getitem__(self, number: int) -> tuple[Picture, Tensor] | Skipped | str:
        try:
            picture = self.maker.read(number)
        except InputError as error:
            return str(error)
        return picture if isinstance(picture, Skipped) else (picture, decoded(picture.file))


def with_moments(
    pictures: Iterable[tuple[Picture, Tensor] | Skipped | str], codec: Codec, image_size: int
) -> Iterator[Picture | Skipped]:
    """The pictures in their order, each with its moments."""
    at_once = min(max(PIXELS_AT_ONCE // (2 * image_size**2), 1), MOST_AT_ONCE)
    pictures = iter(pictures)
    while batch := list(islice(pictures, at_once)):
        for item in batch:
            if isinstance(item, str):
                raise InputError(item)
        pixels = [item[1] for item in batch if not isinstance(item, Skipped)]
        moments = iter(moments_of(torch.stack(pixels), codec) if pixels else ())
        for item in batch:
            yield item if isinstance(item, Skipped) else finite(item[0]._replace(moments=next(moments)))


def moments_of(pixels: Tensor, codec: Codec) -> Tensor:
    """Of uint8 (n, 3, S, S) and their mirror images: float16 (n, 2, K, h, w), the same whenever it is asked."""
    device = next(chain(codec.parameters(), codec.buffers()), pixels).device
    images = to_unit_range(pixels.to(device))
    pairs = torch.stack([images, images.flip(-1)], 1).flatten(0, 1)  # (2n, 3, S, S)
    try:
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, deterministic=True):
            moments = codec.moments(pairs)  # (2n, K, h, w)
    except torch.OutOfMemoryError:
        raise InputError(
            f"{device} has too little free memory to encode {len(pairs)} images at once: free some, or set "
            'CUDA_VISIBLE_DEVICES="" to encode on the CPU'
        ) from None
    return moments.unflatten(0, (-1, 2)).to(torch.float16).cpu()


def finite(picture: Picture) -> Picture | Skipped:
    return picture if picture.moments.isfinite().all() else Skipped(picture.name, "encoded to numbers beyond float16")
