"""Tests of the whole net: where logits are computed, which inputs affect which outputs, and all gradients."""

import subprocess
import sys

import pytest
import torch
from single_shape import run

from lit_transfusion.errors import InputError
from lit_transfusion.model import Bidirectional, Causal, LinearPatcher, TransformerConfig, Transfusion, UNetPatcher

V, DIM, P = 23, 32, 4  # images are 4 × 4 pixels in 2 × 2 patches
SIZE = TransformerConfig(dim=DIM, n_layers=2, n_heads=2, multiple_of=16)
PATCHERS = {
    "linear": lambda: LinearPatcher(latent_channels=3, dim=DIM, patch_size=2),
    "unet": lambda: UNetPatcher(latent_channels=3, dim=DIM, patch_size=2, channels=16, head_dim=8),
}
both_patchers = pytest.mark.parametrize("patcher", ["linear", "unet"])
both_masks = pytest.mark.parametrize("mask", [Bidirectional(), Causal()], ids=["bidirectional", "causal"])


def make(patcher="linear", mask=None):
    torch.manual_seed(0)
    return Transfusion(V, SIZE, PATCHERS[patcher](), mask or Bidirectional())


def inputs(lay_out, *rows):
    """Return the arguments of the net for rows written as strings, with logits at all positions."""
    document_ids, image_ids = lay_out(*rows)
    generator = torch.Generator().manual_seed(1)
    n = int(image_ids.max()) + 1
    starts = torch.nn.functional.pad(document_ids.diff() != 0, (1, 0), value=True)
    index = torch.arange(document_ids.shape[1])
    return {
        "tokens": torch.randint(V, document_ids.shape, generator=generator),
        "positions": index - torch.where(starts, index, 0).cummax(1).values,
        "document_ids": document_ids,
        "image_ids": image_ids,
        "images": torch.randn(n, 3, 4, 4, generator=generator),
        "timesteps": torch.randint(1000, (n,), generator=generator),
        "logit_positions": torch.arange(document_ids.numel()),
    }


def changed(before, after):
    """Return the indices on the first axis at which two tensors differ."""
    return (before - after).flatten(1).abs().amax(1).gt(1e-5).nonzero()[:, 0].tolist()


@torch.no_grad()
def test_logits_are_computed_at_the_given_positions(lay_out):
    net, batch = make(), inputs(lay_out, "tAAAAtt|t", "ttBBBBt")
    everywhere = run(net, **batch)
    asked = torch.tensor([12, 0, 5, 7])
    output = run(net, **{**batch, "logit_positions": asked})
    assert everywhere.logits.shape == (16, V)
    torch.testing.assert_close(output.logits, everywhere.logits[asked])
    torch.testing.assert_close(output.image_prediction, everywhere.image_prediction)


@both_patchers
@both_masks
@torch.no_grad()
def test_packed_documents_have_the_outputs_of_each_document_alone(lay_out, patcher, mask):
    net, documents = make(patcher, mask), ["ttAAAAt", "tBBBBttCCCCt", "ttt", "DDDDt"]
    packed = inputs(lay_out, "|".join(documents[:3]), documents[3])  # the last is padded to the same length
    output = run(net, **packed)
    start, image = 0, 0
    for document in documents:
        here, n = slice(start, start + len(document)), len(set(document) - {"t"})
        alone = inputs(lay_out, document)
        alone["tokens"] = packed["tokens"].flatten()[None, here]
        alone["images"] = packed["images"][image : image + n]
        alone["timesteps"] = packed["timesteps"][image : image + n]
        expected = run(net, **alone)
        torch.testing.assert_close(output.logits[here], expected.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            output.image_prediction[image : image + n], expected.image_prediction, atol=1e-5, rtol=1e-5
        )
        start, image = here.stop, image + n


@torch.no_grad()
def test_tokens_at_patches_are_ignored(lay_out):
    net, batch = make(), inputs(lay_out, "tAAAAt")
    before = run(net, **batch)
    batch["tokens"][:, 1:5] = 3
    after = run(net, **batch)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.image_prediction, after.image_prediction)


