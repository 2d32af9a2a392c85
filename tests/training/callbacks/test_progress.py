"""How far the bar is where gradients are accumulated."""

from lit_transfusion.training.callbacks import RunProgress


def test_bar_ends_with_the_last_batch(make_module, make_batch, make_trainer, loader):
    bar = RunProgress()
    batches = loader(*[make_batch("mixed", seed) for seed in range(6)])
    options = {"accumulate_grad_batches": 2, "max_steps": 3, "max_epochs": -1, "limit_train_batches": 6}
    make_trainer(callbacks=[bar], enable_progress_bar=True, **options).fit(make_module(), batches)
    assert bar.total_train_batches == 6
