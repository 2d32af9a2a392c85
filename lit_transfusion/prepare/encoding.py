"""Makes shards with the moments of a codec: workers read the pictures, the main process encodes them.

A codec is large, and may be on a GPU, which forked processes cannot use. So only the main process has it, with all CPU
threads or the GPU. The batches that it encodes do not depend on the number of workers.
"""

import logging
from collections.abc import Iterable, Iterator
from functools import partial
from inspect import signature
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from lit_transfusion.data.images import map_by_size, to_unit_range
from lit_transfusion.data.shards.folder import decode_picture
from lit_transfusion.data.shards.writer import Picture
from lit_transfusion.data.types import Skipped
from lit_transfusion.errors import InputError
from lit_transfusion.latents import Codec
from lit_transfusion.prepare.maker import FinishedShard, ShardMaker
from lit_transfusion.prepare.worker_pool import in_workers
from lit_transfusion.serialization import describe

PIXELS_AT_ONCE = 2**20  # with mirror images: 16 images of 256 x 256, 0.5 GB for each tensor of 128 channels
MOST_AT_ONCE = 64  # pictures of a batch

log = logging.getLogger(__name__)


def describe_codec(codec: Codec, image_size: int) -> dict[str, Any]:
    """The entry of a codec in index.json.

    Raises:
        InputError: The codec has no moments that can be saved.
    """
    cls = type(codec)
    if cls.moments is Codec.moments:
        raise InputError(
            f"--codec {cls.__name__} has no moments to save, only encode(): implement moments() and sample() instead, "
            "or remove --codec"
        )
    shape = codec.moments_shape(image_size)
    if shape == (3, image_size, image_size):
        raise InputError(
            f"--codec {cls.__name__} does not change pictures, which shards contain already; remove --codec"
        )
    described = describe(codec)
    defaults = {name: parameter.default for name, parameter in signature(cls.__init__).parameters.items()}
    return {
        "identity": codec.identity(),
        "class_path": cls.__name__ if cls.__module__.startswith("lit_transfusion.") else described["class_path"],
        "init_args": {name: value for name, value in described["init_args"].items() if value != defaults[name]},
        "shape": [2, *shape],
    }


def encoded_shards(maker: ShardMaker, shards: list[int], codec: Codec, num_workers: int) -> Iterator[FinishedShard]:
    """Make the given shards one by one, and yield the record of each."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    codec.to(device)
    log.info("encoding on %s", device)
    numbers = chain.from_iterable(map(maker.part, shards))
    pictures = in_workers(partial(read, maker), numbers, num_workers, prefetch=16)
    for shard in shards:
        yield maker.make(shard, with_moments(islice(pictures, len(maker.part(shard))), codec, maker.image_size))


def read(maker: ShardMaker, number: int) -> tuple[Picture, Tensor] | Skipped:
    """The picture at a position in the order, and its pixels, uint8 (3, height, width), as a run reads them."""
    picture = maker.read(number)
    return picture if isinstance(picture, Skipped) else (picture, decode_picture(picture.file))


def with_moments(
    pictures: Iterable[tuple[Picture, Tensor] | Skipped], codec: Codec, image_size: int
) -> Iterator[Picture | Skipped]:
    """Yield the pictures in their order, each with its moments."""
    at_once = min(max(PIXELS_AT_ONCE // (2 * image_size**2), 1), MOST_AT_ONCE)
    pictures = iter(pictures)
    while batch := list(islice(pictures, at_once)):
        read = [item for item in batch if not isinstance(item, Skipped)]
        moments = iter(map_by_size(partial(moments_of, codec=codec), [pixels for _, pixels in read]))
        for item in batch:
            yield item if isinstance(item, Skipped) else skip_nonfinite(item[0]._replace(moments=next(moments)))


def moments_of(pixels: Tensor, codec: Codec) -> Tensor:
    """Encode uint8 (n, 3, height, width) and their mirror images to moments (n, 2, K, h, w) in float16.

    The result is always the same.
    """
    device = next(chain(codec.parameters(), codec.buffers()), pixels).device
    images = to_unit_range(pixels.to(device))
    pairs = torch.stack([images, images.flip(-1)], 1).flatten(0, 1)  # (2n, 3, height, width)
    try:
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, deterministic=True):
            moments = codec.moments(pairs)  # (2n, K, h, w)
    except torch.OutOfMemoryError:
        raise InputError(
            f"{device} has too little free memory to encode {len(pairs)} images in a batch; free some, or set "
            'CUDA_VISIBLE_DEVICES="" to encode on the CPU'
        ) from None
    return moments.unflatten(0, (-1, 2)).to(torch.float16).cpu()


def skip_nonfinite(picture: Picture) -> Picture | Skipped:
    """Skip a picture whose moments are NaN or infinite."""
    return picture if picture.moments.isfinite().all() else Skipped(picture.name, "latents beyond the range of float16")
