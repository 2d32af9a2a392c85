"""Log-likelihoods of the text, and losses of the images, of whole documents.

Nothing is sampled. The net reads each document once, with the same visibility and positions as in training.

    document = caption_given_image(pipeline, "a red circle", latents)
    text_likelihoods(pipeline, [document])[0].log_probability
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from lit_transfusion.data.grammar import continuation
from lit_transfusion.data.image_tokens import images_as_text
from lit_transfusion.data.packing import collate, flatten
from lit_transfusion.data.types import Document, ImageSegment, PackedBatch
from lit_transfusion.errors import InputError
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.prompts import caption_tokens, prompt_document
from lit_transfusion.model import NoisyImages, TransfusionOutput
from lit_transfusion.model.cross_entropy import rows_at_once
from lit_transfusion.model.visibility import FLEX_BLOCK
from lit_transfusion.progress import OnProgress, silent
from lit_transfusion.training.objective import squared_error


class TextLikelihood(NamedTuple):
    """The likelihood of the learned text tokens of a document, including BOI and EOS if they are learned."""

    log_probability: float  # sum over the tokens, in nats
    num_tokens: int
    is_greedy: bool  # whether each token is the likeliest at its position


class Noised(NamedTuple):
    """Timestep and noise for each image of some documents, in reading order."""

    timesteps: Tensor  # (N,) int64
    noise: Sequence[Tensor]  # N times (C, H, W)


@torch.inference_mode()
def text_likelihoods(
    pipeline: Pipeline,
    documents: Sequence[Document],
    batch_size: int = 64,
    noised: Noised | None = None,
    on_progress: OnProgress = silent,
) -> list[TextLikelihood]:
    """The likelihood of each document's learned text, given everything before it in the document.

    Args:
        pipeline: The net and its parts.
        documents: Documents with latents as images, of any lengths that training allows.
        batch_size: Number of documents to process together; the result does not depend on it.
        noised: Timesteps and noise for the images; None shows them clean at t = 0, as the sampler does.
        on_progress: Called with the number of documents that are done.

    Raises:
        InputError: A document is longer than a training row.
    """
    likelihoods = [TextLikelihood(0.0, 0, True)] * len(documents)
    done = 0
    for places, batch, numbers in batches(pipeline, documents, batch_size, noised):
        on_progress("reading", done, len(documents))
        done += len(places)
        if len(batch.target_positions) == 0:
            continue
        logits = predict(pipeline, batch, numbers, noised, batch.target_positions).logits  # (T, V)
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
    """L_DDPM of each image, as in training (paper, Equation 3), including images with `learn=False`.

    Args:
        pipeline: The net and its parts.
        documents: Documents with clean latents as images, of any lengths that training allows.
        noised: Timesteps and noise for the images.
        batch_size: Number of documents to process together; the result does not depend on it.
        on_progress: Called with the number of documents that are done.

    Returns:
        (N,) float32 on the CPU, in the order of `noised`.

    Raises:
        InputError: A document is longer than a training row.
    """
    losses = torch.zeros(len(noised.timesteps))
    done = 0
    for places, batch, numbers in batches(pipeline, documents, batch_size, noised):
        on_progress("denoising", done, len(documents))
        done += len(places)
        nowhere = batch.target_positions[:0]  # no logits: the head is the widest layer
        predictions = predict(pipeline, batch, numbers, noised, nowhere).image_predictions
        for group, prediction, own in zip(batch.image_groups, predictions, numbers, strict=True):
            if not len(own):  # no document of the batch has an image
                continue
            timesteps, noise = noise_of(noised, own, prediction.device)
            target = pipeline.noise.target(group.images, noise, timesteps)
            losses[own] = squared_error(prediction, target).cpu()
    return losses


@torch.inference_mode()
def code_losses(
    pipeline: Pipeline, documents: Sequence[Document], batch_size: int = 64, on_progress: OnProgress = silent
) -> Tensor:
    """Cross-entropy of each image of a model whose images are tokens, in nats per code, as in training.

    Args:
        pipeline: The net and its parts, with a codec that has a codebook.
        documents: Documents with codes as images, of any lengths that training allows.
        batch_size: Number of documents to process together; the result does not depend on it.
        on_progress: Called with the number of documents that are done.

    Returns:
        (N,) float32 on the CPU, for the images of all documents in reading order.

    Raises:
        InputError: A document is longer than a training row.
    """
    found: dict[int, Tensor] = {}
    done = 0
    for places, batch, numbers in batches(pipeline, documents, batch_size, None):
        on_progress("reading", done, len(documents))
        done += len(places)
        for group, own in zip(batch.image_groups, numbers, strict=True):
            if not len(own):  # no document of the batch has an image
                continue
            logits = predict(pipeline, batch, numbers, None, group.at.flatten() - 1).logits  # (N · P, V)
            codes = pipeline.codec.latents(group.images, None).flatten() + pipeline.first_code  # (N · P,)
            losses = -log_probabilities(logits, codes.to(logits.device)).view(len(own), -1).mean(1)  # (N,)
            found |= dict(zip(own.tolist(), losses.cpu(), strict=True))
    return torch.stack([found[i] for i in range(len(found))]) if found else torch.zeros(0)


def batches(
    pipeline: Pipeline, documents: Sequence[Document], batch_size: int, noised: Noised | None
) -> Iterator[tuple[list[int], PackedBatch, list[Tensor]]]:
    """Yield batches of documents with similar lengths, one document a row, on the device of the net.

    Each comes with the indices of its documents, and for each of its groups the indices (N,) of its images among all.
    """
    device = pipeline.net.head.weight.device
    flat = [flatten(document, pipeline.tokenizer, pipeline.patches) for document in documents]
    lengths = [len(document.tokens) for document in flat]
    if pipeline.sequence_length is not None and max(lengths, default=0) > pipeline.sequence_length:
        raise InputError(
            f"a document is too long: it needs {max(lengths)} positions, and the training rows of the model have "
            f"{pipeline.sequence_length}; use shorter documents"
        )
    first_image = list(accumulate((len(document.images) for document in flat), initial=0))
    if noised is not None and not len(noised.timesteps) == len(noised.noise) == first_image[-1]:
        raise ValueError(
            f"{len(noised.timesteps)} timesteps and {len(noised.noise)} noises do not match the {first_image[-1]} "
            "images of the documents; give one of each for each image"
        )
    order = sorted(range(len(flat)), key=lengths.__getitem__)
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        length = row_length(lengths[places[-1]], pipeline.net.attention)
        rows = [[flat[place]] for place in places]
        batch = collate(rows, length, pipeline.tokenizer.pad, pipeline.latent_shape)
        of_batch = [i for place in places for i in range(first_image[place], first_image[place + 1])]
        own = [batch.image_ids.flatten()[group.at[:, :1].flatten()] for group in batch.image_groups]
        yield places, batch.to(device), [torch.tensor(of_batch, dtype=torch.int64)[ids] for ids in own]


def row_length(longest: int, attention: str) -> int:
    """Round a length up, so that rows have few different lengths; to FlexAttention's tile size where it may be used."""
    tile = FLEX_BLOCK if attention == "flex" or longest > 512 else 16
    return -(-longest // tile) * tile


def predict(
    pipeline: Pipeline, batch: PackedBatch, numbers: list[Tensor], noised: Noised | None, logit_positions: Tensor
) -> TransfusionOutput:
    """Run the net on a batch, with its images noised; without `noised` they are clean, at t = 0."""
    if pipeline.images_are_tokens:
        as_text = pipeline.codec, pipeline.first_code
        tokens, image_ids = images_as_text(batch.tokens, batch.image_ids, batch.image_groups, *as_text)
        return pipeline.net(tokens, batch.positions, batch.document_ids, image_ids, [], logit_positions)
    images = []
    for group, own in zip(batch.image_groups, numbers, strict=True):
        values, timesteps = group.images, torch.zeros(len(own), dtype=torch.int64, device=group.at.device)
        if noised is not None and len(own):
            timesteps, noise = noise_of(noised, own, group.at.device)
            values = pipeline.noise.add_noise(values, noise, timesteps)
        images.append(NoisyImages(values, timesteps, group.at))
    return pipeline.net(batch.tokens, batch.positions, batch.document_ids, batch.image_ids, images, logit_positions)


def noise_of(noised: Noised, numbers: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Timesteps (N,) and noise (N, C, H, W) of the images with these indices (N,), all of one shape."""
    noise = torch.stack([noised.noise[i] for i in numbers.tolist()])
    return noised.timesteps[numbers].to(device), noise.to(device)


def log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute log-probabilities (T,) in float32 from logits (T, V) and targets (T,), in pieces to save memory."""
    pieces = (x.split(rows_at_once(logits)) for x in (logits, targets))
    found = [rows.float().log_softmax(1).gather(1, target[:, None])[:, 0] for rows, target in zip(*pieces, strict=True)]
    return torch.cat(found)


def latents_of(pipeline: Pipeline, pictures: Sequence[Tensor]) -> list[Tensor]:
    """Encode pictures (3, height, width) in [-1, 1] to (C, H, W) like prompts: equal pictures give equal latents."""
    return [prompt_document(pipeline, picture=picture).images[0].latents for picture in pictures]


def caption_alone(pipeline: Pipeline, caption: str) -> Document:
    """Make BOS caption, with only the caption learned. The end, BOI or EOS by the order in training, is left out."""
    return continuation([], caption_tokens(pipeline, caption), pipeline.tokenizer)


def caption_given_image(pipeline: Pipeline, caption: str, latents: Tensor) -> Document:
    """Make BOS [image] caption, with only the caption learned: neither the BOI before it nor the EOS after it."""
    image = ImageSegment(latents, learn=False)
    return continuation([image], caption_tokens(pipeline, caption), pipeline.tokenizer)
