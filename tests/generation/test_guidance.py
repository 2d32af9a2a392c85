"""Guidance against closed forms."""

import pytest
import torch

from lit_transfusion.generation.guidance import guide


def predictions():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 4, 4, generator=generator), 0.5 * torch.randn(2, 3, 4, 4, generator=generator) + 0.1


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_extrapolates_from_null_through_prompted(scale):
    prompted, null = predictions()
    torch.testing.assert_close(guide(prompted, null, scale), (1 - scale) * null + scale * prompted)


@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_rescaling_is_that_of_lin_et_al(rescale):
    """Equations 15 and 16 for each image: scaled by σ_pos / σ_cfg with weight φ, unscaled with weight 1 - φ."""
    prompted, null = predictions()
    guided = guide(prompted, null, 4.0)
    result = guide(prompted, null, 4.0, rescale)
    for i in range(2):
        rescaled = guided[i] * (prompted[i].std() / guided[i].std())
        torch.testing.assert_close(result[i], rescale * rescaled + (1 - rescale) * guided[i])


def test_full_rescaling_gives_the_contrast_of_the_prompted_prediction():
    prompted, null = predictions()
    result = guide(prompted, null, 4.0, 1.0)
    torch.testing.assert_close(result.std(dim=(1, 2, 3)), prompted.std(dim=(1, 2, 3)))
