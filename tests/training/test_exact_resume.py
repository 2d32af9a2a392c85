"""Tests of the checkpoint of the last step. (test_resume.py tests runs that are stopped earlier.)"""

import torch
from lightning.pytorch.callbacks import ModelCheckpoint


def test_last_step_is_saved_with_its_average(make_module, make_batch, make_trainer, loader, tmp_path):
    """It is not a multiple of the interval. The average is that of this step, not of the one before."""
    keeper = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_last="link")
    batches = loader(*[make_batch("mixed", seed) for seed in range(3)])
    module = make_module()
    make_trainer(callbacks=[keeper], enable_checkpointing=True, max_steps=3, max_epochs=-1).fit(module, batches)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 3
    assert saved["state_dict"].keys() == module.state_dict().keys()
    assert all(torch.equal(saved["state_dict"][name], weight) for name, weight in module.state_dict().items())
