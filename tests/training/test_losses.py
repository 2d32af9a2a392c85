"""Tests of L = L_LM + λ · L_DDPM (paper, Equation 4), whose means do not depend on the number of elements."""

import math

import pytest
import torch
import torch.nn.functional as F

from lit_transfusion.model import LinearPatcher, cross_entropy
from lit_transfusion.model.cross_entropy import CrossEntropy
from lit_transfusion.training.losses import LossWeights, means_by_timestep, sums_by_timestep, transfusion_loss
from lit_transfusion.training.objective import Compared, squared_error


def images(*values: float, shape=(3, 4, 4)) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, *shape)


def test_small_example():
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])  # probabilities 1/2 1/2 and 1/4 3/4
    targets = torch.tensor([1, 0])
    prediction, target = images(1.0, 2.0), images(0.0, 5.0)  # errors 1 and 9
    loss = transfusion_loss(Compared(logits, targets, squared_error(prediction, target)), LossWeights(5.0))
    assert loss.text == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert loss.per_image.tolist() == [1, 9]
    assert loss.image == 5
    assert loss.total == pytest.approx(math.log(8) / 2 + 5 * 5)


def test_error_is_the_mean_over_the_elements_of_an_image():
    target = torch.zeros(1, 2, 2, 2)
    prediction = torch.arange(8.0).view(1, 2, 2, 2)
    loss = transfusion_loss(
        Compared(torch.zeros(1, 4), torch.tensor([0]), squared_error(prediction, target)), LossWeights(1.0)
    )
    assert loss.image == sum(i * i for i in range(8)) / 8


@pytest.mark.parametrize("shape", [(1, 4, 4), (16, 4, 4), (3, 8, 8), (3, 2, 2)])
def test_does_not_depend_on_channels_or_sides(shape):
    errors = squared_error(images(1.0, shape=shape), images(3.0, shape=shape))
    loss = transfusion_loss(Compared(torch.zeros(1, 4), torch.tensor([0]), errors), LossWeights(5))
    assert loss.image == 4 and loss.total == pytest.approx(math.log(4) + 20)


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_does_not_depend_on_the_patch_size(patch_size):
    """The loss compares pixels, so that it does not depend on the layout of the patches."""
    torch.manual_seed(0)
    pixels, target = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    patcher = LinearPatcher(latent_channels=3, dim=3 * patch_size**2, patch_size=patch_size)
    with torch.no_grad():  # identity: patches are vectors of pixels
        for layer in (patcher.proj_in, patcher.proj_out):
            layer.weight.copy_(torch.eye(3 * patch_size**2))
            layer.bias.zero_()
    patches, skips = patcher.patchify(pixels, torch.zeros(2, patcher.dim))
    prediction = patcher.unpatchify(patches, torch.zeros(2, patcher.dim), skips, (8 // patch_size, 8 // patch_size))
    compared = Compared(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), squared_error(prediction, target))
    loss = transfusion_loss(compared, LossWeights(5))
    torch.testing.assert_close(loss.image, (pixels - target).square().mean())


def test_repeated_data_do_not_change_the_losses():
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 7), torch.randint(7, (5,))
    prediction, target = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    once = transfusion_loss(Compared(logits, targets, squared_error(prediction, target)), LossWeights(5))
    logits, targets, prediction, target = (
        t.repeat(2, *[1] * (t.ndim - 1)) for t in (logits, targets, prediction, target)
    )
    twice = transfusion_loss(Compared(logits, targets, squared_error(prediction, target)), LossWeights(5))
    torch.testing.assert_close(twice[:3], once[:3])


def test_weight_applies_to_the_image_loss_only():
    one, five = (
        transfusion_loss(
            Compared(torch.zeros(1, 4), torch.tensor([0]), squared_error(images(1.0), images(3.0))), LossWeights(weight)
        )
        for weight in (1, 5)
    )
    assert (one.text, one.image) == (five.text, five.image)
    assert five.total - one.total == pytest.approx(4 * one.image.item())


@pytest.mark.parametrize("empty", ["text", "images", "both"])
def test_missing_modality_has_zero_loss_and_gradients(empty):
    """With DDP each rank must have all gradients, also if its batch lacks a modality."""
    num_text, num_images = (0 if empty in (name, "both") else 2 for name in ("text", "images"))
    logits = torch.randn(num_text, 4, requires_grad=True)
    prediction = torch.randn(num_images, 3, 4, 4, requires_grad=True)
    errors = squared_error(prediction, torch.zeros_like(prediction))
    loss = transfusion_loss(Compared(logits, torch.zeros(num_text, dtype=torch.int64), errors), LossWeights(5))
    assert loss.total.isfinite() and loss.per_image.shape == (num_images,)
    assert (loss.text == 0) == (num_text == 0) and (loss.image == 0) == (num_images == 0)
    loss.total.backward()
    assert logits.grad is not None and prediction.grad is not None


