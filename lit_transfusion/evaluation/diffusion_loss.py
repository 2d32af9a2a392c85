"""Metric of the diffusion loss on held-out pictures after their captions, by timestep."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lit_transfusion.evaluation.metric import Metric, Subject, Unavailable
from lit_transfusion.timestep_buckets import TIMESTEP_BUCKETS, bucket_names

if TYPE_CHECKING:
    from torch import Tensor

    from lit_transfusion.evaluation.likelihood import Noised
    from lit_transfusion.generation.pipeline import Pipeline

BUCKET_NAMES = [f"diffusion_loss_t{name.replace('-', '_')}" for name in bucket_names(1000)]


class DiffusionLoss(Metric):
    """L_DDPM of the held-out pictures after one of their captions, with fixed noise and timesteps.

    Each picture is noised once in each of eight buckets of timesteps, at a timestep drawn uniformly from the bucket. So
    `diffusion_loss`, the mean over the buckets, estimates the loss at uniformly drawn timesteps, for any
    `timestep_shift` in training, and with less variance than the training loss. The other columns are the means of the
    buckets, named by their first and last timestep in thousandths of T: small t is detail, large t is layout. The noise
    of a picture depends only on the seed and the index of the example.

    Losses can be compared between models with the same prediction type and the same latent space.

    Args:
        seed: Seed for noise and timesteps.
    """

    columns: ClassVar[dict[str, str]] = dict.fromkeys(["diffusion_loss", *BUCKET_NAMES], "less")
    samples: ClassVar[bool] = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __call__(self, subject: Subject) -> dict[str, float]:
        means = losses_by_timestep(subject, subject.prompts, self.seed).double().mean(0)  # (buckets,)
        return {"diffusion_loss": float(means.mean()), **dict(zip(BUCKET_NAMES, means.tolist(), strict=True))}


def losses_by_timestep(subject: Subject, captions: Sequence[str], seed: int) -> "Tensor":
    """L_DDPM of each picture of the examples after the caption with the same index, in each bucket: (N, buckets).

    Noise and timesteps do not depend on the captions, so losses after different captions can be compared one by one.
    """
    import torch

    from lit_transfusion.data.grammar import caption_first
    from lit_transfusion.data.permutation import hash_of
    from lit_transfusion.evaluation.likelihood import Noised, image_losses, latents_of
    from lit_transfusion.generation.prompts import caption_tokens

    pipeline, losses = subject.pipeline, []
    if pipeline.images_are_tokens:
        raise Unavailable("images are tokens, so there is no diffusion loss; use CodeLoss")
    for rows in subject.batches(len(captions)):
        subject.on_progress("denoising", rows.start, len(captions))
        latents = latents_of(pipeline, subject.pictures[rows.start : rows.stop])
        tokens = [caption_tokens(pipeline, captions[i]) for i in rows]
        documents = [
            caption_first(words, image, pipeline.tokenizer)
            for words, image in zip(tokens, latents, strict=True)
            for _ in range(TIMESTEP_BUCKETS)
        ]
        noised = [
            one_in_each_bucket(pipeline, image.shape, hash_of(seed, i)) for i, image in zip(rows, latents, strict=True)
        ]
        timesteps = torch.cat([one.timesteps for one in noised])
        noise = [noise for one in noised for noise in one.noise]
        losses.append(image_losses(pipeline, documents, Noised(timesteps, noise), subject.batch_size))
    return torch.cat(losses).unflatten(0, (-1, TIMESTEP_BUCKETS))


def one_in_each_bucket(pipeline: "Pipeline", shape: tuple[int, ...], seed: int) -> "Noised":
    """Draw one timestep from each bucket of [0, T), with noise of this shape (C, H, W) for each."""
    import torch

    from lit_transfusion.evaluation.likelihood import Noised

    generator = torch.Generator().manual_seed(seed)
    edges = torch.arange(TIMESTEP_BUCKETS + 1) * pipeline.noise.num_train_timesteps // TIMESTEP_BUCKETS
    share = torch.rand(TIMESTEP_BUCKETS, generator=generator, dtype=torch.float64)
    timesteps = edges[:-1] + (share * edges.diff()).long()
    return Noised(timesteps, torch.randn(TIMESTEP_BUCKETS, *shape, generator=generator))
