"""Edits against a loop without a cache, with the picture without its instruction as null prompt."""

import pytest
import torch
from single_shape import run

from lit_transfusion.data.grammar import null_prompt, prompt
from lit_transfusion.data.packing import flatten
from lit_transfusion.data.recipe import Recipe
from lit_transfusion.data.types import Document, EditExample, ImageSegment
from lit_transfusion.diffusion import DDPM
from lit_transfusion.generation.engine import Sampling, edit
from lit_transfusion.generation.pictures import edit_grid

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # diffusers under NumPy 2
P = 4
IMAGES = torch.linspace(-1, 1, 96).view(2, 3, 4, 4)
INSTRUCTIONS = ["a red circle and a blue square", "two"]


@pytest.fixture
def pipeline(make_pipeline):
    """A pipeline with small latents, so that the pictures are not only black and white."""
    return make_pipeline(noise=DDPM(prediction_type="sample"))


def predict(pipeline, prompt, latents, timestep):
    """Predict for the image after a prompt, in one pass without a cache."""
    piece = flatten(Document((*prompt.segments, ImageSegment(latents[0]))), pipeline.tokenizer, lambda image: P)
    tokens = torch.tensor([piece.tokens])
    output = run(
        pipeline.net,
        tokens,
        torch.arange(tokens.shape[1])[None],
        torch.zeros_like(tokens),
        torch.tensor([piece.image_ids]),
        torch.stack([image.latents for image in piece.images]),
        torch.tensor([0, timestep]),
        logit_positions=torch.zeros(0, dtype=torch.int64),
    )
    return output.image_prediction[1:]


@torch.no_grad()
def edited(pipeline, image, instruction, sampling):
    """Edit with a loop that reads everything again at each step. Returns (3, S, S)."""
    given = ImageSegment(image)
    prompts = [
        prompt([given, pipeline.tokenizer.encode(instruction)], pipeline.tokenizer),
        null_prompt(pipeline.tokenizer, [given]),
    ]
    generator = torch.Generator().manual_seed(sampling.seed)
    latents = torch.randn(3, 4, 4, generator=generator)[None]
    scheduler = pipeline.noise.sampler(sampling.sampler, sampling.num_inference_steps)
    for t in scheduler.timesteps.tolist():
        asked, null = (predict(pipeline, start, latents, t) for start in prompts)
        prediction = null + sampling.guidance_scale * (asked - null)
        latents = scheduler.step(prediction, t, latents, generator=[generator]).prev_sample
    return pipeline.codec.decode(latents)[0]


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_edit_equals_a_loop_without_a_cache(pipeline, sampler, guidance_scale):
    sampling = Sampling(sampler, 3, guidance_scale, seed=5)
    steps = []
    drawn = edit(pipeline, IMAGES, INSTRUCTIONS, sampling, on_step=lambda step, latents: steps.append(step))
    assert [picture.shape for picture in drawn] == [(3, 4, 4)] * 2 and steps == [0, 1, 2]
    for i in range(2):
        alone = Sampling(sampler, 3, guidance_scale, seed=5 + i)
        expected = edited(pipeline, IMAGES[i], INSTRUCTIONS[i], alone)
        torch.testing.assert_close(drawn[i], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("instruction_dropout", [0.0, 1.0])
def test_sampler_reads_what_training_shows_before_the_output(tokenizer, instruction_dropout):
    example = EditExample(IMAGES[0], ("two",), IMAGES[1])
    recipe = Recipe(instruction_dropout=instruction_dropout)
    trained = flatten(recipe.document(example, tokenizer, 100, torch.Generator()), tokenizer, lambda image: P)
    given = ImageSegment(IMAGES[0])
    start = null_prompt(tokenizer, [given])
    if instruction_dropout == 0:
        start = prompt([given, tokenizer.encode("two")], tokenizer)
    read = flatten(start, tokenizer, lambda image: P)
    begun = len(read.tokens) + 1
    assert trained.tokens[:begun] == [*read.tokens, tokenizer.boi] and trained.image_ids[begun] == 1


def test_grid_shows_input_output_and_truth():
    page = edit_grid(IMAGES, INSTRUCTIONS, IMAGES, IMAGES)
    assert page.width > 6 * 112 and page.height < 2 * 250
