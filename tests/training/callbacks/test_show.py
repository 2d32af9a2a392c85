"""When things are shown where gradients are accumulated, and what is refused before anything is trained."""

import pytest

from lit_transfusion.errors import InputError
from lit_transfusion.training.callbacks import Show, ShowEdits, ShowSamples


class Times(Show):
    """Keeps the steps at which it would show something."""

    def __init__(self, every_n_steps):
        super().__init__(every_n_steps)
        self.steps = []

    def _show(self, trainer, pl_module):
        self.last_step = trainer.global_step
        self.steps.append(trainer.global_step)


def test_shows_each_nth_step_once_and_never_what_has_learned_nothing(make_module, make_batch, make_trainer, loader):
    batches = loader(*[make_batch("mixed", seed) for seed in range(10)])
    each, second, none_but_the_last = Times(1), Times(2), Times(100)
    trainer = make_trainer(callbacks=[each, second, none_but_the_last], accumulate_grad_batches=2)
    trainer.fit(make_module(), batches)
    assert each.steps == [1, 2, 3, 4, 5]
    assert second.steps == [2, 4, 5]
    assert none_but_the_last.steps == [5]


@pytest.mark.parametrize("kind", [ShowSamples, ShowEdits])
def test_steps_that_the_noise_process_does_not_have_are_refused_at_once(
    make_module, make_batch, make_trainer, loader, kind
):
    trainer = make_trainer(callbacks=[kind(num_inference_steps=1001)])
    with pytest.raises(InputError, match="num_inference_steps 1001"):
        trainer.fit(make_module(), loader(make_batch()))
    assert trainer.global_step == 0