def test_losses_are_computed_in_float32():
    logits, prediction = torch.randn(2, 4).bfloat16(), torch.randn(1, 3, 4, 4).bfloat16()
    errors = squared_error(prediction, torch.zeros(1, 3, 4, 4).bfloat16())
    loss = transfusion_loss(Compared(logits, torch.tensor([0, 1]), errors), LossWeights(5))
    assert {t.dtype for t in loss} == {torch.float32}
    torch.testing.assert_close(loss.image, prediction.float().square().mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 8, 29])
def test_cross_entropy_in_place_equals_that_of_torch(monkeypatch, count, dtype):
    """Here a piece has eight rows, so that there are several pieces."""
    monkeypatch.setitem(cross_entropy.PIECE, "cpu", 8 * 11)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(11, 5, generator=generator, dtype=dtype).requires_grad_()
    hidden = torch.randn(count, 5, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(11, (count,), generator=generator)
    results = []
    for loss in (
        CrossEntropy.apply(hidden @ weight.T, targets)[0].sum(),
        F.cross_entropy((hidden @ weight.T).float(), targets, reduction="sum"),
    ):
        results.append([loss.detach(), *torch.autograd.grad(3 * loss, (weight, hidden))])
    torch.testing.assert_close(results[0], results[1])
    assert results[0][0].dtype == torch.float32


@pytest.mark.parametrize("count", [0, 1, 29])
def test_z_loss_equals_the_square_of_logsumexp(monkeypatch, count):
    """Together with cross-entropy, in pieces, in values and gradients."""
    monkeypatch.setitem(cross_entropy.PIECE, "cpu", 8 * 11)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, 11, generator=generator).requires_grad_()
    targets = torch.randint(11, (count,), generator=generator)
    errors = torch.zeros(0)
    ours = transfusion_loss(Compared(logits * 1, targets, errors), LossWeights(5.0, 0.3))
    log_sum = logits.logsumexp(1)
    mean_z = log_sum.square().sum() / max(count, 1)
    theirs = F.cross_entropy(logits, targets, reduction="sum") / max(count, 1) + 0.3 * mean_z
    torch.testing.assert_close((ours.total, ours.z), (theirs, mean_z))
    torch.testing.assert_close(torch.autograd.grad(ours.total, logits), torch.autograd.grad(theirs, logits))


def test_second_backward_pass_through_cross_entropy_in_place_is_an_error():
    """The logits are overwritten, so torch must raise an error instead of wrong gradients."""
    loss = CrossEntropy.apply(torch.randn(3, 4, requires_grad=True) * 1, torch.tensor([0, 1, 2]))[0].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_sums_by_timestep():
    """T = 20 is not a multiple of eight: its eighths start at 0, 2.5, 5, …, 17.5."""
    losses, timesteps = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([3, 4, 2, 19])
    sums, counts = sums_by_timestep(losses, timesteps, 20)
    assert sums.tolist() == [4, 3, 0, 0, 0, 0, 0, 8] and counts.tolist() == [1, 2, 0, 0, 0, 0, 0, 1]
    named = means_by_timestep([*sums.tolist(), *counts.tolist()], 20)
    assert named == {
        "loss_image_by_timestep/000-002": (4, 1),
        "loss_image_by_timestep/003-004": (1.5, 2),
        "loss_image_by_timestep/018-019": (8, 1),
    }
    assert not sums_by_timestep(losses[:0], timesteps[:0], 20).any()


def test_losses_of_micro_batches_add_up_to_that_of_one_batch():
    """The batch has three targets and two images. One of its three parts has no image, and one no text."""
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 7), torch.randint(7, (3,))
    prediction, target = torch.randn(2, 2, 4, 4), torch.randn(2, 2, 4, 4)
    whole = transfusion_loss(Compared(logits, targets, squared_error(prediction, target)), LossWeights(5))
    counts = torch.tensor([3, 2])
    parts = [
        transfusion_loss(
            Compared(logits[t], targets[t], squared_error(prediction[i], target[i])), LossWeights(5), counts
        )
        for t, i in ((slice(0, 2), slice(0, 0)), (slice(2, 3), slice(0, 1)), (slice(0, 0), slice(1, 2)))
    ]
    for name in ("total", "text", "image"):
        torch.testing.assert_close(sum(getattr(part, name) for part in parts), getattr(whole, name))
