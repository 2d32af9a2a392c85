"""Decoding in batches with a cache, against SlowDecoder and with nets that write what a script says."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler
from single_shape import given
from slow_decoder import SlowDecoder, assert_same, read_all

from lit_transfusion.data.grammar import caption_first, null_prompt, unconditional
from lit_transfusion.data.packing import flatten
from lit_transfusion.data.types import Document, ImageSegment, TextSegment
from lit_transfusion.diffusion import DDPM
from lit_transfusion.errors import InputError
from lit_transfusion.generation.engine import Images, draw, generate, write
from lit_transfusion.generation.prompts import prompt_document
from lit_transfusion.generation.sample_state import StopReason
from lit_transfusion.generation.settings import Sampling
from lit_transfusion.model import Bidirectional, Causal

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # diffusers under NumPy 2
P = 4
PROMPTS = ["a red circle and a blue square", "two", ""]
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
samplers = pytest.mark.parametrize("sampler", DDPM.samplers)
patchers = pytest.mark.parametrize("patcher", ["linear", "unet"])
masks = pytest.mark.parametrize("mask", [Bidirectional(), Causal()], ids=["bidirectional", "causal"])
guidances = pytest.mark.parametrize(
    "guidance",
    [
        {"guidance_scale": 1.0},
        {"guidance_scale": 2.5},
        {"guidance_scale": 2.5, "guidance_rescale": 0.7, "guidance_interval": (0.3, 0.8), "negative_prompt": "white"},
    ],
    ids=["alone", "guided", "rescaled"],
)


@pytest.fixture
def pipeline(make_pipeline):
    """A pipeline with small latents, so that the pictures are not only black and white."""
    return make_pipeline(noise=DDPM(prediction_type="sample"))


def picture(seed):
    return torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(seed))


def kinds(sample):
    return [segment.token_ids if isinstance(segment, TextSegment) else "image" for segment in sample.added]


def mixed_prompts(pipeline):
    """Prompts of different lengths: without images, with images, and with an image at the end."""
    return [
        prompt_document(pipeline, "a red circle and"),
        prompt_document(pipeline),
        prompt_document(pipeline, "two", picture(0)),
        Document((TextSegment((1, 9)), ImageSegment(picture(1)), TextSegment((7,)), ImageSegment(picture(2)))),
        prompt_document(pipeline, "a blue square"),
        prompt_document(pipeline, "on white", picture(3)),
    ]


# ---------------------------------------------------------------- text and images in one batch


@guidances
@patchers
@masks
def test_a_batch_equals_single_samples_without_a_cache(make_pipeline, talkative, patcher, mask, guidance):
    """All cases together: prompts with images, samples that draw while others write, several images in one sample."""
    pipeline = talkative(make_pipeline(patcher, mask, DDPM(prediction_type="sample")))
    prompts = mixed_prompts(pipeline)
    sampling = Sampling(
        "ddpm", num_inference_steps=3, temperature=1.0, max_new_tokens=7, max_images=2, seed=5, **guidance
    )
    together = generate(pipeline, prompts, sampling)
    for i, prompt in enumerate(prompts):
        with torch.no_grad():
            expected = SlowDecoder(pipeline, 5 + i).generate(prompt, sampling)
        assert_same(together[i], expected)
        assert together[i].document.segments[: len(prompt.segments)] == prompt.segments
        alone = generate(pipeline, [prompt], replace(sampling, seed=5 + i))[0]
        assert_same(alone, expected)
    assert len({len(sample.images) for sample in together}) > 1  # some draw, some do not, or not as much


@pytest.mark.parametrize("images", Images)
@masks
def test_each_way_to_begin_an_image(make_pipeline, talkative, mask, images):
    pipeline = talkative(make_pipeline(mask=mask, noise=DDPM(prediction_type="sample")))
    prompts = mixed_prompts(pipeline)
    sampling = Sampling(num_inference_steps=2, temperature=1.0, max_new_tokens=5, max_images=2)
    together = generate(pipeline, prompts, sampling, images=images)
    for i, prompt in enumerate(prompts):
        with torch.no_grad():
            assert_same(together[i], SlowDecoder(pipeline, i).generate(prompt, sampling, images))
    counts = [len(sample.images) for sample in together]
    begins = [bool(sample.added) and isinstance(sample.added[0], ImageSegment) for sample in together]
    assert {Images.CHOSEN: max(counts) > 0, Images.FORCED: all(begins), Images.NEVER: not any(counts)}[images]


def test_a_sample_is_the_same_in_any_batch(pipeline, talkative):
    talkative(pipeline)
    prompts, sampling = mixed_prompts(pipeline), Sampling("ddpm", 2, temperature=1.0, max_new_tokens=6, max_images=2)
    seeds = [3, 1, 4, 1, 5, 9]
    first = generate(pipeline, prompts, sampling, seeds=seeds)
    order = [4, 2, 5, 0]
    second = generate(pipeline, [prompts[i] for i in order], sampling, seeds=[seeds[i] for i in order])
    for sample, i in zip(second, order, strict=True):
        added = [getattr(segment, "latents", segment) for segment in sample.added]
        torch.testing.assert_close(added, [getattr(s, "latents", s) for s in first[i].added], **TOLERANCE)


def test_rows_write_until_all_that_wait_can_draw_together(pipeline, script, record):
    """A forward pass contains either tokens or images, and all waiting rows are denoised together."""
    boi, eos, eoi = pipeline.tokenizer.boi, pipeline.tokenizer.eos, pipeline.tokenizer.eoi
    script([boi, 60, eos], [61, 62, boi, eos], [63, eos])
    recorder = record(pipeline.net)
    sampling = Sampling(num_inference_steps=2, guidance_scale=1)
    samples = generate(pipeline, [prompt_document(pipeline)] * 3, sampling)
    pad = pipeline.tokenizer.pad
    assert recorder.tokens == [
        [[1]] * 3,
        [[boi], [61], [63]],
        [[pad], [62], [pad]],
        [[pad], [boi], [pad]],
        *[[[-1] * P] * 2] * 2,  # two steps
        [[-1] * P + [eoi]] * 2,  # then the clean image
        [[60], [pad], [pad]],
    ]
    assert [timesteps for timesteps in recorder.timesteps if timesteps] == [[999] * 2, [499] * 2, [0] * 2]
    assert [sample.token_ids for sample in samples] == [(60,), (61, 62), (63,)]
    assert [len(sample.images) for sample in samples] == [1, 1, 0]


def test_samples_that_have_ended_are_dropped(pipeline, script, record):
    """They are dropped when half of the rows have ended, so that one long text does not cost a whole batch."""
    eos, recorder = pipeline.tokenizer.eos, record(pipeline.net)
    script([60, eos], [61, 61, 61, eos], [eos], [62, 62, eos])
    samples = generate(pipeline, [prompt_document(pipeline)] * 4)
    assert [len(rows) for rows in recorder.tokens[1:]] == [4, 4, 2]  # after those of the prompts
    assert [sample.token_ids for sample in samples] == [(60,), (61,) * 3, (), (62,) * 2]


def test_no_prompts_give_no_samples(pipeline):
    assert generate(pipeline, []) == []
    assert draw(pipeline, []) == write(pipeline, []) == []


# ---------------------------------------------------------------- draw


@samplers
@guidances
def test_drawing_is_sampling_without_a_cache(pipeline, sampler, guidance):
    sampling, steps = Sampling(sampler, num_inference_steps=4, seed=7, **guidance), []
    pictures = draw(pipeline, PROMPTS, sampling, lambda step, latents: steps.append((step, latents.clone())))
    assert [(step, latents.shape) for step, latents in steps] == [(i, (3, 3, 4, 4)) for i in range(4)]
    for i, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            expected = SlowDecoder(pipeline, 7 + i).draw(prompt_document(pipeline, prompt).segments, sampling)
        torch.testing.assert_close(steps[-1][1][i], expected, **TOLERANCE)
        torch.testing.assert_close(pictures[i], expected.clamp(-1, 1), **TOLERANCE)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@samplers
def test_an_oracle_draws_the_picture_it_knows(make_pipeline, sampler, prediction_type):
    """The net makes exact predictions for one known picture in each row."""
    noise = DDPM(prediction_type=prediction_type)
    pipeline, known = make_pipeline(noise=noise), torch.rand(2, 3, 4, 4) * 2 - 1

    def know(net, args, output):
        noisy, t = given(args)
        if not len(noisy):
            return output
        clean = known.repeat(len(noisy) // 2, 1, 1, 1)
        ones, zeros = torch.ones_like(clean), torch.zeros_like(clean)
        signal, sigma = noise.add_noise(ones, zeros, t), noise.add_noise(zeros, ones, t)
        return output._replace(image_predictions=(noise.target(clean, (noisy - signal * clean) / sigma, t),))

    pipeline.net.register_forward_hook(know)
    drawn = draw(pipeline, PROMPTS[:2], Sampling(sampler, num_inference_steps=20))
    torch.testing.assert_close(torch.stack(drawn), known, atol=1e-4, rtol=0)


@torch.no_grad()
def test_ddpm_is_the_loop_of_diffusers_step_by_step(pipeline):
    """The scheduler and the guidance are written with diffusers only."""
    scheduler = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=False)
    scheduler.set_timesteps(timesteps=[999, 799, 599, 399, 199])
    generator = torch.Generator().manual_seed(3)
    latents, expected = torch.randn(1, 3, 4, 4, generator=generator), []
    prompt, null = prompt_document(pipeline, "two").segments, prompt_document(pipeline).segments
    for t in scheduler.timesteps:
        image = ImageSegment(latents[0])
        uncond, cond = (read_all(pipeline, Document((*s, image)), int(t)).image_prediction for s in (null, prompt))
        latents = scheduler.step(uncond + 3.0 * (cond - uncond), t, latents, generator=generator).prev_sample
        expected.append(latents)
    steps = []
    draw(pipeline, ["two"], Sampling("ddpm", 5, 3.0, seed=3), lambda step, latents: steps.append(latents.clone()))
    torch.testing.assert_close(steps, expected, **TOLERANCE)


def test_drawing_reads_what_training_reads(pipeline, record):
    """The tokens are equal up to the end of the image, for the prompt and the null prompt."""
    tokenizer, image = pipeline.tokenizer, torch.zeros(3, 4, 4)
    recorder = record(pipeline.net)
    draw(pipeline, PROMPTS[:2], Sampling(num_inference_steps=2))
    (prompted, null, *steps), positions = recorder.tokens, recorder.positions
    documents = [caption_first(tokenizer.encode(prompt), image, tokenizer) for prompt in PROMPTS[:2]]
    documents += [unconditional(image, tokenizer)] * 2
    for row, (document, tokens) in enumerate(zip(documents, [*prompted, *null], strict=True)):
        piece = flatten(document, tokenizer, lambda image: P)
        start = piece.image_ids.index(0)
        assert tokens[:start] == piece.tokens[:start]
        assert positions[2][row] == positions[3][row] == list(range(start, start + P))
    assert steps == [[[-1] * P] * 4] * 2
    assert recorder.timesteps[2:] == [[999] * 4, [499] * 4]


def test_without_guidance_there_is_no_null_prompt(pipeline, record):
    """There is none if the scale is 1, or outside of the interval."""
    recorder = record(pipeline.net)
    draw(pipeline, PROMPTS, Sampling(num_inference_steps=4, guidance_scale=1))
    assert [len(rows) for rows in recorder.tokens] == [3] * 5
    recorder.tokens.clear()
    draw(pipeline, PROMPTS, Sampling(num_inference_steps=4, guidance_interval=(0.4, 0.8)))  # t = 999, 749, 499, 249
    assert [len(rows) for rows in recorder.tokens] == [3, 3, 3, 6, 6, 3]


def test_guidance_changes_nothing_where_there_is_no_prompt(pipeline):
    """An empty prompt equals the null prompt, and so does a prompt that is its own negative prompt."""
    alone = draw(pipeline, ["", "two"], Sampling(num_inference_steps=3, guidance_scale=1))
    guided = draw(pipeline, ["", "two"], Sampling(num_inference_steps=3, guidance_scale=5))
    torch.testing.assert_close(guided[0], alone[0], **TOLERANCE)
    assert not torch.allclose(guided[1], alone[1], atol=1e-2)
    negative = Sampling(num_inference_steps=3, guidance_scale=5, negative_prompt="two")
    torch.testing.assert_close(draw(pipeline, ["", "two"], negative)[1], alone[1], **TOLERANCE)


@pytest.mark.parametrize("negative_prompt", [None, "white"])
@pytest.mark.parametrize("kind", ["text", "edit", "picture after text", "two pictures"])
def test_an_image_is_the_same_whether_it_was_forced_or_chosen(pipeline, script, kind, negative_prompt):
    """Both have the same null prompt: the pictures of the prompt without its text."""
    text, pictures = TextSegment((pipeline.tokenizer.bos, 60)), [ImageSegment(picture(i)) for i in range(2)]
    prompt = {
        "text": Document((text,)),
        "edit": prompt_document(pipeline, "two", picture(0)),
        "picture after text": Document((text, pictures[0])),
        "two pictures": Document((text, pictures[0], TextSegment((61,)), pictures[1], TextSegment((62,)))),
    }[kind]
    sampling = Sampling(num_inference_steps=3, guidance_scale=5.0, max_new_tokens=2, negative_prompt=negative_prompt)
    tokenizer = pipeline.tokenizer
    script([tokenizer.boi, tokenizer.eos])
    (chosen,) = generate(pipeline, [prompt], sampling)
    script([tokenizer.eos])
    (forced,) = generate(pipeline, [prompt], sampling, images=Images.FORCED)
    assert kinds(chosen) == kinds(forced) == ["image"]
    torch.testing.assert_close(chosen.images[0].latents, forced.images[0].latents, **TOLERANCE)
    negative = tokenizer.encode(negative_prompt or "")
    null = Document((TextSegment((tokenizer.bos,)), *prompt.images, TextSegment(negative)))
    torch.testing.assert_close(chosen.images[0].latents, guided_with_ddim(pipeline, prompt, null, 3, 5.0), **TOLERANCE)


@torch.no_grad()
def guided_with_ddim(pipeline, prompt, null, steps, scale):
    """Draw the latents after a prompt by DDIM, with an explicit null prompt."""
    scheduler = pipeline.noise.sampler("ddim", steps)
    latents = torch.randn(pipeline.latent_shape, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps.tolist():
        asked, without = (
            read_all(pipeline, Document((*before.segments, ImageSegment(latents))), t).image_prediction[-1]
            for before in (prompt, null)
        )
        latents = scheduler.step(without + scale * (asked - without), t, latents).prev_sample
    return latents


def test_the_null_prompt_has_the_images_that_were_drawn_before(pipeline, script):
    """The second image that a model draws equals a forced image after the same document."""
    tokenizer, sampling = pipeline.tokenizer, Sampling("ddim", 3, 5.0, max_new_tokens=4, max_images=2)
    script([tokenizer.boi, 60, tokenizer.boi, tokenizer.eos])
    (chosen,) = generate(pipeline, [prompt_document(pipeline, "two")], sampling)
    first, second = chosen.images
    noise = torch.Generator().manual_seed(0)
    torch.randn(pipeline.latent_shape, generator=noise)  # the first image's
    prompt = Document((*prompt_document(pipeline, "two").segments, first, TextSegment((60,))))
    with torch.no_grad():
        slow = SlowDecoder(pipeline, 0)
        slow.generator = noise
        torch.testing.assert_close(second.latents, slow.draw(prompt.segments, sampling), **TOLERANCE)


def test_a_null_prompt_stays_with_its_sample_when_others_have_ended(pipeline, script):
    prompts = [prompt_document(pipeline, "two", picture(i)) for i in range(3)]
    sampling, eos = Sampling(num_inference_steps=3, max_new_tokens=2), pipeline.tokenizer.eos
    script([eos], [eos], [pipeline.tokenizer.boi, eos])
    sample = generate(pipeline, prompts, sampling)[2]
    with torch.no_grad():
        expected = SlowDecoder(pipeline, 2).draw(prompts[2].segments, sampling)
    torch.testing.assert_close(sample.images[0].latents, expected, **TOLERANCE)


def test_a_long_negative_prompt_leaves_room_for_the_image(pipeline, script):
    """The null prompt never has more positions than a training row."""
    tokenizer = pipeline.tokenizer
    negative = len(tokenizer.encode("two green triangles on white"))
    sampling = Sampling(num_inference_steps=1, max_images=2, negative_prompt="two green triangles on white")
    for room, images in ((P + 2, 1), (2 * (P + 2) - 1, 1), (2 * (P + 2), 2)):
        pipeline.sequence_length = 1 + negative + room
        script([tokenizer.boi, tokenizer.boi, tokenizer.eos])
        (sample,) = generate(pipeline, [prompt_document(pipeline)], sampling)
        assert len(sample.images) == images


# ---------------------------------------------------------------- write


@patchers
@masks
def test_writing_takes_the_likeliest_token_each_time(make_pipeline, patcher, mask):
    pipeline, images = make_pipeline(patcher, mask), torch.rand(2, 3, 4, 4) * 2 - 1
    sampling = Sampling(max_new_tokens=6)
    captions = write(pipeline, images, sampling)
    for row, image in enumerate(images):
        prompt = null_prompt(pipeline.tokenizer, [ImageSegment(image)])
        with torch.no_grad():
            added, _ = SlowDecoder(pipeline, row).generate(prompt, sampling, Images.NEVER)
        assert captions[row] == pipeline.tokenizer.decode(added)


def test_writing_stops_at_eos(pipeline, script, record):
    """The first caption ends early, the second continues, and last tokens are not read."""
    tokenizer = pipeline.tokenizer
    short, long = tokenizer.encode("a red circle"), tokenizer.encode("two green triangles on white")
    script([*short, tokenizer.eos], [*long, tokenizer.eos])
    recorder = record(pipeline.net)
    assert write(pipeline, torch.zeros(2, 3, 4, 4)) == ["a red circle", "two green triangles on white"]
    prompts, *tokens = recorder.tokens
    assert prompts == [[tokenizer.bos, tokenizer.boi, *[-1] * P, tokenizer.eoi]] * 2
    together = [[[first], [second]] for first, second in zip((*short, tokenizer.pad), long, strict=False)]
    assert tokens == [*together, *([[token]] for token in long[len(together) :])]


def test_markers_are_never_written(pipeline):
    """If the likeliest token would begin an image that is not allowed, or end one, the next likeliest is written."""
    tokenizer = pipeline.tokenizer

    def speak(net, args, output):
        logits = torch.zeros_like(output.logits)
        logits[:, tokenizer.eoi], logits[:, tokenizer.bos], logits[:, tokenizer.boi], logits[:, 60] = 9, 8, 7, 6
        return output._replace(logits=logits)

    pipeline.net.register_forward_hook(speak)
    prompts, sampling = [prompt_document(pipeline)], Sampling(num_inference_steps=1, max_new_tokens=3)
    assert kinds(generate(pipeline, prompts, sampling, images=Images.NEVER)[0]) == [(60, 60, 60)]
    assert kinds(generate(pipeline, prompts, sampling, images=Images.CHOSEN)[0]) == ["image"]


@pytest.mark.parametrize("max_new_tokens", [0, 1, 4])
def test_writing_ends_at_its_limit(pipeline, script, record, max_new_tokens):
    """The last token is not read."""
    script([])
    recorder, sampling = record(pipeline.net), Sampling(max_new_tokens=max_new_tokens)
    assert write(pipeline, torch.zeros(1, 3, 4, 4), sampling) == [pipeline.tokenizer.decode([50] * max_new_tokens)]
    assert len(recorder.tokens) == max(1, max_new_tokens)


def test_the_seed_determines_the_text(pipeline):
    sampling = Sampling(temperature=1.0, max_new_tokens=8)
    image = torch.zeros(1, 3, 4, 4)
    first, again, other = (write(pipeline, image, replace(sampling, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert write(pipeline, image.repeat(2, 1, 1, 1), sampling, seeds=[1, 0]) == [*other, *first]


# ---------------------------------------------------------------- stop reasons


@pytest.mark.parametrize(
    ("plan", "limits", "added", "stop_reason"),
    [
        (["eos"], {}, [], StopReason.END_OF_TEXT),
        ([60, "boi", 61, "eos"], {}, [(60,), "image", (61,)], StopReason.END_OF_TEXT),
        (["boi", "boi", "eos"], {"max_images": 2}, ["image", "image"], StopReason.END_OF_TEXT),
        (["boi", 60, "boi", 61], {"max_images": 1}, ["image", (60,)], StopReason.IMAGE_LIMIT),
        ([60, "boi"], {"max_images": 0}, [(60,)], StopReason.IMAGE_LIMIT),
        ([60, 61, 62, 63], {"max_new_tokens": 3}, [(60, 61, 62)], StopReason.TOKEN_LIMIT),
        ([60, "boi", 61, 62], {"max_new_tokens": 2}, [(60,), "image", (61,)], StopReason.TOKEN_LIMIT),
        (["boi"], {"max_new_tokens": 0}, [], StopReason.TOKEN_LIMIT),
    ],
)
def test_each_stop_reason(pipeline, script, plan, limits, added, stop_reason):
    """If no image was drawn, `images` is empty."""
    script([getattr(pipeline.tokenizer, token) if isinstance(token, str) else token for token in plan])
    sampling = Sampling(num_inference_steps=1, **limits)
    sample = generate(pipeline, [prompt_document(pipeline, "two")], sampling)[0]
    assert kinds(sample) == added
    assert sample.stop_reason is stop_reason
    assert len(sample.images) == added.count("image")


@pytest.mark.parametrize(
    ("plan", "limits", "added", "stop_reason"),
    [
        ([], {"max_new_tokens": 0}, ["image"], StopReason.IMAGE_LIMIT),
        ([60], {"max_new_tokens": 1}, ["image", (60,)], StopReason.TOKEN_LIMIT),
        (["boi"], {}, ["image"], StopReason.IMAGE_LIMIT),
        (["boi", "eos"], {"max_images": 2}, ["image", "image"], StopReason.END_OF_TEXT),
    ],
)
def test_each_stop_reason_after_a_forced_image(pipeline, script, plan, limits, added, stop_reason):
    script([getattr(pipeline.tokenizer, token) if isinstance(token, str) else token for token in plan])
    prompts, sampling = [prompt_document(pipeline, "two")], Sampling(num_inference_steps=1, **limits)
    sample = generate(pipeline, prompts, sampling, images=Images.FORCED)[0]
    assert (kinds(sample), sample.stop_reason) == (added, stop_reason)


@pytest.mark.parametrize(
    ("plan", "room", "added", "stop_reason"),
    [
        ([60, 61, 62], 2, [(60, 61)], StopReason.LENGTH_LIMIT),
        ([60, 61, "eos"], 3, [(60, 61)], StopReason.END_OF_TEXT),
        ([60, "boi"], 7, [(60,), "image"], StopReason.LENGTH_LIMIT),  # an image takes 4 patches, BOI and EOI
        ([60, "boi"], 6, [(60,)], StopReason.LENGTH_LIMIT),
        (["boi", 60, "eos"], 8, ["image", (60,)], StopReason.END_OF_TEXT),
        (["boi", 60, 61], 7, ["image", (60,)], StopReason.LENGTH_LIMIT),
        ([], 0, [], StopReason.LENGTH_LIMIT),
    ],
)
def test_a_sample_ends_at_the_last_trained_position(pipeline, script, plan, room, added, stop_reason):
    script([getattr(pipeline.tokenizer, token) if isinstance(token, str) else token for token in plan])
    pipeline.sequence_length = 1 + len(pipeline.tokenizer.encode("two")) + room
    sample = generate(pipeline, [prompt_document(pipeline, "two")], Sampling(num_inference_steps=1))[0]
    assert (kinds(sample), sample.stop_reason) == (added, stop_reason)


# ---------------------------------------------------------------- errors


def test_a_forced_image_needs_max_images(pipeline):
    with pytest.raises(InputError, match="max_images 0 "):
        generate(pipeline, [prompt_document(pipeline)], Sampling(max_images=0), images=Images.FORCED)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling("euler"), r"sampler 'euler'.*ddim, ddpm, dpm\+\+"),
        (Sampling(num_inference_steps=0), "num_inference_steps 0 .*1000"),
    ],
)
def test_errors_of_the_noise_process_come_before_anything_is_read(pipeline, record, sampling, message):
    recorder = record(pipeline.net)
    with pytest.raises(InputError, match=message):
        generate(pipeline, [prompt_document(pipeline)], sampling)
    assert not recorder.tokens
