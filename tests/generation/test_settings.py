"""Invalid settings are an error that names key and value."""

import pytest

from lit_transfusion.errors import InputError
from lit_transfusion.generation.settings import Sampling


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1 "),
        ({"temperature": float("nan")}, "temperature nan "),
        ({"guidance_scale": -1.0}, "guidance_scale -1.0 "),
        ({"max_new_tokens": -1}, "max_new_tokens -1 "),
        ({"guidance_scale": float("inf")}, "guidance_scale inf "),
        ({"seed": 2**63}, "seed 9223372036854775808 "),
        ({"max_images": -1}, "max_images -1 "),
        ({"top_k": 0}, "top_k 0 .*null"),
        ({"top_p": 0.0}, "top_p 0.0 "),
        ({"top_p": 1.1}, "top_p 1.1 "),
        ({"guidance_rescale": 1.5}, "guidance_rescale 1.5 "),
        ({"guidance_interval": (0.8, 0.2)}, "guidance_interval 0.8, 0.2 "),
        ({"guidance_interval": (0.0, 2.0)}, "guidance_interval 0.0, 2.0 "),
    ],
)
def test_invalid_settings(wrong, message):
    with pytest.raises(InputError, match=message):
        Sampling(**wrong)


def test_guidance_is_on_inside_its_interval():
    sampling = Sampling(guidance_scale=2, guidance_interval=(0.2, 0.5))
    assert [sampling.guides_at(share) for share in (0.0, 0.19, 0.2, 0.4, 0.5, 0.51, 1.0)] == [0, 0, 1, 1, 1, 0, 0]
    assert not Sampling(guidance_scale=1).guides_at(0.4)
