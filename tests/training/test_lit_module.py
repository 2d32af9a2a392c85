"""Tests of the LightningModule: losses against formulas, batches that lack a modality, logs, and the average."""

import math
from collections import Counter

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loggers.logger import DummyLogger
from single_shape import given

from lit_transfusion.data.permutation import hash_of
from lit_transfusion.data.types import IGNORE_INDEX
from lit_transfusion.diffusion import DDPM
from lit_transfusion.errors import InputError
from lit_transfusion.model import LinearPatcher, UNetPatcher


class CallRecorder:
    """Records inputs and outputs of each call of a net."""

    def __init__(self, net: torch.nn.Module) -> None:
        self.noisy_images, self.timesteps, self.logit_positions, self.outputs = [], [], [], []
        net.register_forward_hook(self.record, with_kwargs=True)

    def record(self, net, args, kwargs, output):
        images, timesteps = given(args)
        self.noisy_images.append(images.detach().clone())
        self.timesteps.append(timesteps.clone())
        self.logit_positions.append(kwargs["logit_positions"])
        self.outputs.append(output)


def alpha_bar(timesteps: torch.Tensor, T: int = 1000) -> torch.Tensor:
    """Compute ᾱ_t of the cosine schedule of Nichol & Dhariwal, Equation 17, with each β at most 0.999."""

    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f((t + 1) / T) / f(t / T), 0.999) for t in range(T)]
    products = torch.tensor([1 - beta for beta in betas], dtype=torch.float64).cumprod(0)
    return products[timesteps].float().view(-1, 1, 1, 1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def learning(batch, learned: torch.Tensor):
    """The batch with a loss on these images only."""
    (group,) = batch.image_groups
    return batch._replace(image_groups=(group._replace(learned=learned),))


# Noise


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_target_contains_the_noise_of_the_input(make_module, make_batch, prediction_type):
    module, batch = make_module(noise=DDPM(prediction_type=prediction_type)), make_batch()
    calls = CallRecorder(module.net)
    terms, timesteps = module.losses(module.net, batch, generator())
    assert batch.num_images == 3 and torch.equal(timesteps, calls.timesteps[0])

    x_0, x_t, signal = batch.image_groups[0].images, calls.noisy_images[0], alpha_bar(timesteps)
    noise = (x_t - signal.sqrt() * x_0) / (1 - signal).sqrt()
    assert abs(noise.mean()) < 0.3 and noise.std() == pytest.approx(1, abs=0.2)
    target = {
        "epsilon": noise,
        "v_prediction": signal.sqrt() * noise - (1 - signal).sqrt() * x_0,
        "sample": x_0,
    }[prediction_type]
    expected = (calls.outputs[0].image_predictions[0] - target).square().mean((1, 2, 3))
    torch.testing.assert_close(terms.per_image, expected, rtol=1e-3, atol=1e-3)


def test_max_timestep_of_an_image_limits_training(make_module, make_batch):
    module = make_module()
    drawn = torch.stack(
        [module.losses(module.net, make_batch(max_timestep=50), generator(seed))[1] for seed in range(40)]
    )
    assert drawn[:, 1].max() <= 50 < drawn[:, 0].min() + 500  # the second image is before its caption
    assert drawn[:, 0].max() > 500 and drawn[:, 2].max() > 500


def test_logits_are_computed_only_at_labels(make_module, make_batch):
    module, batch = make_module(), make_batch()
    calls = CallRecorder(module.net)
    terms, _ = module.losses(module.net, batch, generator())
    labels = batch.labels.flatten()
    assert torch.equal(calls.logit_positions[0], (labels != IGNORE_INDEX).nonzero().squeeze(1))
    expected = torch.nn.functional.cross_entropy(calls.outputs[0].logits, labels[labels != IGNORE_INDEX])
    torch.testing.assert_close(terms.text, expected)


def test_padding_does_not_change_the_loss(make_module, make_batch):
    module = make_module()
    short, long = (module.losses(module.net, make_batch(length=n), generator())[0] for n in (32, 64))
    torch.testing.assert_close(short, long)


def test_noise_differs_between_micro_batches_and_is_the_same_in_a_second_run(
    make_module, make_batch, make_trainer, loader
):
    def drawn():
        module = make_module()
        calls = CallRecorder(module.net)
        batches = loader(*[make_batch()] * 6)
        make_trainer(accumulate_grad_batches=2).fit(module, batches)
        return [tuple(t.tolist()) for t in calls.timesteps]

    first = drawn()
    torch.manual_seed(1)
    assert drawn() == first
    assert len(set(first)) == 6


def test_each_validation_has_the_same_noise(make_module, make_batch, make_trainer, loader):
    module = make_module()
    calls = CallRecorder(module.ema)
    results = [
        make_trainer().validate(module, loader(make_batch(), make_batch(seed=1)), verbose=False) for _ in range(2)
    ]
    assert results[0] == results[1]
    assert all(map(torch.equal, calls.noisy_images[:2], calls.noisy_images[2:]))
    assert not torch.equal(calls.timesteps[0], calls.timesteps[1])  # different batches differ


# Batches that lack a modality


@pytest.mark.parametrize("patcher", [LinearPatcher, UNetPatcher])
@pytest.mark.parametrize("kind", ["text", "image", "mixed"])
def test_every_parameter_has_a_gradient_without_one_modality(make_module, make_batch, kind, patcher):
    module, batch = make_module(patcher=patcher), make_batch(kind)
    terms, _ = module.losses(module.net, batch, generator())
    terms.total.backward()
    assert terms.total.isfinite()
    assert (terms.text > 0) == (kind != "image") and (terms.image > 0) == (kind != "text")
    without = [name for name, p in module.net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    moved = {name.split(".")[0] for name, p in module.net.named_parameters() if p.grad.abs().sum() > 0}
    assert ("patcher" in moved) == (kind != "text") and ("head" in moved) == (kind != "image")


@pytest.mark.parametrize("kind", ["text", "image"])
def test_run_without_one_modality_trains_and_validates(make_module, make_batch, make_trainer, loader, kind):
    module = make_module()
    before = {name: p.clone() for name, p in module.net.named_parameters()}
    trainer = make_trainer()
    trainer.fit(module, loader(make_batch(kind), make_batch(kind, seed=1)), loader(make_batch(kind)))
    assert trainer.global_step == 2
    assert all(p.isfinite().all() for p in module.parameters())
    assert any(not torch.equal(p, before[name]) for name, p in module.net.named_parameters())
    assert trainer.callback_metrics["val/loss"].isfinite()
    assert ("val/loss_text" in trainer.callback_metrics) == (kind == "text")
    assert ("val/loss_image" in trainer.callback_metrics) == (kind == "image")


# What is logged


def test_validation_losses_are_means_over_tokens_and_images(make_module, make_batch, make_trainer, loader):
    module = make_module()
    batches = [make_batch("text"), make_batch("mixed", seed=1), make_batch("image", seed=2)]
    calls = CallRecorder(module.ema)
    (result,) = make_trainer().validate(module, loader(*batches), verbose=False)
    nats, targets, errors = 0.0, 0, []
    for batch, output, noisy, t in zip(batches, calls.outputs, calls.noisy_images, calls.timesteps, strict=True):
        labels = batch.labels[batch.labels != IGNORE_INDEX]
        nats += torch.nn.functional.cross_entropy(output.logits, labels, reduction="sum").item()
        targets += len(labels)
        noise = (noisy - alpha_bar(t).sqrt() * batch.image_groups[0].images) / (1 - alpha_bar(t)).sqrt()
        errors += (output.image_predictions[0] - noise).square().mean((1, 2, 3)).tolist()
    assert result["val/loss_text"] == pytest.approx(nats / targets, rel=1e-4)
    assert result["val/perplexity"] == pytest.approx(math.exp(nats / targets), rel=1e-4)
    assert result["val/loss_image"] == pytest.approx(sum(errors) / len(errors), rel=1e-3)


def test_z_loss_is_logged_and_part_of_the_sum(make_module, make_batch, make_trainer, loader):
    module = make_module(z_loss_weight=0.1)
    trainer = make_trainer(log_every_n_steps=1, logger=(logger := MemoryLogger()))
    trainer.fit(module, loader(make_batch()), loader(make_batch()))
    (step,) = [metrics for _, metrics in logger.rows if "train/loss_z" in metrics]
    for stage, values in (("train", step), ("val", trainer.callback_metrics)):
        text, image, z = (float(values[f"{stage}/loss_{name}"]) for name in ("text", "image", "z"))
        assert z > 0 and float(values[f"{stage}/loss"]) == pytest.approx(text + 5 * image + 0.1 * z, rel=1e-5)
    plain = make_module()
    trainer = make_trainer()
    trainer.fit(plain, loader(make_batch()), loader(make_batch()))
    assert "val/loss_z" not in trainer.callback_metrics


class MemoryLogger(DummyLogger):
    """Records the logged values with their step."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step):
        self.rows.append((step, metrics))


BY_TIMESTEP = "train/loss_image_by_timestep/"


def bucket_of(timestep: int) -> str:
    return f"{timestep // 125 * 125:03d}-{timestep // 125 * 125 + 124:03d}"


@pytest.mark.parametrize("every", [1, 3])
def test_losses_by_timestep_are_of_the_logged_step(make_module, make_batch, make_trainer, loader, every):
    """They are not of an earlier step, and timesteps that were not drawn have no value."""
    module, logger = make_module(), MemoryLogger()
    calls = CallRecorder(module.net)
    batches = loader(*(make_batch(seed=seed) for seed in range(9)))
    make_trainer(logger=logger, log_every_n_steps=every).fit(module, batches)
    rows: dict[int, dict] = {}
    for step, metrics in logger.rows:
        if any(name.startswith("train/loss") for name in metrics):
            rows[step] = rows.get(step, {}) | metrics
    assert sorted(rows) == list(range(every - 1, 9, every))
    for step, metrics in rows.items():
        drawn = Counter(bucket_of(t) for t in calls.timesteps[step].tolist())
        logged = {name.removeprefix(BY_TIMESTEP): v for name, v in metrics.items() if name.startswith(BY_TIMESTEP)}
        assert logged.keys() == drawn.keys(), step
        mean = sum(logged[bucket] * count for bucket, count in drawn.items()) / drawn.total()
        assert mean == pytest.approx(metrics["train/loss_image"], rel=1e-4), step


def test_gradient_is_clipped_by_norm_and_its_norm_before_is_logged(make_module, make_batch, make_trainer, loader):
    clip = 1e-3
    module = make_module(optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0))
    module.scheduler = lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    before = torch.nn.utils.parameters_to_vector(module.net.parameters()).detach().clone()
    trainer = make_trainer(gradient_clip_val=clip)
    trainer.fit(module, loader(make_batch()))
    moved = torch.nn.utils.parameters_to_vector(module.net.parameters()).detach() - before
    assert moved.norm() == pytest.approx(clip, rel=0.02)
    assert trainer.callback_metrics["train/grad_norm"] > 10 * clip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate_grad_batches": 2, "limit_train_batches": 5}, "limit_train_batches 5.*use 4"),
        ({"accumulate_grad_batches": 4, "limit_train_batches": 3}, "limit_train_batches 3.*use 4"),
        ({"callbacks": [GradientAccumulationScheduler({0: 1, 2: 4})]}, "accumulate_grad_batches"),
        ({"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}, "gradient_clip_algorithm.*norm"),
    ],
)
def test_settings_that_make_steps_unequal_are_an_error(make_module, make_batch, make_trainer, loader, options, message):
    with pytest.raises(InputError, match=message):
        make_trainer(**options).fit(make_module(), loader(*[make_batch()] * 8))


def test_step_without_images_logs_no_image_loss(make_module, make_batch, make_trainer, loader):
    logger = MemoryLogger()
    batches = loader(make_batch("mixed"), make_batch("text"), make_batch("image"))
    make_trainer(logger=logger, log_every_n_steps=1).fit(make_module(), batches)
    rows = {step: {} for step, _ in logger.rows}
    for step, metrics in logger.rows:
        rows[step] |= metrics
    present = [[name for name in ("train/loss_text", "train/loss_image") if name in rows[step]] for step in range(3)]
    assert present == [["train/loss_text", "train/loss_image"], ["train/loss_text"], ["train/loss_image"]]
    assert rows[1]["train/loss"] == pytest.approx(rows[1]["train/loss_text"])
    assert rows[2]["train/loss"] == pytest.approx(5 * rows[2]["train/loss_image"])


def test_validation_loss_is_the_sum_of_its_two_parts(make_module, make_batch, make_trainer, loader):
    """This also holds if some batches have no image."""
    batches = loader(make_batch("text"), make_batch("mixed", seed=1), make_batch("image", seed=2))
    (result,) = make_trainer().validate(make_module(), batches, verbose=False)
    assert result["val/loss"] == pytest.approx(result["val/loss_text"] + 5 * result["val/loss_image"])


# The average


class WeightsByStep(lightning.Callback):
    def __init__(self) -> None:
        self.weights = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step > len(self.weights):
            self.weights.append([p.detach().clone() for p in pl_module.net.parameters()])


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("decay", [0.2, 0.999])
def test_average_equals_its_recursion(make_module, make_batch, make_trainer, loader, accumulate, decay):
    module, steps = make_module(ema_decay=decay), WeightsByStep()
    expected = [p.detach().clone() for p in module.net.parameters()]
    assert all(map(torch.equal, module.ema.parameters(), expected))
    trainer = make_trainer(accumulate_grad_batches=accumulate, callbacks=[steps])
    trainer.fit(module, loader(*(make_batch(seed=seed) for seed in range(4 * accumulate))))
    assert len(steps.weights) == 4
    for step, weights in enumerate(steps.weights, start=1):
        d = min(decay, (1 + step) / (10 + step))
        expected = [d * e + (1 - d) * w for e, w in zip(expected, weights, strict=True)]
    torch.testing.assert_close(list(module.ema.parameters()), expected)
    assert not torch.equal(module.ema.head.weight, module.net.head.weight)


def test_average_is_not_trained_and_is_used_for_sampling(make_module):
    module = make_module()
    assert not any(p.requires_grad for p in module.ema.parameters())
    assert module.pipeline.net is module.ema
    shared = {p.data_ptr() for p in module.ema.parameters()} & {p.data_ptr() for p in module.net.parameters()}
    assert not shared


def test_without_an_average(make_module, make_batch, make_trainer, loader, tmp_path):
    module = make_module(ema_decay=None)
    assert module.ema is None and module.pipeline.net is module.net
    trainer = make_trainer()
    trainer.fit(module, loader(make_batch()), loader(make_batch()))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    names = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert names and all(name.startswith("net.") for name in names)


# Images without a loss: the input of an edit


def test_only_images_that_are_learned_have_a_loss(make_module, make_batch):
    """Noise and predictions do not depend on which images are learned."""
    module, batch = make_module(), make_batch()
    everything, timesteps = module.losses(module.net, batch, generator())
    learned = torch.tensor([0, 2])
    terms, its_timesteps = module.losses(module.net, learning(batch, learned), generator())
    torch.testing.assert_close(terms.per_image, everything.per_image[learned])
    torch.testing.assert_close(terms.image, everything.per_image[learned].mean())
    assert torch.equal(its_timesteps, timesteps[learned]) and terms.text == everything.text


def test_batch_without_learned_images_has_all_gradients(make_module, make_batch):
    module, batch = make_module(), make_batch("image")
    unlearned = learning(batch, torch.tensor([], dtype=torch.int64))
    terms, timesteps = module.losses(module.net, unlearned, generator())
    assert terms.total == 0 and terms.per_image.shape == timesteps.shape == (0,)
    terms.total.backward()
    assert all(p.grad is not None and not p.grad.any() for p in module.net.parameters())


def test_clean_input_has_timestep_zero(make_module, make_batch):
    """The sampler also uses timestep 0 for a finished image; only the small noise of t = 0 differs."""
    module, batch = make_module(), make_batch(max_timestep=0)  # of the second image, which is before its caption
    calls = CallRecorder(module.net)
    for seed in range(5):
        module.losses(module.net, batch, generator(seed))
        assert calls.timesteps[-1][1] == 0
        assert (calls.noisy_images[-1][1] - batch.image_groups[0].images[1]).abs().mean() < 2 / 255


def test_losses_by_timestep_omit_images_that_are_not_learned(make_module, make_batch, make_trainer, loader):
    module, batch = make_module(), make_batch(max_timestep=0)
    batch = learning(batch, torch.tensor([0, 2]))
    (results,) = make_trainer().validate(module, loader(batch), verbose=False)
    terms, timesteps = module.losses(module.ema, batch, generator(hash_of(module.seed, 0)))
    assert len(terms.per_image) == 2
    first = results.get("val/loss_image_by_timestep/000-124")
    inside = timesteps < 125
    assert (first is None) == (not inside.any())
    assert results["val/loss_image"] == pytest.approx(terms.image.item(), rel=1e-4)