@torch.no_grad()
def test_outputs_do_not_depend_on_later_inputs(lay_out):
    """A change affects all outputs from there to the end of its document, and no others."""
    net, batch = make(), inputs(lay_out, "ttAAAAttBBBBt|tCCCCt")
    before = run(net, **batch)
    for position in (0, 6, 12):
        tokens = batch["tokens"].clone()
        tokens[0, position] = (tokens[0, position] + 1) % V
        after = run(net, **{**batch, "tokens": tokens})
        assert changed(before.logits, after.logits) == list(range(position, 13))
        assert changed(before.image_prediction, after.image_prediction) == [i for i in (0, 1) if position < (2, 8)[i]]
    images = batch["images"].clone()
    images[1] += 1
    after = run(net, **{**batch, "images": images})
    assert changed(before.logits, after.logits) == list(range(8, 13))
    assert changed(before.image_prediction, after.image_prediction) == [1]


@both_masks
@torch.no_grad()
def test_the_last_patch_affects_the_first_with_the_bidirectional_mask_only(lay_out, mask):
    """With the linear patcher, patches affect each other in the Transformer only."""
    net, batch = make(mask=mask), inputs(lay_out, "tAAAAt")
    before = run(net, **batch).image_prediction
    batch["images"][:, :, 2:, 2:] += 1
    moved = (run(net, **batch).image_prediction - before).abs().amax(1)[0]  # (4, 4)
    assert (moved[:2, :2].max() > 1e-4) == isinstance(mask, Bidirectional)
    assert moved[2:, 2:].max() > 1e-4


@both_patchers
@torch.no_grad()
def test_the_order_of_patches_matters(lay_out, patcher):
    """If two patches change places, their predictions do not just change places."""
    net, batch = make(patcher), inputs(lay_out, "tAAAAt")
    before = run(net, **batch)
    batch["images"] = batch["images"].roll(2, dims=3)  # the left patches and the right ones
    after = run(net, **batch)
    assert not torch.allclose(after.image_prediction.roll(2, dims=3), before.image_prediction, atol=1e-2)
    assert changed(before.logits[5:], after.logits[5:]) == [0]  # the text after them changes, too


@both_patchers
def test_the_timestep_changes_outputs_in_training(lay_out, patcher):
    """It changes the prediction of its image and the text after it, but not an earlier image."""
    net, batch = make(patcher).train(), inputs(lay_out, "AAAAtBBBBt")
    before = run(net, **batch)
    batch["timesteps"] = batch["timesteps"] + torch.tensor([0, 400])
    after = run(net, **batch)
    assert changed(before.image_prediction, after.image_prediction) == [1]
    assert changed(before.logits, after.logits) == [5, 6, 7, 8, 9]


@both_patchers
@pytest.mark.parametrize("row", ["ttttt", "AAAABBBB", "ttAAAAt"])
def test_every_parameter_has_a_gradient(lay_out, patcher, row):
    """Parameters of a missing modality have a gradient of zeros: with DDP a parameter without one hangs the step."""
    net, batch = make(patcher), inputs(lay_out, row)
    if "t" not in row:
        batch["logit_positions"] = torch.zeros(0, dtype=torch.int64)
    output = run(net, **batch)
    assert output.logits.shape == (len(batch["logit_positions"]), V)
    assert output.image_prediction.shape == batch["images"].shape
    (output.logits.square().sum() + output.image_prediction.square().sum()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if row == "ttAAAAt":
            assert parameter.grad.any(), name
        elif name.startswith(("time_embedding", "patcher") if "A" not in row else "head"):
            assert not parameter.grad.any(), name


def test_patcher_of_another_width_is_an_error():
    with pytest.raises(ValueError, match="patcher's dim is 16, the Transformer's 32"):
        Transfusion(V, SIZE, LinearPatcher(dim=16), Bidirectional())


@both_patchers
@pytest.mark.parametrize("shape", [(5, 4), (4, 5)])
def test_images_that_are_no_multiple_of_the_patch_size_are_an_error(lay_out, patcher, shape):
    batch = inputs(lay_out, "tAAAAt")
    with pytest.raises(InputError, match=f"image {shape[0]}x{shape[1]} is not divisible by patch_size 2"):
        run(make(patcher), **(batch | {"images": torch.zeros(1, 3, *shape)}))


def test_the_model_imports_torch_only():
    """Lightning, diffusers and torchvision are not imported."""
    code = "import sys, lit_transfusion.model; print(*{name.partition('.')[0] for name in sys.modules})"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in modules
    assert not {"lightning", "pytorch_lightning", "diffusers", "torchvision", "transformers"} & set(modules)
