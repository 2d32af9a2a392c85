"""Drawing and editing of images of any size, against a loop that reads everything again at each step."""

import pytest
import torch

from lit_transfusion.data.grammar import null_prompt, prompt
from lit_transfusion.data.packing import collate, flatten
from lit_transfusion.data.types import ImageSegment
from lit_transfusion.diffusion import DDPM
from lit_transfusion.errors import InputError
from lit_transfusion.generation.engine import Images, draw, edit, generate, write
from lit_transfusion.generation.pictures import Frames, captioned_grid
from lit_transfusion.generation.prompts import prompt_document
from lit_transfusion.generation.settings import Sampling
from lit_transfusion.model import NoisyImages

SIZES = [(4, 8), (6, 2), (4, 4), (6, 2)]  # height and width in pixels; a patch has 2 × 2
WORDS = ["a red circle", "two", "a blue square", "green"]


@pytest.fixture(params=["linear", "unet"])
def pipeline(make_pipeline, request):
    return make_pipeline(request.param, noise=DDPM(prediction_type="sample"))


def picture(size, seed=0):
    return torch.rand(3, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def predict(pipeline, document, timestep):
    """Predict for the last image of a document, in one pass without a cache; the other images are clean."""
    flat = flatten(document, pipeline.tokenizer, pipeline.patches)
    batch = collate([[flat]], len(flat.tokens), pipeline.tokenizer.pad, pipeline.latent_shape)
    images, last = [], None
    for number, group in enumerate(batch.image_groups):
        timesteps = torch.zeros(len(group.at), dtype=torch.int64)
        for i, at in enumerate(group.at[:, 0]):
            if batch.image_ids.flatten()[at] == len(document.images) - 1:
                timesteps[i], last = timestep, (number, i)
        images.append(NoisyImages(group.images, timesteps, group.at))
    nowhere = torch.zeros(0, dtype=torch.int64)
    output = pipeline.net(batch.tokens, batch.positions, batch.document_ids, batch.image_ids, images, nowhere)
    return output.image_predictions[last[0]][last[1]]


@torch.no_grad()
def drawn_slowly(pipeline, parts, size, seed, sampling):
    """Draw an image of this size after texts and images, with guidance."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(3, *size, generator=generator)
    scheduler = pipeline.noise.sampler(sampling.sampler, sampling.num_inference_steps)
    images = [part for part in parts if isinstance(part, ImageSegment)]
    for t in scheduler.timesteps.tolist():
        noisy = ImageSegment(latents)
        asked = predict(pipeline, prompt([*parts, noisy], pipeline.tokenizer), t)
        null = null_prompt(pipeline.tokenizer, images)
        null = predict(pipeline, null._replace(segments=(*null.segments, noisy)), t)
        prediction = null + sampling.guidance_scale * (asked - null)
        latents = scheduler.step(prediction[None], t, latents[None], generator=[generator]).prev_sample[0]
    return latents.clamp(-1, 1)


def test_edits_keep_the_size_of_their_input(pipeline):
    pictures, sampling, steps = [picture(size, i) for i, size in enumerate(SIZES)], Sampling(None, 3, 2.0, seed=5), []
    found = edit(pipeline, pictures, WORDS, sampling, on_step=lambda step, latents: steps.append(latents.shape))
    assert [image.shape for image in found] == [image.shape for image in pictures]
    assert [shape[0] for shape in steps] == [1] * 3 + [2] * 3 + [1] * 3  # equal sizes are drawn together
    for i, image in enumerate(found):
        parts = [ImageSegment(pictures[i]), pipeline.tokenizer.encode(WORDS[i])]
        expected = drawn_slowly(pipeline, parts, SIZES[i], 5 + i, sampling)
        torch.testing.assert_close(image, expected, atol=1e-4, rtol=1e-4)


def test_size_of_drawn_pictures(pipeline):
    sampling = Sampling(None, 2, 2.0, size="6x4")
    found = draw(pipeline, WORDS[:2], sampling)
    assert [image.shape for image in found] == [(3, 4, 6)] * 2
    for i, image in enumerate(found):
        expected = drawn_slowly(pipeline, [pipeline.tokenizer.encode(WORDS[i])], (4, 6), i, sampling)
        torch.testing.assert_close(image, expected, atol=1e-4, rtol=1e-4)
    assert draw(pipeline, ["two"], Sampling(None, 1))[0].shape == (3, 4, 4)  # the size of training
    assert edit(pipeline, [picture((6, 2))], ["two"], Sampling(None, 1, size="2x2"))[0].shape == (3, 2, 2)


def test_captions_of_pictures_of_any_size_do_not_depend_on_the_batch(pipeline):
    pictures = [picture(size, i) for i, size in enumerate(SIZES)]
    together = write(pipeline, pictures, Sampling(max_new_tokens=6))
    assert together == [write(pipeline, [one], Sampling(max_new_tokens=6))[0] for one in pictures]


def test_interleaved_samples_of_several_sizes_equal_single_ones(make_pipeline, talkative):
    pipeline = talkative(make_pipeline(noise=DDPM(prediction_type="sample")))
    documents = [prompt_document(pipeline, text, picture(size)) for text, size in zip(WORDS, SIZES, strict=True)]
    sampling = Sampling(None, 2, 2.0, temperature=1.0, max_new_tokens=8, max_images=2)
    seeds = range(4)
    together = generate(pipeline, documents, sampling, images=Images.FORCED, seeds=seeds)
    for document, sample, size, seed in zip(documents, together, SIZES, seeds, strict=True):
        (alone,) = generate(pipeline, [document], sampling, images=Images.FORCED, seeds=[seed])
        assert alone.token_ids == sample.token_ids and alone.stop_reason == sample.stop_reason
        assert len(alone.images) == len(sample.images) > 0
        for one, other in zip(alone.images, sample.images, strict=True):
            assert one.latents.shape == (3, *size)
            torch.testing.assert_close(one.latents, other.latents, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", ["6", "6x", "0x4", "axb", "6x4x2", "-6x4"])
def test_invalid_size_is_an_error(size):
    with pytest.raises(InputError, match="WIDTHxHEIGHT"):
        Sampling(size=size)


def test_size_that_patches_do_not_fill_is_an_error(make_pipeline):
    with pytest.raises(InputError, match="size 5x4 is invalid: both sides must be multiples of 2 pixels"):
        draw(make_pipeline(), ["two"], Sampling(size="5x4"))


def test_size_that_does_not_fit_into_a_row_is_an_error(make_pipeline):
    pipeline = make_pipeline()
    pipeline.sequence_length = 20
    with pytest.raises(InputError, match="too long"):
        draw(pipeline, ["two"], Sampling(size="32x32"))


def test_grids_show_pictures_of_several_sizes():
    pictures = [picture(size) for size in SIZES]
    page = captioned_grid(pictures, WORDS)
    assert page.width >= 4 * 112
    frames = Frames(torch.nn.Identity(), 2)
    frames.codec.decode = lambda latents: latents
    for size in ((4, 8), (6, 2)):
        for step in range(2):
            frames.take(step, torch.stack([picture(size, step)]))
    assert frames.sheet().shape[0] == 3
