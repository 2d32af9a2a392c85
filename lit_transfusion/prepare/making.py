"""Makes the shards that a folder lacks, in several processes."""

from lit_transfusion.data.types import Skipped, format_reasons
from lit_transfusion.latents import Codec
from lit_transfusion.prepare.encoding import encoded_shards
from lit_transfusion.prepare.maker import ShardMaker
from lit_transfusion.prepare.report import count_reasons
from lit_transfusion.prepare.worker_pool import TooManySkipped, in_workers
from lit_transfusion.progress import Progress


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
            f"allows: {format_reasons(count_reasons(skipped))}; fix them and give a new folder, or raise --max_skipped "
            "to resume"
        )
