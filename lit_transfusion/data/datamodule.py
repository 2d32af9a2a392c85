"""The LightningDataModule. It makes packed batches from a source, a tokenizer, a codec and a recipe."""

import logging
from collections.abc import Sequence
from functools import cached_property

import lightning
from torch.utils.data import DataLoader

from lit_transfusion.data.document_set import DocumentSet
from lit_transfusion.data.loader import PackedLoader
from lit_transfusion.data.packing import SquarePatches, room_for_text
from lit_transfusion.data.recipe import Recipe
from lit_transfusion.data.sources.base import Source
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.data.types import Example, ExampleBatch, Skipped
from lit_transfusion.errors import InputError
from lit_transfusion.latents import Codec

log = logging.getLogger(__name__)


class TransfusionData(lightning.LightningDataModule):
    """Data of a run: captioned pictures, edits and texts, as documents packed into rows of equal length.

    Args:
        source: Where the examples come from; a Mix combines several sources.
        codec: Converts pictures to the latents that are diffused, and back.
        recipe: How an example becomes a document: order, noise caps, dropout for guidance.
        image_size: Side of the square pictures, in pixels.
        keep_ratio: Keep the aspect ratio of each picture, instead of its middle square. Its sides are then multiples of
            the side of a patch, its area is at most that of the square, and a batch contains many sizes.
        patch_size: Side of a patch, in latent pixels (set by the model's patcher).
        sequence_length: Positions L of a row. Longer rows waste less on padding. An example's images and text must fit.
        batch_size: Rows B of a batch on each device.
        tokenizer_model: A SentencePiece `tokenizer.model`, such as Llama 2's or one made by `train_tokenizer`, a
            `tokenizer.json` of the tokenizers library, a folder that contains one of them, or owner/name on the Hugging
            Face hub; null trains one on the captions.
        vocab_size: Largest vocabulary of a tokenizer that is trained here, with its 256 bytes and 3 controls.
        character_coverage: Share of all characters that get their own pieces in a tokenizer that is trained here, in
            [0.98, 1]; null chooses it (see `Tokenizer.train`).
        num_workers: Processes that make documents; 0 makes them in the training process. It does not change batches.
        open_rows: Rows that packing keeps open at the same time; more rows need less padding.
        seed: Seed of order, caption choice and dropout; the command line uses --seed_everything unless it is set.
        max_skipped: Largest share of unusable examples of a source in an epoch of training, in [0, 1]. When more are
            skipped, the run stops and reports the reasons.
    """

    def __init__(
        self,
        source: Source,
        codec: Codec,
        recipe: Recipe = Recipe(),
        image_size: int = 64,
        keep_ratio: bool = False,
        patch_size: int = 2,
        sequence_length: int = 1024,
        batch_size: int = 4,
        tokenizer_model: str | None = None,
        vocab_size: int = 512,
        character_coverage: float | None = None,
        num_workers: int = 0,
        open_rows: int = 16,
        seed: int = 0,
        max_skipped: float = 0.05,
    ) -> None:
        super().__init__()
        self.source = source
        self.codec = codec
        self.recipe = recipe
        self.image_size = image_size
        self.keep_ratio = keep_ratio
        self.patch_size = patch_size if codec.num_codes is None else 1  # a code is a token
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.tokenizer_model = tokenizer_model
        self.vocab_size = vocab_size
        self.character_coverage = character_coverage
        self.num_workers = num_workers
        self.open_rows = open_rows
        self.seed = seed
        self.max_skipped = max_skipped
        self._check()
        source.set_multiple_of(self.patches.side if keep_ratio else None)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The given tokenizer, or one trained on the captions of the training split."""
        if self.tokenizer_model is not None:
            return Tokenizer.from_file(self.tokenizer_model)
        texts = self.source.split("train").captions()
        return Tokenizer.train(texts, self.vocab_size, self.source.has_texts, self.character_coverage)

    @property
    def latent_channels(self) -> int:
        return self.codec.latent_channels

    @property
    def patches(self) -> SquarePatches:
        """Counts the patches of an image."""
        return SquarePatches(self.patch_size, self.codec.downscale)

    @property
    def patches_per_image(self) -> int:
        """Number of patches of a square picture; with `keep_ratio`, other pictures have at most this many."""
        return self.patches.of_pixels(self.image_size, self.image_size)

    def train_dataloader(self) -> PackedLoader:
        return self._loader(self.source.split("train"), endless=True)

    def val_dataloader(self) -> PackedLoader | list[PackedLoader]:
        """A loader over the held-out examples; for a mix, one loader for each source that has held-out examples."""
        parts = {name: part.split("val") for name, part in self.source.parts.items()}
        for name, part in parts.items():
            if not len(part) and (self.trainer is None or self.trainer.is_global_zero):
                log.warning("no examples of %s are held out: no validation on it", name or "the source")
        loaders = [self._loader(part, endless=False, name=name) for name, part in parts.items() if len(part)]
        return loaders[0] if len(loaders) == 1 else loaders

    def test_dataloader(self) -> PackedLoader | list[PackedLoader]:
        loaders = self.val_dataloader()
        if loaders == []:
            raise InputError(
                f"data.source: {type(self.source).__name__} has no held-out examples to test on; raise val_fraction"
            )
        return loaders

    def predict_dataloader(self) -> DataLoader:
        """Held-out pictures with one caption each, without the pictures that cannot be read."""
        source = self.source.pictures
        if source.images_per_example != 1:
            fix = "use a source with captioned pictures"
            if source.images_per_example > 1:
                fix += ", or the callback ShowEdits to see held-out edits during training"
            raise InputError(
                f"data.source: predict needs captioned pictures, but {type(source).__name__} yields none; {fix}"
            )
        return DataLoader(source.split("val"), batch_size=32, collate_fn=collate_examples)

    def _loader(self, source: Source, endless: bool, name: str = "") -> PackedLoader:
        documents = DocumentSet(
            source,
            self.recipe,
            self.tokenizer,
            self.patches,
            self.patches_per_image,
            self.sequence_length,
            self.seed,
        )
        # Each rank trains on its share of the documents. Held-out documents are few, so every rank reads all of them:
        # losses are equal without communication, and no rank waits for another that has no more documents.
        shared = endless and self.trainer is not None
        return PackedLoader(
            documents,
            self.batch_size,
            self.codec.latent_shape(self.image_size),
            self.open_rows,
            self.num_workers,
            endless,
            rank=self.trainer.global_rank if shared else 0,
            world_size=self.trainer.world_size if shared else 1,
            name=name,
            max_skipped=self.max_skipped,
            batches_per_step=self.trainer.accumulate_grad_batches if shared else 1,
        )

    def _check(self) -> None:
        for name, least in (("batch_size", 1), ("open_rows", 1), ("num_workers", 0), ("patch_size", 1)):
            if getattr(self, name) < least:
                raise InputError(f"data.{name} {getattr(self, name)} is less than {least}; use {least} or more")
        if self.character_coverage is not None and not 0.98 <= self.character_coverage <= 1:
            raise InputError(
                f"data.character_coverage {self.character_coverage} is invalid; use a value from 0.98 to 1"
            )
        if not 0 <= self.max_skipped <= 1:
            raise InputError(f"data.max_skipped {self.max_skipped} is invalid; use a share from 0 to 1")
        if self.source.image_size != self.image_size:
            raise InputError(
                f"data.image_size is {self.image_size}, but data.source yields pictures of {self.source.image_size}; "
                "use the same size"
            )
        _, height, width = self.codec.latent_shape(self.image_size)
        if height % self.patch_size or width % self.patch_size:
            raise InputError(
                f"data.image_size {self.image_size} gives latents of {height}x{width}, "
                f"which the patcher's patch_size {self.patch_size} does not divide; change one of them"
            )
        if self.codec.num_codes is not None and self.recipe.clean_copies:
            raise InputError(
                "data.recipe.clean_copies true is for images with noise, but the codes of data.codec "
                f"{type(self.codec).__name__} are tokens without noise; use false"
            )
        self._check_encodings()
        num_images = self.source.images_per_example
        patches = self.patches_per_image * self.recipe.copies_per_image
        room = room_for_text(self.sequence_length, patches, num_images)
        if room < 1:
            raise InputError(
                f"data.sequence_length {self.sequence_length} is too short for {num_images} x {patches} "
                f"patches with their markers and one text token; use at least {self.sequence_length - room + 1}"
            )

    def _check_encodings(self) -> None:
        """Check that encoded pictures come from this codec."""
        parts = self.source.parts
        encodings = {name: part.encoding for name, part in parts.items() if part.encoding}
        if not encodings:
            return
        own = self.codec.identity()
        for name, encoding in encodings.items():
            key = f"data.source.init_args.{f'sources.{name}.init_args.' if name else ''}latents"
            if encoding.identity != own:
                raise InputError(
                    f"{encoding.path} contains latents of the codec {encoding.identity}, but data.codec is {own}; set "
                    f"data.codec to {encoding.codec}, or {key} to false to encode the pictures again"
                )


def collate_examples(examples: Sequence[Example | Skipped]) -> ExampleBatch:
    """Collect the examples that can be used."""
    usable = [example for example in examples if isinstance(example, Example)]
    if not usable:
        raise InputError(
            f"none of {len(examples)} held-out pictures can be used (first: {examples[0].name}, {examples[0].reason}); "
            "fix the files"
        )
    return ExampleBatch([e.image for e in usable], [e.captions[0] for e in usable])
