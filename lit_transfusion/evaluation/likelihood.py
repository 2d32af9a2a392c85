"""What a model makes of whole documents: how likely it finds their text, and how well it denoises their images.

Nothing is sampled. The net reads each document once, as in training, under the same visibility and the same positions.

    document = caption_given_image(pipeline, "a red circle", latents)
    text_likelihoods(pipeline, [document])[0].log_probability
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from lit_transfusion.data.packing import collate, flatten
from lit_transfusion.data.recipe import null_prompt
from lit_transfusion.data.types import Document, ImageSegment, PackedBatch, TextSegment
from lit_transfusion.errors import InputError
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.prompts import caption_tokens, prompt_document
from lit_transfusion.model.cross_entropy import rows_at_once
from lit_transfusion.model.visibility import FLEX_BLOCK
from lit_transfusion.progress import OnProgress, silent


class TextLikelihood(NamedTuple):
    """Of the learned text tokens of a document, BOI and EOS among them where they are learned."""

    log_probability: float  # of all of them together, in nats
    num_tokens: int
    is_greedy: bool  # whether each is the likeliest token at its place


class Noised(NamedTuple):
    """How noisy the images of some documents are: an entry for each image, in the order in which they are read."""

    timesteps: Tensor  # (N,) int64
    noise: Tensor  # (N, C, H, W)


@torch.inference_mode()
def text_likelihoods(
    pipeline: Pipeline,
    documents: Sequence[Document],
    batch_size: int = 64,
    noised: Noised | None = None,
    on_progress: OnProgress = silent,
) -> list[TextLikelihood]:
    """How likely the text of each document is, given all that stands before it there.

    Args:
        pipeline: The net and its parts.
        documents: Their images are latents. They may be of different lengths, none longer than those of training.
        batch_size: Documents at once; the result does not depend on it.
        noised: How noisy the images are shown; None shows them as the sampler does, clean at t = 0.
        on_progress: Told how many documents are read.
    """
    likelihoods = [TextLikelihood(0.0, 0, True)] * len(documents)
    done = 0
    for places, batch, images, timesteps, _ in batches(pipeline, documents, batch_size, noised):
        on_progress("reading", done, len(documents))
        done += len(places)
        if len(batch.target_positions) == 0:
            continue
        logits = predict(pipeline, batch, images, timesteps, batch.target_positions)[0]  # (T, V)
        targets = batch.labels.flatten().index_select(0, batch.target_positions)  # (T,)
        rows = (batch.target_positions // batch.labels.shape[1]).cpu()  # (T,)
        found = log_probabilities(logits, targets).cpu().double()
        sums = torch.zeros(len(places), dtype=torch.float64).index_add_(0, rows, found).tolist()
        counts = rows.bincount(minlength=len(places)).tolist()
        likeliest = rows[(logits.argmax(1) == targets).cpu()].bincount(minlength=len(places)).tolist()
        for place, log_probability, count, hits in zip(places, sums, counts, likeliest, strict=True):
            likelihoods[place] = TextLikelihood(log_probability, count, hits == count)
    return likelihoods


@torch.inference_mode()
def image_losses(
    pipeline: Pipeline,
    documents: Sequence[Document],
    noised: Noised,
    batch_size: int = 64,
    on_progress: OnProgress = silent,
) -> Tensor:
    """L_DDPM of each image, as training computes it (paper, Equation 3), whether it is one that is learned or not.

    Args:
        pipeline: The net and its parts.
        documents: Their images are clean latents. They may be of different lengths.
        noised: How noisy the images are shown.
        batch_size: Documents at once; the result does not depend on it.
        on_progress: Told how many documents are read.

    Returns:
        (N,) float32 on the host, in the order of `noised`.
    """
    losses = torch.zeros(len(noised.timesteps))
    done = 0
    for places, batch, images, timesteps, numbers in batches(pipeline, documents, batch_size, noised):
        on_progress("denoising", done, len(documents))
        done += len(places)
        nowhere = batch.target_positions[:0]  # the head is the widest layer, and nobody asks for text
        prediction = predict(pipeline, batch, images, timesteps, nowhere)[1]
        noise = noised.noise[numbers].to(images.device)
        target = pipeline.noise.target(batch.images, noise, timesteps)
        losses[numbers] = (prediction.float() - target.float()).square().flatten(1).mean(1).cpu()
    return losses


def batches(
    pipeline: Pipeline, documents: Sequence[Document], batch_size: int, noised: Noised | None
) -> Iterator[tuple[list[int], PackedBatch, Tensor, Tensor, Tensor]]:
    """Batches with a row for each document, those of like lengths together, on the device of the net.

    Each with the numbers of its documents, its images (N, C, H, W) as the net is to see them, their timesteps (N,), and
    their numbers (N,) among all images.
    """
    device = pipeline.net.head.weight.device
    flat = [flatten(document, pipeline.tokenizer, pipeline.patches_per_image) for document in documents]
    lengths = [len(document.tokens) for document in flat]
    if pipeline.sequence_length is not None and max(lengths, default=0) > pipeline.sequence_length:
        raise InputError(
            f"a document takes {max(lengths)} positions; the model was trained on no more than "
            f"{pipeline.sequence_length}"
        )
    first_image = list(accumulate((len(document.images) for document in flat), initial=0))
    if noised is not None and not len(noised.timesteps) == len(noised.noise) == first_image[-1]:
        raise ValueError(
            f"{len(noised.timesteps)} timesteps and noise for {len(noised.noise)} images, of which there are "
            f"{first_image[-1]}"
        )
    order = sorted(range(len(flat)), key=lengths.__getitem__)
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        length = row_length(lengths[places[-1]], pipeline.net.attention)
        rows = [[flat[place]] for place in places]
        batch = collate(rows, length, pipeline.tokenizer.pad, pipeline.latent_shape)
        batch = PackedBatch(*(column.to(device) for column in batch))
        numbers = [i for place in places for i in range(first_image[place], first_image[place + 1])]
        numbers = torch.tensor(numbers, dtype=torch.int64)
        if noised is None:
            images, timesteps = batch.images, torch.zeros(len(numbers), dtype=torch.int64, device=device)
        else:
            timesteps = noised.timesteps[numbers].to(device)
            images = pipeline.noise.add_noise(batch.images, noised.noise[numbers].to(device), timesteps)
        yield places, batch, images, timesteps, numbers


def row_length(longest: int, attention: str) -> int:
    """Rounded up, so that rows come in few lengths; where FlexAttention is or may be chosen, to whole tiles of its."""
    tile = FLEX_BLOCK if attention == "flex" or longest > 512 else 16
    return -(-longest // tile) * tile


def predict(
    pipeline: Pipeline, batch: PackedBatch, images: Tensor, timesteps: Tensor, logit_positions: Tensor
) -> tuple[Tensor, Tensor]:
    """(T, V) logits and the prediction (N, C, H, W) of a batch whose images are shown so noisy."""
    return pipeline.net(
        batch.tokens,
        batch.positions,
        batch.document_ids,
        batch.image_ids,
        images,
        timesteps,
        logit_positions,
    )


def log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """(T, V) logits, (T,) targets → (T,) log-softmax in float32; of a large vocabulary, some rows at a time."""
    pieces = (x.split(rows_at_once(logits)) for x in (logits, targets))
    found = [rows.float().log_softmax(1).gather(1, target[:, None])[:, 0] for rows, target in zip(*pieces, strict=True)]
    return torch.cat(found)


def latents_of(pipeline: Pipeline, pictures: Tensor) -> Tensor:
    """(N, 3, S, S) in [-1, 1] → (N, C, H, W), encoded as prompts of the sampler are: the same for the same picture."""
    return torch.stack([prompt_document(pipeline, picture=picture).images[0].latents for picture in pictures])


def caption_alone(pipeline: Pipeline, caption: str) -> Document:
    """BOS caption, of which the caption counts. What follows it, BOI or EOS, depends on the order and is left out."""
    return Document((TextSegment((pipeline.tokenizer.bos, *caption_tokens(pipeline, caption))),))


def caption_given_image(pipeline: Pipeline, caption: str, latents: Tensor) -> Document:
    """BOS [image] caption, of which the caption counts: neither the BOI before it nor the EOS after it."""
    image = ImageSegment(latents, learn=False)
    return Document((null_prompt(pipeline.tokenizer), image, TextSegment(caption_tokens(pipeline, caption))))
