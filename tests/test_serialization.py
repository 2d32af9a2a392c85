"""Parts are converted to plain data and back."""

import json
import sys

import pytest
from torch import nn

from lit_transfusion.diffusion import DDPM, NoiseProcess
from lit_transfusion.errors import InputError
from lit_transfusion.latents import Codec, Pixels
from lit_transfusion.model import Bidirectional, Causal, LinearPatcher, Patcher, UNetPatcher, Visibility
from lit_transfusion.serialization import build, describe

PARTS = [
    (LinearPatcher(latent_channels=4, dim=48, patch_size=4, positions=6), Patcher),
    (UNetPatcher(5, dim=48, patch_size=4, channels=24, num_res_blocks=2, head_dim=8, attention_levels=1), Patcher),
    (Bidirectional(), Visibility),
    (Causal(), Visibility),
    (DDPM(77, beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=True), NoiseProcess),
    (Pixels(), Codec),
]


class Window(Visibility):
    """A part that is not of this package."""

    def __init__(self, size: int, *, both_sides: bool = False) -> None:
        self.size = size
        self.both_sides = both_sides


class Forgetful(Visibility):
    def __init__(self, size: int, depth: int = 3) -> None:
        self.depth = depth


@pytest.mark.parametrize(("part", "base"), PARTS, ids=[type(part).__name__ for part, _ in PARTS])
def test_every_part_of_the_package_is_restored(part, base):
    """The class and the arguments are the same after JSON; a module accepts the same weights."""
    description = json.loads(json.dumps(describe(part)))
    assert description["class_path"].split(".")[0] == "lit_transfusion"
    again = build(description, base)
    assert type(again) is type(part)
    assert describe(again) == describe(part)
    if isinstance(part, nn.Module):
        again.load_state_dict(part.state_dict())


def test_description_has_the_form_of_yaml():
    assert describe(LinearPatcher(dim=48))["class_path"] == "lit_transfusion.model.patchers.linear.LinearPatcher"
    arguments = {"num_train_timesteps": 9, "beta_schedule": "linear", "prediction_type": "sample", "clip_sample": False}
    arguments |= {"timestep_shift": 1.0, "loss_type": None, "loss_weighting": "none"}
    arguments |= {"min_snr_gamma": 5.0, "sigmoid_bias": -1.0}
    assert describe(DDPM(9, "linear", "sample"))["init_args"] == arguments
    assert describe(PARTS[1][0])["init_args"] == {
        "latent_channels": 5,
        "dim": 48,
        "patch_size": 4,
        "channels": 24,
        "num_res_blocks": 2,
        "head_dim": 8,
        "attention_levels": 1,
        "positions": 0,
    }
    assert describe(Bidirectional())["init_args"] == {}


def test_unet_saved_without_positions_can_be_built():
    description = describe(PARTS[1][0])
    del description["init_args"]["positions"]
    assert [*build(description, Patcher).state_dict()] == [*PARTS[1][0].state_dict()]


def test_own_part_is_restored():
    window = build(describe(Window(5, both_sides=True)), Visibility)
    assert (window.size, window.both_sides) == (5, True)


def test_part_that_does_not_store_its_arguments_is_an_error():
    with pytest.raises(TypeError, match=r"Forgetful must store its argument\(s\) size as attributes"):
        describe(Forgetful(2))


@pytest.mark.parametrize("class_path", ["os.system", "collections.OrderedDict", "builtins.print"])
def test_class_that_is_not_a_subclass_is_never_called(class_path, capfd):
    with pytest.raises(InputError, match=f"{class_path} is not a Visibility"):
        build({"class_path": class_path, "init_args": {"command": "echo called"}}, Visibility)
    assert "called" not in capfd.readouterr().out


def test_part_of_another_kind_is_an_error():
    with pytest.raises(InputError, match=r"Causal is not a Patcher"):
        build(describe(Causal()), Patcher)


@pytest.mark.parametrize(
    ("class_path", "message"),
    [
        ("lit_transfusion.model.NoSuchMask", "its module has no class of that name"),
        (
            "lit_transfusion.no_such_package.Mask",
            r"cannot be imported \(No module named 'lit_transfusion.no_such_package'\)",
        ),
    ],
)
def test_unknown_class_of_this_package_is_an_error(class_path, message):
    with pytest.raises(InputError, match=f"{class_path}:? {message}"):
        build({"class_path": class_path, "init_args": {}}, Visibility)


@pytest.mark.parametrize(
    "description",
    [
        "Causal",
        None,
        {},
        {"class_path": "x.Y"},
        {"class_path": 3, "init_args": {}},
        {"class_path": "Mask", "init_args": {}},
    ],
)
def test_invalid_description_is_an_error(description):
    with pytest.raises(InputError, match="does not describe a Visibility"):
        build(description, Visibility)


def test_arguments_of_another_version_are_an_error():
    description = describe(Causal()) | {"init_args": {"reach": 3}}
    with pytest.raises(InputError, match=r"Causal does not accept its saved arguments: .*'reach'"):
        build(description, Visibility)


@pytest.mark.parametrize("module", ["no_such_package", "lit_transfusion_2", "antigravity", "this"])
def test_module_outside_this_package_is_not_imported(module):
    """Both for missing and for existing modules (`antigravity` opens a browser, `this` prints a text)."""
    with pytest.raises(InputError, match=f"{module}.Mask is a class of the module {module}.*--import_module {module}"):
        build({"class_path": f"{module}.Mask", "init_args": {}}, Visibility)
    assert module not in sys.modules
