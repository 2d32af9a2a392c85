"""A slow decoder without a cache: it reads the whole document again for each token and each denoising step."""

import torch
from single_shape import run

from lit_transfusion.data.packing import flatten
from lit_transfusion.data.types import Document, ImageSegment, TextSegment
from lit_transfusion.generation.engine import Images
from lit_transfusion.generation.next_token import pick

P = 4  # patches for each image


def read_all(pipeline, document, last_timestep=0):
    """Read a document in one pass without a cache. Returns logits (L, V) and predictions of its images (N, C, H, W)."""
    piece = flatten(document, pipeline.tokenizer, lambda image: P)
    tokens, images = torch.tensor([piece.tokens]), [image.latents for image in piece.images]
    return run(
        pipeline.net,
        tokens,
        torch.arange(tokens.shape[1])[None],
        torch.zeros_like(tokens),
        torch.tensor([piece.image_ids]),
        torch.stack(images) if images else torch.zeros(0, *pipeline.latent_shape),
        torch.tensor([0] * (len(images) - 1) + [last_timestep])[: len(images)],
        logit_positions=torch.arange(tokens.shape[1]),
    )


class SlowDecoder:
    """A decoder for one document, with its own random numbers."""

    def __init__(self, pipeline, seed):
        self.pipeline = pipeline
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, segments, sampling):
        """Draw the latents of the image after `segments`. The null prompt is their images without their text."""
        pipeline, tokenizer = self.pipeline, self.pipeline.tokenizer
        negative = tokenizer.encode(sampling.negative_prompt) if sampling.negative_prompt else ()
        images = [segment for segment in segments if isinstance(segment, ImageSegment)]
        null_segments = (TextSegment((tokenizer.bos,)), *images, TextSegment(negative))
        scheduler = pipeline.noise.sampler(sampling.sampler, sampling.num_inference_steps)
        latents = torch.randn(pipeline.latent_shape, generator=self.generator) * scheduler.init_noise_sigma
        first, last = sampling.guidance_interval
        for t in scheduler.timesteps.tolist():
            prompted, null = (
                read_all(pipeline, Document((*before, ImageSegment(latents))), t).image_prediction[-1]
                for before in (segments, null_segments)
            )
            prediction = prompted
            if first <= t / pipeline.noise.num_train_timesteps <= last:
                prediction = null + sampling.guidance_scale * (prompted - null)
                even = prediction / prediction.std() * prompted.std()
                prediction = sampling.guidance_rescale * even + (1 - sampling.guidance_rescale) * prediction
            step = scheduler.step(prediction[None], t, latents[None], generator=[self.generator])
            latents = step.prev_sample[0]
        return latents

    def generate(self, prompt, sampling, images=Images.CHOSEN):
        """Continue the prompt: returns tokens, "boi" and latents, one after another, and the stop reason."""
        tokenizer, segments, added = self.pipeline.tokenizer, list(prompt.segments), []
        num_tokens = num_images = 0
        at_boi = images is Images.FORCED
        while True:
            if at_boi:
                latents = self.draw(segments, sampling)
                segments.append(ImageSegment(latents))
                added.append(latents)
                num_images += 1
                at_boi = False
                if sampling.max_new_tokens == 0:
                    return added, "image limit"
            if num_tokens == sampling.max_new_tokens:
                return added, "token limit"
            logits = read_all(self.pipeline, Document(tuple(segments))).logits[-1:]
            logits[:, [tokenizer.bos, tokenizer.eoi]] = -torch.inf
            if images is Images.NEVER:
                logits[:, tokenizer.boi] = -torch.inf
            token = pick(logits, [self.generator], sampling)[0]
            if token == tokenizer.eos:
                return added, "end of text"
            if token == tokenizer.boi:
                if num_images == sampling.max_images:
                    return added, "image limit"
                at_boi = True
            else:
                segments.append(TextSegment((token,)))
                added.append(token)
                num_tokens += 1


def assert_same(generated, expected, atol=1e-5):
    """Compare a result of `generate` with one of SlowDecoder."""
    added, stop_reason = expected
    pieces = pieces_of(generated)
    assert [isinstance(piece, int) for piece in pieces] == [isinstance(piece, int) for piece in added]
    for piece, other in zip(pieces, added, strict=True):
        if isinstance(piece, int):
            assert piece == other
        else:
            torch.testing.assert_close(piece, other, atol=atol, rtol=1e-5)
    assert generated.stop_reason.value == stop_reason


def pieces_of(generated):
    """Tokens and latents, one after another, in the format of SlowDecoder."""
    pieces = []
    for segment in generated.added:
        pieces += [segment.latents] if isinstance(segment, ImageSegment) else segment.token_ids
    return pieces
