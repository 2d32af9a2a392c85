"""Each loss of an autoencoder and its gradient, against a reference written by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from lit_transfusion.autoencoders import FSQ, KL, LPIPS, VQ, EfficientNetLite0Features, PatchGAN, PerceptualLoss
from lit_transfusion.autoencoders.bottlenecks import Term, total
from lit_transfusion.autoencoders.discriminator import adaptive_weight, hinge_loss
from lit_transfusion.errors import InputError


def gradients(loss, net):
    """The gradient of each weight of a net; zeros where there is none."""
    names, weights = zip(*((n, w) for n, w in net.named_parameters() if w.requires_grad), strict=True)
    found = torch.autograd.grad(loss, weights, allow_unused=True, retain_graph=True)
    return {n: torch.zeros_like(w) if g is None else g for n, w, g in zip(names, weights, found, strict=True)}


def terms_of(module, pictures, step=0):
    torch.manual_seed(3)
    return module.terms(pictures, step, torch.Generator().manual_seed(3))


class Squares(PerceptualLoss):
    """Features that are easy to compute by hand: each channel and its square, and 2 × 2 means."""

    def features(self, pictures):
        return [torch.cat([pictures, pictures.square()], 1), nn.functional.avg_pool2d(pictures, 2)]


# Reconstruction


def test_l1_and_its_gradient(make_module, pictures):
    guess = torch.zeros_like(pictures).requires_grad_()
    (term,) = make_module().reconstruction_terms(guess, pictures).values()
    assert term.weight == 1.0
    np.testing.assert_allclose(term.value.item(), np.abs(pictures.numpy()).mean(), rtol=1e-6)
    (gradient,) = torch.autograd.grad(term.value, guess)
    torch.testing.assert_close(gradient, -pictures.sign() / pictures.numel())


def by_hand(first, second):
    """The distance of `Squares` with explicit loops in float64."""
    sums = 0.0
    for layer in range(2):
        both = []
        for image in (first, second):
            x = image.numpy().astype(np.float64)
            n, c, h, w = x.shape
            x = np.concatenate([x, x**2], 1) if layer == 0 else x.reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))
            both.append(x)
        positions = []
        for n in range(len(first)):
            for i in range(both[0].shape[2]):
                for j in range(both[0].shape[3]):
                    u, v = (x[n, :, i, j] / np.sqrt((x[n, :, i, j] ** 2).sum()) for x in both)
                    positions.append(((u - v) ** 2).sum())
        sums += np.mean(positions)
    return sums


def test_perceptual_loss_and_its_gradient(pictures):
    first, second = pictures[:1, :, :4, :4], pictures[1:2, :, :4, :4]
    guess = first.clone().requires_grad_()
    loss = Squares()(guess, second)
    np.testing.assert_allclose(loss.item(), by_hand(first, second), rtol=1e-5)
    (gradient,) = torch.autograd.grad(loss, guess)
    for place in [(0, 0, 0, 0), (0, 2, 3, 1)]:
        step = torch.zeros_like(first)
        step[place] = 1e-3
        expected = (by_hand(first + step, second) - by_hand(first - step, second)) / 2e-3
        np.testing.assert_allclose(gradient[place].item(), expected, rtol=1e-2, atol=1e-5)


def test_perceptual_loss_changes_the_gradient_of_the_encoder(make_module, pictures):
    module = make_module(perceptual=Squares(), perceptual_weight=0.5)
    terms = terms_of(module, pictures)
    pixels, features = (gradients(terms[name].value, module.net) for name in ("l1", "perceptual"))
    whole = gradients(total({name: terms[name] for name in ("l1", "perceptual")}), module.net)
    name = "encoder.conv_in.weight"
    assert features[name].abs().max() > 1e-4
    for name, gradient in whole.items():
        torch.testing.assert_close(gradient, pixels[name] + 0.5 * features[name])


@pytest.mark.parametrize("side", [None, 32])
def test_gradient_passes_through_a_frozen_classifier(pictures, side):
    pytest.importorskip("efficientnet_lite_pytorch")
    loss = EfficientNetLite0Features(side).requires_grad_(False)
    shapes = [layer.shape[1:] for layer in loss.features(torch.zeros(1, 3, 64, 64))]
    if side is None:
        assert shapes == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4)]
    guess = pictures.clone().requires_grad_()
    assert loss(guess, pictures) == 0
    (gradient,) = torch.autograd.grad(loss(guess * 0.9, pictures), guess)
    assert gradient.abs().max() > 1e-4 and not loss.train().map.net.training
    # Its input is that of the extractor of `evaluation`, but without rounding to bytes.
    from lit_transfusion.evaluation.features import EfficientNetLite0

    extractor = EfficientNetLite0(32)
    extractor.prepare()
    seen = []
    for net, call in ((loss.map.net, lambda: loss.features(pictures)), (extractor.net, lambda: extractor(pictures))):
        handle = net._conv_stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        call()
        handle.remove()
    if side == 32:
        torch.testing.assert_close(*seen, atol=0.5 / 128, rtol=0)


def test_lpips_is_the_distance_of_its_package(pictures, monkeypatch):
    """Here with random weights of the net below it, which torchvision would download."""
    lpips = pytest.importorskip("lpips")
    original = lpips.LPIPS
    monkeypatch.setattr(lpips, "LPIPS", lambda **options: original(**options, pnet_rand=True))
    loss = LPIPS("alex")
    large = nn.functional.interpolate(pictures, scale_factor=4)
    guess = (large * 0.5).requires_grad_()
    torch.testing.assert_close(loss(guess, large), loss.distance(guess, large).mean())
    (gradient,) = torch.autograd.grad(loss(guess, large), guess)
    assert gradient.abs().max() > 0


def test_weights_that_cannot_be_downloaded_are_one_line(monkeypatch):
    lpips = pytest.importorskip("lpips")

    def offline(**_):
        raise OSError("no network")

    monkeypatch.setattr(lpips, "LPIPS", offline)
    with pytest.raises(InputError, match=r"weights of vgg cannot be downloaded \(no network\); use EfficientNet"):
        LPIPS()


# Bottlenecks


def test_kl_and_its_gradient(make_module, pictures):
    module = make_module(KL(weight=0.25))
    moments = module.net.encode(pictures).latent_dist.parameters.detach().requires_grad_()

    class Encoder:
        def encode(self, _):
            return type("Output", (), {"latent_dist": type("Posterior", (), {"parameters": moments})})

    encoded = module.bottleneck.learn(Encoder(), pictures, torch.Generator().manual_seed(0))
    term = encoded.terms["kl"]
    mean, log_variance = (part.numpy().astype(np.float64) for part in moments.detach().chunk(2, 1))
    divergence = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum((1, 2, 3)).mean()
    assert term.weight == 0.25
    np.testing.assert_allclose(term.value.item(), divergence / (3 * 16 * 16), rtol=1e-5)
    (gradient,) = torch.autograd.grad(term.value, moments, retain_graph=True)
    expected = np.concatenate([mean, 0.5 * (np.exp(log_variance) - 1)], 1) / (len(pictures) * 3 * 16 * 16)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-3, atol=1e-8)
    # The sample is mean + deviation · noise, with noise from the generator.
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0)).numpy()
    np.testing.assert_allclose(encoded.latents.detach().numpy(), mean + np.exp(0.5 * log_variance) * noise, rtol=1e-4)
    np.testing.assert_allclose(encoded.variance.detach().numpy(), np.exp(log_variance), rtol=1e-5)


@pytest.mark.parametrize("bottleneck", [VQ(codes=16, code_dim=3, kmeans_start=False), FSQ([3, 2, 4])], ids=str)
def test_commitment_loss_and_straight_through_gradient(make_module, pictures, bottleneck):
    module = make_module(bottleneck)
    latents = (2 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    codebook = bottleneck.codebook_rows().clone().numpy()

    class Encoder:
        quantize = module.net.quantize

        def encode(self, _):
            return type("Output", (), {"latents": latents})

    encoded = bottleneck.train().learn(Encoder(), pictures, torch.Generator())
    flat = latents.detach().numpy().transpose(0, 2, 3, 1).reshape(-1, 1, 3)
    nearest = codebook[((flat - codebook) ** 2).sum(-1).argmin(1)].reshape(2, 4, 4, 3).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(encoded.latents.detach().numpy(), nearest, atol=1e-5)
    term = encoded.terms["commitment"]
    difference = latents.detach().numpy() - nearest
    assert term.weight == 0.25
    np.testing.assert_allclose(term.value.item(), (difference**2).mean(), rtol=1e-5)
    (gradient,) = torch.autograd.grad(term.value, latents)
    np.testing.assert_allclose(gradient.numpy(), 2 * difference / difference.size, atol=1e-6)
    upstream = torch.randn(latents.shape)
    (through,) = torch.autograd.grad(encoded.latents, latents, upstream)
    torch.testing.assert_close(through, upstream)


# The patch GAN


def test_hinge_loss():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 1.0])
    assert hinge_loss(real, fake) == pytest.approx(((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3) / 2)


def test_adaptive_weight():
    last = torch.tensor([1.0, 2.0], requires_grad=True)
    first, second = (last * torch.tensor([3.0, 4.0])).sum(), (last * torch.tensor([0.0, 0.5])).sum()
    assert adaptive_weight(first, second, last).item() == pytest.approx(5 / (0.5 + 1e-4))
    assert adaptive_weight(first, 0 * second, last).item() == 1e4  # the limit


def gan_of(**changes):
    torch.manual_seed(5)
    return PatchGAN(**{"channels": 4, "layers": 1, **changes})


def test_gan_does_not_reach_the_encoder_before_its_start(make_module, pictures):
    module, plain = make_module(gan=gan_of(start_step=5)), make_module()
    expected = gradients(total(terms_of(plain, pictures)), plain.net)
    before = gradients(total(terms_of(module, pictures, step=4)), module.net)
    after = gradients(total(terms_of(module, pictures, step=5)), module.net)
    for name, gradient in expected.items():
        assert torch.equal(gradient, before[name]), name
    assert not torch.equal(expected["encoder.conv_in.weight"], after["encoder.conv_in.weight"])
    assert all(not g.any() for g in gradients(total(terms_of(module, pictures, step=4)), module.gan).values())


def test_each_of_the_two_nets_gets_only_the_gradient_of_its_own_loss(make_module, pictures):
    module = make_module(gan=gan_of(weight=0.5))
    terms = terms_of(module, pictures)
    assert all(not g.any() for g in gradients(terms["gan"].value, module.gan).values())
    assert all(not g.any() for g in gradients(terms["discriminator"].value, module.net).values())

    torch.manual_seed(3)
    encoded = module.bottleneck.learn(module.net, pictures, torch.Generator().manual_seed(3))
    guess = module.bottleneck.decode(module.net, encoded.latents)
    # The discriminator, as if it were trained alone.
    real, fake = module.gan(pictures), module.gan(guess.detach())
    alone = ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()) / 2
    torch.testing.assert_close(terms["discriminator"].value, alone)
    found = gradients(total(terms), module.gan)
    for name, gradient in gradients(alone, module.gan).items():
        torch.testing.assert_close(found[name], gradient)
    # The autoencoder, with the weight written out.
    l1, gan = (guess - pictures).abs().mean(), -module.gan(guess).mean()
    last = module.net.decoder.conv_out.weight
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (l1, gan)]
    weight = 0.5 * norms[0] / (norms[1] + 1e-4)
    kl = encoded.terms["kl"]
    expected = gradients(l1 + kl.weight * kl.value + weight.detach() * gan, module.net)
    for name, gradient in gradients(total(terms), module.net).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7)


def test_weight_that_is_not_adaptive(make_module, pictures):
    module = make_module(gan=gan_of(weight=0.5, adaptive=False))
    assert terms_of(module, pictures)["gan"].weight == 0.5


@pytest.mark.parametrize(("layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_a_patch_has_the_documented_size(layers, patch):
    """One score depends on this many pixels in a row."""
    gan = gan_of(layers=layers, channels=2)
    for module in gan.modules():
        if isinstance(module, nn.GroupNorm):  # it would make each score depend on all pixels
            module.forward = lambda x: x
    picture = torch.rand(1, 3, 128, 128, requires_grad=True)
    scores = gan(picture)
    middle = scores.shape[-1] // 2
    (gradient,) = torch.autograd.grad(scores[0, 0, middle, middle], picture)
    assert (gradient.abs().sum((0, 1, 2)) > 0).sum() == patch
    with pytest.raises(InputError, match=f"model.gan.layers {layers} needs pictures of at least {3 * 2**layers} "):
        gan.check_size(3 * 2**layers - 1)
    gan.check_size(3 * 2**layers)
    assert gan(torch.zeros(1, 3, 3 * 2**layers, 3 * 2**layers)).shape[-1] == 1


def test_total_is_the_weighted_sum():
    terms = {"a": Term(torch.tensor(2.0), 0.5), "b": Term(torch.tensor(3.0), torch.tensor(2.0))}
    assert total(terms) == 7
