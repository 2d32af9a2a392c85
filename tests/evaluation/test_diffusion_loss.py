"""The diffusion loss by timestep against closed forms; noise depends only on the index of the picture."""

import pytest
import torch
from given_examples import random_examples, subject_of
from single_shape import given

from lit_transfusion.data.types import Example
from lit_transfusion.diffusion import DDPM
from lit_transfusion.evaluation.diffusion_loss import DiffusionLoss, losses_by_timestep


def predict_with(pipeline, prediction):
    """Make the net predict `prediction(images, timesteps)`, (N, C, H, W); returns a list of the timesteps it gets."""
    asked = []

    def hook(net, args, output):
        images, timesteps = given(args)
        asked.extend(timesteps.tolist())
        return output._replace(image_predictions=(prediction(images, timesteps),))

    pipeline.net.register_forward_hook(hook)
    return asked


def test_the_loss_of_predicting_0_is_the_square_of_the_target(make_pipeline):
    pipeline = make_pipeline(noise=DDPM(prediction_type="sample"))
    predict_with(pipeline, lambda images, timesteps: torch.zeros_like(images))
    examples = [Example(torch.full((3, 4, 4), value), ("a red circle",)) for value in (0.0, 0.5, 1.0)]
    found = DiffusionLoss()(subject_of(pipeline, examples))
    assert list(found) == list(DiffusionLoss.columns)
    assert list(found.values()) == pytest.approx([(0 + 0.25 + 1) / 3] * 9)


def test_buckets_match_their_names(make_pipeline):
    """The net's loss at timestep t is (t / 1000)²."""
    pipeline = make_pipeline(noise=DDPM(prediction_type="sample"))
    asked = predict_with(pipeline, lambda images, timesteps: (timesteps / 1000).view(-1, 1, 1, 1).expand_as(images))
    examples = [Example(torch.zeros(3, 4, 4), (f"{'a ' * n}circle",)) for n in range(50)]
    found = DiffusionLoss()(subject_of(pipeline, examples, batch_size=7))
    assert found.pop("diffusion_loss") == pytest.approx(sum((t / 1000) ** 2 for t in asked) / 400, rel=1e-5)
    for bucket, (name, loss) in enumerate(found.items()):
        first, last = (int(number) for number in name.removeprefix("diffusion_loss_t").split("_"))
        assert (first, last) == (125 * bucket, 125 * bucket + 124)
        inside = [t for t in asked if first <= t <= last]
        assert len(inside) == 50 and len(set(inside)) > 25  # drawn separately for each picture
        assert loss == pytest.approx(sum((t / 1000) ** 2 for t in inside) / 50, rel=1e-5)


def test_a_perfect_model_has_loss_0(make_pipeline):
    """This holds only if the noisy image is made with the noise and timestep of the target."""
    pipeline = make_pipeline(noise=DDPM(prediction_type="epsilon"))

    def noise_of(images, timesteps):  # for pictures that are 0.5 everywhere
        share = pipeline.noise._scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return (images - share.sqrt() * 0.5) / (1 - share).sqrt()

    predict_with(pipeline, noise_of)
    examples = [Example(torch.full((3, 4, 4), 0.5), (caption,)) for caption in ("a red circle", "a blue square")]
    assert DiffusionLoss()(subject_of(pipeline, examples))["diffusion_loss"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_noise_does_not_depend_on_the_batch_or_on_other_pictures(make_pipeline, batch_size):
    examples = random_examples()
    subject = subject_of(make_pipeline(), examples)
    fewer = subject_of(make_pipeline(), examples[:3], batch_size=batch_size)
    whole = losses_by_timestep(subject, subject.prompts, seed=0)
    assert torch.allclose(losses_by_timestep(fewer, fewer.prompts, seed=0), whole[:3], rtol=1e-4)
    assert not torch.allclose(losses_by_timestep(fewer, fewer.prompts, seed=1), whole[:3], rtol=1e-2)
    assert whole.unique().numel() == 5 * 8
