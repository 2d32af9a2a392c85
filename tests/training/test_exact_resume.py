"""What a checkpoint holds of the step at which a run ends. (Runs that are stopped elsewhere: test_resume.py.)"""

import torch
from lightning.pytorch.callbacks import ModelCheckpoint


def test_last_step_is_kept_with_its_average_whatever_callbacks_the_config_has(
    make_module, make_batch, make_trainer, loader, tmp_path
):
    """Though it is no multiple of the interval. The average is that of the step, not of the one before."""
    keeper = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_last="link")
    batches = loader(*[make_batch("mixed", seed) for seed in range(3)])
    module = make_module()
    make_trainer(callbacks=[keeper], enable_checkpointing=True, max_steps=3, max_epochs=-1).fit(module, batches)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 3
    assert kept["state_dict"].keys() == module.state_dict().keys()
    assert all(torch.equal(kept["state_dict"][name], weight) for name, weight in module.state_dict().items())
