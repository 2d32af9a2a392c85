"""The data of an autoencoder: batches of pictures from any source, without their captions."""

from typing import Any, NamedTuple

import lightning
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lit_transfusion.data.loader import PackedLoader, Rows
from lit_transfusion.data.sources.base import Source
from lit_transfusion.data.types import EditExample, Example, Skipped
from lit_transfusion.data.worker_feed import Key
from lit_transfusion.errors import InputError, check_at_least


class Picture(NamedTuple):
    """A picture in place of a document. It has one position, so that a row of one position is one picture."""

    image: Tensor  # (3, H, W) float32 in [-1, 1]
    tokens: tuple[int, ...] = (0,)
    cut: bool = False


class PictureSet(Dataset):
    """Maps (epoch, index) to the pictures of that example: one, or both of an edit."""

    length = 1  # positions of a row

    def __init__(self, source: Source, seed: int) -> None:
        self.source = source
        self.seed = seed  # of the order

    def __getitem__(self, key: Key) -> list[Picture] | Skipped:
        match self.source[key[1]]:
            case Example(image=Tensor() as image):
                return [Picture(image)]
            case EditExample(input_image=before, output_image=after):
                return [Picture(before), Picture(after)]
            case Skipped() as skipped:
                return skipped
        return Skipped(f"example {key[1]}", "has no picture")


class PictureLoader(PackedLoader):
    """Iterates over batches of pictures (N, 3, H, W). Order, state and resuming are those of `PackedLoader`."""

    def collate_step(self, step: list[Rows]) -> list[Any]:
        return [torch.stack([picture.image for row in rows for _, picture in row]) for rows in step]


class PictureData(lightning.LightningDataModule):
    """Pictures of a source, for an autoencoder.

    Args:
        source: Where the pictures come from; captions are ignored. A Mix combines several sources.
        image_size: Side of the square pictures, in pixels.
        batch_size: Pictures in a batch on each device.
        num_workers: Processes that read pictures; 0 reads them in the training process. It does not change batches.
        seed: Seed of the order; the command line uses --seed_everything unless it is set.
        max_skipped: Largest share of unusable pictures of a source in an epoch of training, in [0, 1]. When more are
            skipped, the run stops and reports the reasons.
    """

    def __init__(
        self,
        source: Source,
        image_size: int = 64,
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
        max_skipped: float = 0.05,
    ) -> None:
        super().__init__()
        self.source = source
        self.image_size = image_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.max_skipped = max_skipped
        check_at_least("data.batch_size", batch_size)
        check_at_least("data.num_workers", num_workers, 0)
        for name, part in source.parts.items():
            key = f"data.source{f'.init_args.sources.{name}' if name else ''}"
            if not part.images_per_example:
                raise InputError(f"{key}: {type(part).__name__} yields texts; an autoencoder needs pictures")
            if part.encoding:
                raise InputError(f"{key}: {part.encoding.path} yields latents; set its option latents to false")

    def train_dataloader(self) -> PictureLoader:
        return self._loader("train")

    def val_dataloader(self) -> PictureLoader | list[PictureLoader]:
        """All held-out pictures, in order; an empty list if the source has none."""
        loader = self._loader("val")
        return loader if len(loader.documents.source) else []

    def _loader(self, split: Any) -> PictureLoader:
        # Held-out pictures are few, so every rank reads all of them, as TransfusionData does.
        shared = split == "train" and self.trainer is not None
        return PictureLoader(
            PictureSet(self.source.split(split), self.seed),
            self.batch_size,
            (3, self.image_size, self.image_size),
            open_rows=1,
            num_workers=self.num_workers,
            endless=split == "train",
            rank=self.trainer.global_rank if shared else 0,
            world_size=self.trainer.world_size if shared else 1,
            max_skipped=self.max_skipped,
            batches_per_step=self.trainer.accumulate_grad_batches if shared else 1,
        )
