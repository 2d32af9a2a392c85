"""Representation alignment: values and gradients against a loop, empty batches, and what a run saves and logs."""

import pytest
import torch
import torch.nn.functional as F

from lit_transfusion.data.types import Moments, Raw
from lit_transfusion.errors import InputError
from lit_transfusion.feature_maps import EfficientNetLite0Map, FeatureMap
from lit_transfusion.latents import Pixels
from lit_transfusion.training.auxiliary import PatchStates
from lit_transfusion.training.objective import compare
from lit_transfusion.training.repa import REPA


def pixels_of(images):
    return images.tensor if isinstance(images, Raw) else images


class Colours(FeatureMap):
    """The mean colour of each quarter of a picture, and its products."""

    channels = 5

    def forward(self, pictures):
        means = F.adaptive_avg_pool2d(pictures, 2)
        return torch.cat([means, means[:, :1] * means[:, 1:2], means[:, 1:2] * means[:, 2:]], 1)


@pytest.fixture
def repa():
    torch.manual_seed(0)
    repa = REPA(Colours(), weight=0.5, layer=1, hidden_dim=7)
    repa.build(16)
    return repa


def groups():
    """Three images of 2 × 2 patches, two of 2 × 4 patches, and none of another shape."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 2, 2), (2, 2, 4), (0, 2, 2)]
    return [
        PatchStates(
            torch.randn(n, rows * columns, 16, generator=generator).requires_grad_(),
            (rows, columns),
            torch.rand(n, 3, 4 * rows, 4 * columns, generator=generator) * 2 - 1,
        )
        for n, rows, columns in shapes
    ]


def test_equals_a_loop_over_patches(repa):
    images = groups()
    losses = repa(images)
    expected = []
    for states, (rows, columns), pictures in images:
        for state, picture in zip(states, pictures, strict=True):
            features = F.interpolate(Colours()(picture[None]), (rows, columns), mode="bilinear", antialias=True)[0]
            distances = [
                1 - F.cosine_similarity(repa.projector(state[i * columns + j]), features[:, i, j], dim=0)
                for i in range(rows)
                for j in range(columns)
            ]
            expected.append(torch.stack(distances).mean())
    torch.testing.assert_close(losses, torch.stack(expected))
    own = torch.autograd.grad(losses.sum(), [group.states for group in images], retain_graph=True)
    theirs = torch.autograd.grad(torch.stack(expected).sum(), [group.states for group in images[:2]])
    torch.testing.assert_close(own[:2], theirs)
    assert all(gradient.abs().sum() > 0 for gradient in own[:2])


def test_without_images_every_parameter_has_a_gradient(repa):
    repa(groups()[2:]).sum().backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in repa.parameters())


def test_the_frozen_net_is_neither_trained_nor_saved(repa):
    assert not any("features" in name for name in repa.state_dict())
    extractor = EfficientNetLite0Map(side=64)
    assert not any(weight.requires_grad for weight in REPA(extractor)._features[0].parameters())
    features = extractor(torch.rand(2, 3, 24, 40) * 2 - 1)
    assert features.shape == (2, extractor.channels, 4, 4)
    assert features[0].sub(features[1]).abs().max() > 0


def test_it_reads_the_chosen_block_at_the_patches(make_module, make_batch, repa):
    """The hidden states are those of a hook; noise and the other losses are the same as without it."""
    module, batch = make_module(auxiliary=repa), make_batch("mixed")
    seen = []
    module.net.transformer.blocks[0].register_forward_hook(lambda block, args, output: seen.append(output))
    parts = module.net, module.noise, module.codec
    found, _ = compare(*parts, batch, torch.Generator().manual_seed(0), 0, repa)
    plain, _ = compare(*parts, batch, torch.Generator().manual_seed(0), 0)
    torch.testing.assert_close(found.image_errors, plain.image_errors)
    (group,) = batch.image_groups
    states = seen[0].flatten(0, 1)[group.at[group.learned]]
    pictures = pixels_of(group.images)
    torch.testing.assert_close(found.auxiliary, repa([PatchStates(states, (2, 2), pictures[group.learned])]))
    assert plain.auxiliary is None


def test_pictures_are_those_of_the_latents_that_were_drawn(make_module, make_batch, repa):
    """A VAE draws latents, so a second draw would be another picture, and not the same after resuming."""

    class Drawn(Pixels):
        def sample(self, moments, generator=None):
            return moments + torch.randn(moments.shape, generator=generator)

    module, batch = make_module(auxiliary=repa), make_batch("mixed")
    group = batch.image_groups[0]
    batch = batch._replace(image_groups=(group._replace(images=Moments(pixels_of(group.images))),))
    parts = module.net, module.noise, Drawn(), batch
    losses = [compare(*parts, torch.Generator().manual_seed(0), 0, repa)[0].auxiliary for _ in range(2)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("kind", ["mixed", "text"])
def test_total_is_the_weighted_sum(make_module, make_batch, repa, kind):
    module, batch = make_module(auxiliary=repa), make_batch(kind)
    terms, _ = module.losses(module.net, batch, torch.Generator().manual_seed(0))
    torch.testing.assert_close(terms.total, terms.text + 5 * terms.image + 0.5 * terms.auxiliary)
    assert (terms.auxiliary > 0) == (kind == "mixed")
    terms.total.backward()
    assert all(weight.grad is not None for weight in module.parameters() if weight.requires_grad)


def test_it_is_trained_and_logged(make_module, make_batch, make_trainer, loader, repa):
    module = make_module(auxiliary=repa)
    before = {name: weight.clone() for name, weight in module.auxiliary.state_dict().items()}
    trainer = make_trainer(max_epochs=4)
    trainer.fit(module, loader(*[make_batch("mixed", seed) for seed in range(4)]))
    changed = {name for name, weight in module.auxiliary.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == before.keys()
    assert {f"auxiliary.{name}" for name in before} < module.state_dict().keys()


def test_block_that_does_not_exist_is_an_error(make_module):
    with pytest.raises(InputError, match=r"model\.auxiliary: layer 3 does not exist; use a number from 1 to 1"):
        make_module(auxiliary=REPA(Colours(), layer=3))
