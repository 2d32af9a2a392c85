"""Makes the documents of an example, in the worker processes."""

import torch
from torch.utils.data import Dataset

from lit_transfusion.data.packing import FlatDocument, PatchCount, flatten, room_for_text
from lit_transfusion.data.permutation import hash_of
from lit_transfusion.data.recipe import Recipe
from lit_transfusion.data.sources.base import Source
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.data.types import Skipped
from lit_transfusion.data.worker_feed import Key


class DocumentSet(Dataset):
    """Maps (epoch, index) to the documents of that example in that epoch: one, or several for a long text.

    The same key always gives the same documents.
    """

    def __init__(
        self,
        source: Source,
        recipe: Recipe,
        tokenizer: Tokenizer,
        count_patches: PatchCount,
        patches_per_image: int,  # of the largest image
        length: int,
        seed: int,
    ) -> None:
        self.source = source
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.count_patches = count_patches
        self.patches_per_image = patches_per_image
        self.length = length
        self.seed = seed

    def __getitem__(self, key: Key) -> list[FlatDocument] | Skipped:
        example = self.source[key[1]]
        if isinstance(example, Skipped):
            return example
        generator = torch.Generator().manual_seed(hash_of(self.seed, *key))
        patches = self.patches_per_image * self.recipe.copies_per_image
        room = room_for_text(self.length, patches, example.num_images)
        documents = self.recipe.documents(example, self.tokenizer, room, generator)
        return [flatten(document, self.tokenizer, self.count_patches) for document in documents]
