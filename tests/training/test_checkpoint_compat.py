"""Tests of loading checkpoints: to resume, to start a new run, and errors for those that do not fit."""

import pytest
import torch

from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.errors import InputError
from lit_transfusion.model import UNetPatcher
from lit_transfusion.training.lit_module import LitTransfusion


@pytest.fixture
def checkpoint(make_module, make_batch, make_trainer, loader, tmp_path):
    module, trainer = make_module(), make_trainer()
    trainer.fit(module, loader(make_batch()))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def error_of(module: LitTransfusion, checkpoint, make_trainer, batches) -> str:
    """Return the message of the InputError, and check that the module has not changed."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(InputError) as caught:
        make_trainer().fit(module, batches, ckpt_path=str(checkpoint))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_error_for_a_checkpoint_of_another_width_names_both_shapes(
    make_module, make_batch, make_trainer, loader, checkpoint
):
    message = error_of(make_module(dim=32), checkpoint, make_trainer, loader(make_batch()))
    vocab_size = make_module().net.head.weight.shape[0]
    assert f"{vocab_size}x16 in the checkpoint" in message and f"{vocab_size}x32 here" in message


def test_error_for_a_checkpoint_of_another_patcher_names_missing_weights(
    make_module, make_batch, make_trainer, loader, checkpoint
):
    message = error_of(make_module(patcher=UNetPatcher), checkpoint, make_trainer, loader(make_batch()))
    assert "patcher" in message and "missing" in message


def test_checkpoint_of_another_tokenizer_is_an_error(make_module, make_batch, make_trainer, loader, checkpoint):
    other = Tokenizer.train(["green crosses", "a yellow star"] * 4, 300)
    message = error_of(make_module(tokenizer=other), checkpoint, make_trainer, loader(make_batch()))
    assert "another tokenizer" in message and "data.tokenizer_model" in message


def test_checkpoint_of_another_program_is_an_error(make_module, make_batch, make_trainer, loader, checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    del content["lit_transfusion"]
    torch.save(content, checkpoint)
    assert "not a checkpoint of lit_transfusion" in error_of(
        make_module(), checkpoint, make_trainer, loader(make_batch())
    )


def test_checkpoint_restores_net_and_average(make_module, make_batch, make_trainer, loader, checkpoint):
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    module = make_module()
    make_trainer().validate(module, loader(make_batch()), ckpt_path=str(checkpoint), verbose=False)
    mine = module.state_dict()
    assert mine.keys() == saved.keys() and all(torch.equal(mine[name], saved[name]) for name in mine)
    assert any(name.startswith("ema.") for name in mine)


# A new run


def test_run_starts_from_the_average_of_another(make_module, checkpoint):
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    module = make_module(init_from=str(checkpoint))
    assert not torch.equal(saved["ema.head.weight"], saved["net.head.weight"])
    for net in (module.net, module.ema):
        assert all(torch.equal(weight, saved[f"ema.{name}"]) for name, weight in net.state_dict().items())


def test_starting_from_a_model_that_does_not_fit_is_an_error(make_module, checkpoint):
    path = str(checkpoint)
    with pytest.raises(InputError, match=rf"model\.init_from: {path} does not fit this model: size mismatch"):
        make_module(init_from=path, dim=32)
    other = Tokenizer.train(["green crosses", "a yellow star"] * 4, 300)
    with pytest.raises(InputError, match=rf"model\.init_from: {path} .* another tokenizer; set data\.tokenizer_model"):
        make_module(init_from=path, tokenizer=other)
