"""Pictures of any source as batches, in a resumable order."""

import pytest
import torch

from lit_transfusion.autoencoders import PictureData
from lit_transfusion.data.sources import Mix, TextCorpus
from lit_transfusion.data.types import Skipped
from lit_transfusion.errors import InputError
from lit_transfusion.shapes.edits import ShapeEdits
from lit_transfusion.shapes.source import Shapes


def shapes(**options):
    return Shapes(image_size=16, num_examples=10, num_val_examples=3, **options)


def take(loader, number):
    batches = iter(loader)
    return [next(batches) for _ in range(number)]


def test_an_epoch_has_each_picture_once_in_another_order():
    data = PictureData(shapes(), image_size=16, batch_size=5)
    batches = take(data.train_dataloader(), 4)
    assert all(batch.shape == (5, 3, 16, 16) and batch.dtype == torch.float32 for batch in batches)
    train = data.source.split("train")
    expected = sorted(train[i].image.sum().item() for i in range(10))
    orders = [torch.cat(batches[i : i + 2]).sum((1, 2, 3)).tolist() for i in (0, 2)]
    for order in orders:
        assert sorted(order) == pytest.approx(expected)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loader_resumes(num_workers):
    data = PictureData(shapes(), image_size=16, batch_size=3, num_workers=num_workers)
    whole = take(data.train_dataloader(), 8)
    first = data.train_dataloader()
    batches = iter(first)
    for _ in range(5):
        next(batches)
    second = data.train_dataloader()
    second.load_state_dict(first.state_dict())
    for before, after in zip(whole[5:], take(second, 3), strict=True):
        assert torch.equal(before, after)


def test_held_out_pictures_are_read_once_in_order():
    data = PictureData(shapes(), image_size=16, batch_size=2)
    held_out = data.source.split("val")
    assert torch.equal(torch.cat(list(data.val_dataloader())), torch.stack([held_out[i].image for i in range(3)]))


def test_both_pictures_of_an_edit_are_used():
    source = ShapeEdits(image_size=16, num_examples=3, num_val_examples=2)
    held_out = source.split("val")
    batches = torch.cat(list(PictureData(source, image_size=16, batch_size=8).val_dataloader()))
    examples = [held_out[i] for i in range(2)]
    assert torch.equal(batches, torch.stack([p for e in examples for p in (e.input_image, e.output_image)]))


def test_pictures_that_cannot_be_read_are_skipped(monkeypatch):
    original = Shapes.__getitem__
    monkeypatch.setattr(Shapes, "__getitem__", lambda self, i: Skipped("1", "broken") if i == 1 else original(self, i))
    assert len(torch.cat(list(PictureData(shapes(), image_size=16).val_dataloader()))) == 2
    with pytest.raises(InputError, match="broken"):
        take(PictureData(shapes(), image_size=16, batch_size=1).train_dataloader(), 30)


def test_source_of_texts_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    mix = Mix({"shapes": shapes(), "words": TextCorpus(str(tmp_path))}, image_size=16)
    with pytest.raises(InputError, match=r"data\.source\.init_args\.sources\.words: TextCorpus yields texts"):
        PictureData(mix, image_size=16)
