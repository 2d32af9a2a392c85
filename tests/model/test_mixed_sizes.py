"""Images of several sizes in one batch: the net computes them as it computes each document alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_transfusion.data.packing import SquarePatches, collate, flatten
from lit_transfusion.data.types import Document, ImageSegment, TextSegment
from lit_transfusion.model import (
    Bidirectional,
    LinearPatcher,
    NoisyImages,
    TransformerConfig,
    Transfusion,
    UNetPatcher,
)

VOCAB = 20
SHAPES = [(4, 4), (2, 6), (6, 2), (2, 2)]  # in patches of 2 × 2: 4, 3, 3 and 1


class Markers:
    pad, boi, eoi = 0, 3, 4


def new_net(patcher="linear", rope="1d", positions=2):
    """The learned positions of the patchers are for at most two rows and columns, so larger images interpolate them."""
    torch.manual_seed(0)
    config = TransformerConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=48, rope=rope, modality_weights="ffn")
    made = {
        "linear": lambda: LinearPatcher(3, 32, 2, positions=positions),
        "unet": lambda: UNetPatcher(3, 32, 2, channels=16, head_dim=8, positions=positions),
    }[patcher]()
    return Transfusion(VOCAB, config, made, Bidirectional()).eval()


def document_of(kinds, seed=0):
    """Kinds are "text", or the (height, width) of an image, with a third entry for one with a clean copy."""
    generator = torch.Generator().manual_seed(seed)
    segments = []
    for kind in kinds:
        if kind == "text":
            segments.append(TextSegment(tuple(torch.randint(5, VOCAB, (3,), generator=generator).tolist())))
        else:
            image = torch.randn(3, *kind[:2], generator=generator)
            segments.append(ImageSegment(image, clean_copy=len(kind) > 2))
    return Document((TextSegment((1,)), *segments))


def pack(rows, length):
    flat = [[flatten(document, Markers, SquarePatches(2)) for document in row] for row in rows]
    return collate(flat, length, Markers.pad, (3, 4, 4))


def read(net, batch, images=None):
    """Logits at all positions, and the predictions of the images of the batch in reading order."""
    groups = [
        NoisyImages(group.images, torch.full((len(group.at),), 300), group.at) for group in images or batch.image_groups
    ]
    everywhere = torch.arange(batch.tokens.numel())
    output = net(
        batch.tokens,
        batch.positions,
        batch.document_ids,
        batch.image_ids,
        groups,
        everywhere,
        private=batch.private,
    )
    numbers = [batch.image_ids.flatten()[group.at[:, 0]].tolist() for group in groups if len(group.at)]
    found = {}
    for ids, prediction in zip(numbers, output.image_predictions, strict=False):
        found |= dict(zip(ids, prediction, strict=True))
    return output.logits.unflatten(0, batch.tokens.shape), [found[i] for i in sorted(found)]


kinds = st.lists(st.sampled_from(["text", *SHAPES, *((*shape, "copied") for shape in SHAPES)]), min_size=1, max_size=4)


@torch.no_grad()
@pytest.mark.parametrize("rope", ["1d", "2d"])
@pytest.mark.parametrize("patcher", ["linear", "unet"])
@given(documents=st.lists(kinds, min_size=2, max_size=5))
@settings(max_examples=15, deadline=None)
def test_a_batch_equals_its_documents_one_by_one(patcher, rope, documents):
    net = new_net(patcher, rope)
    made = [document_of(kind, seed) for seed, kind in enumerate(documents)]
    half = len(made) // 2
    logits, predictions = read(net, pack([made[:half], made[half:]], 160))
    rows, expected = [], []
    for document in made:
        size = len(flatten(document, Markers, SquarePatches(2)).tokens)
        alone, images = read(net, pack([[document]], size))
        rows.append(alone[0])
        expected += images
    for row, members in zip(logits, (rows[:half], rows[half:]), strict=True):
        joined = torch.cat(members)
        torch.testing.assert_close(row[: len(joined)], joined, atol=1e-5, rtol=1e-5)
    assert [image.shape for image in predictions] == [image.shape for image in expected]
    for one, other in zip(predictions, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("patcher", ["linear", "unet"])
def test_an_image_has_no_gradient_from_what_does_not_see_it(patcher):
    net = new_net(patcher)
    batch = pack([[document_of([(2, 6), "text", (4, 4), "text", (2, 2)])]], 40)
    for group in batch.image_groups:
        group.images.requires_grad_()
    _, predictions = read(net, batch)
    images = {tuple(group.images.shape[2:]): group.images for group in batch.image_groups}
    order = [(2, 6), (4, 4), (2, 2)]
    for number in range(3):
        gradients = torch.autograd.grad(
            predictions[number].square().sum(), [images[shape] for shape in order], retain_graph=True
        )
        assert [bool(gradient.any()) for gradient in gradients] == [True] * (number + 1) + [False] * (2 - number)


def test_every_parameter_has_a_gradient_with_several_sizes():
    net = new_net("unet", "2d")
    logits, predictions = read(net, pack([[document_of([(2, 6), "text"]), document_of([(4, 4)], 1)]], 40))
    (logits.square().sum() + sum(image.square().sum() for image in predictions)).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@torch.no_grad()
def test_order_of_the_groups_does_not_matter():
    net, batch = new_net(), pack([[document_of([(2, 6), "text", (4, 4), (6, 2)])]], 40)
    logits, predictions = read(net, batch)
    again, others = read(net, batch, batch.image_groups[::-1])
    torch.testing.assert_close(again, logits)
    torch.testing.assert_close(others, predictions)


def test_learned_positions_are_interpolated_for_larger_images():
    patcher = LinearPatcher(3, 8, 2, positions=3)
    zeros = torch.zeros(1, 5, 2, 8)
    added = patcher.add_positions(zeros)[0] - patcher.column_positions.weight[:2]
    table = patcher.row_positions.weight
    expected = torch.stack([table[0], (table[0] + table[1]) / 2, table[1], (table[1] + table[2]) / 2, table[2]])
    torch.testing.assert_close(added, expected[:, None].expand(5, 2, 8))
