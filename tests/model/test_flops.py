"""Tests of the FLOP formula against torch's counter."""

import pytest
import torch
from single_shape import run
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lit_transfusion.model import LinearPatcher, TransformerConfig, Transfusion, UNetPatcher, Visibility
from lit_transfusion.model.flops import Flops, peak_bf16


class Everything(Visibility):
    """Every query sees all keys, because eager attention computes all pairs."""

    def intervals(self, document_ids, image_ids):
        return torch.zeros_like(document_ids), torch.full_like(document_ids, document_ids.shape[1])


@pytest.mark.parametrize("images", [0, 1, 3])
@pytest.mark.parametrize("logits", [0, 5])
@pytest.mark.parametrize("patcher", [LinearPatcher(3, 32, 2), UNetPatcher(3, 32, 2, channels=16, head_dim=8)])
def test_formula_equals_the_count_of_torch(patcher, logits, images):
    size = TransformerConfig(dim=32, n_layers=3, n_heads=4, hidden_dim=48)
    net = Transfusion(50, size, patcher, Everything(), attention="eager")
    image_ids = torch.full((2, 10), -1)
    image_ids.flatten()[: 4 * images] = torch.arange(images).repeat_interleave(4)
    zeros = torch.zeros_like(image_ids)
    pictures, timesteps = torch.randn(images, 3, 4, 4), torch.zeros(images, dtype=torch.int64)
    # With the MATH backend, since torch before 2.15 does not count fused attention on a CPU.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        run(net, zeros, zeros, zeros, image_ids, pictures, timesteps, torch.arange(logits))
    flops = Flops.count(net)
    in_patcher = flops.image((3, 4, 4)) * images
    expected = flops.token * 20 + flops.pair * 2 * 10 * 10 + flops.logit * logits + in_patcher
    assert expected == counter.get_total_flops()
    assert flops.training_step(20, 200, logits, in_patcher) == 3 * expected
    assert next(net.parameters()).device.type == "cpu"  # only a copy was moved to meta


def test_peak_of_known_and_unknown_cards():
    assert peak_bf16("NVIDIA H100 80GB HBM3") == 989.5e12
    assert peak_bf16("NVIDIA H100 PCIe") == 756e12
    assert peak_bf16("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_bf16("NVIDIA L40S") == 362e12
    assert peak_bf16("NVIDIA GeForce RTX 4090") == 165.2e12
    for unknown in ("NVIDIA GeForce GTX 1080", "NVIDIA L40", "NVIDIA RTX A4000", "NVIDIA A10G", "RTX 4090 Laptop GPU"):
        assert peak_bf16(unknown) is None
