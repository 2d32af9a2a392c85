"""The data module: errors before anything is made, and the use of its arguments."""

from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from lit_transfusion.data.datamodule import TransfusionData
from lit_transfusion.data.sources import Source
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.data.types import Example, Skipped
from lit_transfusion.errors import InputError
from lit_transfusion.latents import Codec, Pixels
from lit_transfusion.shapes.edits import ShapeEdits
from lit_transfusion.shapes.source import Shapes


class Half(Codec):
    """A codec that halves the sides. (A VAE divides them by 8.)"""

    latent_channels = 4
    downscale = 2


def data(**options) -> TransfusionData:
    options = dict(image_size=16, patch_size=4, sequence_length=64, batch_size=2, vocab_size=300) | options
    source = options.pop("source", None) or Shapes(options["image_size"], num_examples=40, num_val_examples=20)
    return TransfusionData(source, options.pop("codec", Pixels()), **options)


# Errors


@pytest.mark.parametrize("sequence_length", [1, 16, 20])
def test_row_shorter_than_an_image_names_key_and_numbers(sequence_length):
    needed = 16 + 5  # BOS, one token of a caption, BOI, EOI, EOS
    with pytest.raises(
        InputError, match=rf"data\.sequence_length {sequence_length} .* 16 patches .*at least {needed}$"
    ):
        data(sequence_length=sequence_length)


def test_shortest_row_that_is_accepted_holds_image_and_caption():
    batch = next(iter(data(sequence_length=21).train_dataloader()))
    assert batch.tokens.shape == (2, 21) and (batch.image_ids >= 0).any()


def test_both_images_of_an_edit_have_to_fit():
    edits = ShapeEdits(16, num_examples=40, num_val_examples=20)
    needed = 2 * (16 + 2) + 3  # BOS, one token of an instruction, EOS
    with pytest.raises(InputError, match=rf"sequence_length {needed - 1} .* 2 x 16 patches .*at least {needed}$"):
        data(source=edits, sequence_length=needed - 1)
    batch = next(iter(data(source=edits, sequence_length=needed).train_dataloader()))
    assert batch.tokens.shape == (2, needed) and batch.num_images == 4
    (group,) = batch.image_groups
    assert group.learned.tolist() == [1, 3] and group.max_timesteps[::2].tolist() == [0, 0]


def test_edits_are_not_for_prediction():
    with pytest.raises(InputError, match=r"data\.source.*ShapeEdits.*ShowEdits"):
        data(source=ShapeEdits(16)).predict_dataloader()


@pytest.mark.parametrize("patch_size", [3, 5, 32])
def test_image_that_patches_do_not_divide_names_key_and_numbers(patch_size):
    with pytest.raises(InputError, match=rf"data\.image_size 16 .* 16x16, .* patch_size {patch_size} "):
        data(patch_size=patch_size, sequence_length=512)


def test_latents_and_not_pixels_have_to_be_divisible():
    assert data(codec=Half(), patch_size=4).patches_per_image == 4
    with pytest.raises(InputError, match=r"8x8.*patch_size 16"):
        data(codec=Half(), patch_size=16)


def test_image_that_the_codec_does_not_divide_is_an_error():
    with pytest.raises(InputError, match="image_size 17 is not a multiple of 2"):
        data(codec=Half(), image_size=17)


# Loaders and values


def test_numbers_that_the_model_is_linked_to():
    assert (data().patches_per_image, data().latent_channels) == (16, 3)
    assert (data(codec=Half()).patches_per_image, data(codec=Half()).latent_channels) == (4, 4)


def test_given_tokenizer_is_used(tokenizer, tmp_path):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(tokenizer.model)
    used = data(tokenizer_model=str(file))
    assert used.tokenizer.model == tokenizer.model
    assert next(iter(used.train_dataloader())).tokens.max() < tokenizer.vocab_size


def test_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.model"):
        _ = data(tokenizer_model=str(tmp_path / "none.model")).tokenizer


def test_own_tokenizer_is_trained_once_on_the_training_split():
    made = data()
    assert made.tokenizer is made.tokenizer
    assert made.tokenizer.model == Tokenizer.train(Shapes(16).split("train").captions(), 300).model


def test_splits_are_the_sources_and_validation_has_an_end():
    made = data()
    train, val = made.train_dataloader(), made.val_dataloader()
    assert train.documents.source.part == "train" and val.documents.source.part == "val"
    assert sum(batch.num_images for batch in val) == 20
    assert sum(batch.num_images for batch in islice(train, 40)) > 40  # more than an epoch
    for batch in islice(train, 2):
        images = batch.image_groups[0].images.tensor
        assert batch.tokens.shape == (2, 64) and images.shape[1:] == (3, 16, 16) and images.abs().max() <= 1
        assert (batch.image_ids >= 0).sum() == 16 * batch.num_images


def test_ranks_share_the_training_documents_and_validate_on_the_same():
    """Each loader gets the rank and world size of a trainer of two processes."""
    streams = {"train": [], "val": []}
    for rank in (0, 1):
        made = data()
        made.trainer = SimpleNamespace(
            global_rank=rank, world_size=2, is_global_zero=rank == 0, accumulate_grad_batches=1
        )
        streams["train"].append([batch.tokens for batch in islice(made.train_dataloader(), 2)])
        streams["val"].append([batch.tokens for batch in made.val_dataloader()])
    assert not torch.equal(streams["train"][0][0], streams["train"][1][0])
    assert len(streams["val"][0]) == len(streams["val"][1]) and all(map(torch.equal, *streams["val"]))


@pytest.mark.parametrize("share", [-0.1, 5])
def test_max_skipped_out_of_range(share):
    with pytest.raises(InputError, match=rf"data\.max_skipped {share} .*0 to 1"):
        data(max_skipped=share)


def test_max_skipped_is_passed_on():
    assert data(max_skipped=0.2).train_dataloader().report.max_skipped == 0.2


def test_seed_comes_from_the_data():
    streams = [[b.tokens for b in islice(data(seed=seed).train_dataloader(), 3)] for seed in (0, 0, 1)]
    assert all(map(torch.equal, streams[0], streams[1]))
    assert not all(map(torch.equal, streams[0], streams[2]))


# Prediction


class Four(Source):
    """A source of four pictures, one of them broken."""

    def split(self, name):
        return self

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index in self.broken:
            return Skipped(f"picture {index}", "cannot be read")
        return Example(torch.full((3, 16, 16), index / 10), (f"picture {index}", "another caption"))

    def captions(self):
        return ["a picture"]


@pytest.mark.parametrize("broken", [(), (1,), (0, 2, 3)])
def test_prediction_has_each_usable_picture_with_its_first_caption(broken):
    source = Four(16)
    source.broken = broken
    (batch,) = data(source=source).predict_dataloader()
    usable = [i for i in range(4) if i not in broken]
    assert batch.captions == [f"picture {i}" for i in usable]
    assert torch.allclose(torch.stack(batch.images)[:, 0, 0, 0], torch.tensor(usable) / 10)


def test_prediction_without_a_usable_picture_is_an_error():
    source = Four(16)
    source.broken = (0, 1, 2, 3)
    with pytest.raises(InputError, match=r"none of 4 .*picture 0"):
        next(iter(data(source=source).predict_dataloader()))
