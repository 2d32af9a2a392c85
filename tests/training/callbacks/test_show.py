"""Tests of when pictures are shown if gradients are accumulated, and of settings that are errors before training."""

from lit_transfusion.training.callbacks import Show


class Times(Show):
    """Records the steps at which it would show something."""

    def __init__(self, every_n_steps):
        super().__init__(every_n_steps)
        self.steps = []

    def _show(self, trainer, pl_module):
        self.last_step = trainer.global_step
        self.steps.append(trainer.global_step)


def test_shows_each_nth_step_once_and_not_before_the_first_step(make_module, make_batch, make_trainer, loader):
    batches = loader(*[make_batch("mixed", seed) for seed in range(10)])
    each, second, none_but_the_last = Times(1), Times(2), Times(100)
    trainer = make_trainer(callbacks=[each, second, none_but_the_last], accumulate_grad_batches=2)
    trainer.fit(make_module(), batches)
    assert each.steps == [1, 2, 3, 4, 5]
    assert second.steps == [2, 4, 5]
    assert none_but_the_last.steps == [5]
