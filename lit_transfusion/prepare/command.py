"""The command `prepare`: it converts captioned pictures to shards."""

from pathlib import Path
from typing import Literal

from lit_transfusion.errors import InputError
from lit_transfusion.latents import Codec
from lit_transfusion.prepare import Kind


def prepare(
    input: list[str],
    output: str,
    kind: Kind | None = None,
    image_size: int = 64,
    multiple_of: int | None = None,
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
        multiple_of: Keep the aspect ratio of each picture, for runs with data.keep_ratio. Its sides are then multiples
            of this many pixels, the side of a patch (patch_size times the codec's downscale factor), and its area is at
            most image_size². Null crops the middle square.
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
    check(image_size, multiple_of, shard_size, max_skipped, num_workers)

    # Imported here, because `--help` needs none of them.
    from lit_transfusion.data.shards.layout import INDEX, VERSION
    from lit_transfusion.prepare.digests import input_contents
    from lit_transfusion.prepare.encoding import describe_codec
    from lit_transfusion.prepare.maker import ShardMaker
    from lit_transfusion.prepare.making import finish, make_missing
    from lit_transfusion.prepare.output_folder import check_finished, check_or_write_settings, locked_folder
    from lit_transfusion.prepare.readers import open_reader
    from lit_transfusion.prepare.worker_pool import explained_interruptions, workers

    options = {"metadata": metadata, "pictures": pictures, "split": split}
    options |= {"image_column": image_column, "caption_column": caption_column}
    given = {name: value for name, value in options.items() if value is not None}
    kind, reader = open_reader(input, kind, given)
    settings = {
        "version": VERSION,
        "input": {"kind": kind, "paths": input, **given},
        "image_size": image_size,
        **({} if multiple_of is None else {"multiple_of": multiple_of}),
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
            maker = ShardMaker(
                reader, contents, folder, image_size, multiple_of, format, shard_size, seed, codec is not None
            )
            most = len(maker) if codec is None else len(maker.order)
            make_missing(maker, max_skipped, workers(num_workers, most), codec)
        finish(maker, settings)


def check(
    image_size: int, multiple_of: int | None, shard_size: int, max_skipped: float, num_workers: int | None
) -> None:
    """Check the numeric options."""
    if multiple_of is not None and (multiple_of < 1 or image_size % multiple_of):
        raise InputError(f"multiple_of {multiple_of} does not divide image_size {image_size}; use a divisor of it")
    for name, value, least in (("image_size", image_size, 1), ("shard_size", shard_size, 1)):
        if value < least:
            raise InputError(f"{name} {value} is less than {least}; use {least} or more")
    if num_workers is not None and num_workers < 0:
        raise InputError(f"num_workers {num_workers} is less than 0; use 0 or more")
    if not 0 <= max_skipped <= 1:
        raise InputError(f"max_skipped {max_skipped} is invalid; use a share from 0 to 1")
