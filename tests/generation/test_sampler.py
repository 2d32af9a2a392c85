"""Drawing, writing and both, against loops without a cache, and with nets that say what a script tells them to."""

from dataclasses import replace

import pytest
import torch

from lit_transfusion.data.document import Document, ImageSegment, TextSegment
from lit_transfusion.data.packing import flatten
from lit_transfusion.data.recipe import caption_first, unconditional
from lit_transfusion.diffusion import DDPM, SAMPLERS
from lit_transfusion.errors import InputError
from lit_transfusion.generation.sampler import Sampling, StopReason, _pick, draw, interleave, prompt_document, write
from lit_transfusion.model import Bidirectional, Causal

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # diffusers under NumPy 2
P = 4
PROMPTS = ["a red circle and a blue square", "two", ""]
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
samplers = pytest.mark.parametrize("sampler", list(SAMPLERS))
patchers = pytest.mark.parametrize("patcher", ["linear", "unet"])
masks = pytest.mark.parametrize("mask", [Bidirectional(), Causal()], ids=["bidirectional", "causal"])


@pytest.fixture
def pipeline(make_pipeline):
    """One whose latents stay small, so that the pictures are not just white and black."""
    return make_pipeline(noise=DDPM(prediction_type="sample"))


def noise(seed):
    """(1, C, H, W), and the generator that goes on from there."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 4, 4, generator=generator)[None], generator


def forward(pipeline, document, last_timestep=0):
    """The whole document in one pass without a cache → (L, V) logits, and the prediction of its last image."""
    piece = flatten(document, pipeline.tokenizer, P)
    tokens, images = torch.tensor([piece.tokens]), [image.latents for image in piece.images]
    output = pipeline.net(
        tokens,
        torch.arange(tokens.shape[1])[None],
        torch.zeros_like(tokens),
        torch.tensor([piece.image_ids]),
        torch.stack(images) if images else torch.zeros(0, 3, 4, 4),
        torch.tensor([0] * (len(images) - 1) + [last_timestep])[: len(images)],
        logit_positions=torch.arange(tokens.shape[1]),
    )
    return output.logits, output.image_prediction[-1:]


@torch.no_grad()
def denoise(pipeline, segments, latents, generator, sampling):
    """The image after `segments`: all of the document again at each step, and the null prompt by itself."""
    scheduler = pipeline.noise.sampler(sampling.sampler, sampling.num_inference_steps)
    for t in scheduler.timesteps.tolist():
        prompted = forward(pipeline, Document((*segments, ImageSegment(latents[0]))), t)[1]
        null_prompt = TextSegment((pipeline.tokenizer.bos,))
        null = forward(pipeline, Document((null_prompt, ImageSegment(latents[0]))), t)[1]
        prediction = null + sampling.guidance_scale * (prompted - null)
        latents = scheduler.step(prediction, t, latents, generator=[generator]).prev_sample
    return latents


def prompt_segment(pipeline, prompt):
    return TextSegment((pipeline.tokenizer.bos, *pipeline.tokenizer.encode(prompt)))


def last_latents(steps):
    """An `on_step` that keeps the latents of each step in a list: draw's pictures are clamped, these are not."""
    return lambda step, latents: steps.append(latents.clone())


class Recorder:
    """What each row of a net's decoder reads, as (position, token or "patch"), and each call's images and timestep."""

    def __init__(self, net):
        self.streams, self.images = {}, []
        self.handle = net.register_forward_pre_hook(self)

    def __call__(self, net, args):
        tokens, positions, document_ids, image_ids, images, timesteps = args
        if len(images):
            self.images.append((images.clone(), timesteps.tolist()))
        for row, holes in enumerate(document_ids < 0):
            stream = self.streams.setdefault(row, [])
            for token, position, image, hole in zip(tokens[row], positions[row], image_ids[row], holes, strict=True):
                entry = int(position), int(token) if image < 0 else "patch"
                if not hole and entry not in stream:  # denoising reads the same places again and again
                    stream.append(entry)


def script(pipeline, start, *written):
    """Makes the net write `written[row]` after a prompt that ends at position `start`, and then word 50 for ever.

    EOI is made the likeliest of all everywhere, since it is never to be chosen. Returns the handle that ends it.
    """
    tokenizer, plans = pipeline.tokenizer, []
    for tokens in written:
        plan, position = {}, start
        for token in tokens:
            plan[position] = token
            position += P + 2 if token == tokenizer.boi else 1  # the next word comes after EOI
        plans.append(plan)

    def speak(net, args, kwargs, output):
        logits = torch.zeros_like(output.logits)
        logits[:, tokenizer.eoi] = 9
        positions = args[1].flatten()[kwargs["logit_positions"]]
        for row, plan in enumerate(plans):
            logits[row, plan.get(int(positions[row]), 50)] = 3
        return output._replace(logits=logits)

    return pipeline.net.register_forward_hook(speak, with_kwargs=True)


# ---------------------------------------------------------------- draw


@samplers
@patchers
@masks
def test_drawing_is_sampling_without_a_cache(make_pipeline, sampler, patcher, mask):
    pipeline = make_pipeline(patcher, mask, DDPM(prediction_type="sample"))
    sampling, steps = Sampling(sampler, num_inference_steps=3, guidance_scale=2.0, seed=7), []
    pictures = draw(pipeline, PROMPTS, sampling, last_latents(steps))
    assert len(steps) == 3
    for i, prompt in enumerate(PROMPTS):
        expected = denoise(pipeline, [prompt_segment(pipeline, prompt)], *noise(7 + i), sampling)
        torch.testing.assert_close(steps[-1][i], expected[0], **TOLERANCE)
        torch.testing.assert_close(pictures[i], expected[0].clamp(-1, 1), **TOLERANCE)


@samplers
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_batch_of_prompts_is_each_alone(pipeline, sampler, guidance_scale):
    """Image i of a batch is that of seed + i, whatever else is drawn."""
    sampling = Sampling(sampler, num_inference_steps=4, guidance_scale=guidance_scale, seed=3)
    together, alone = [], []
    draw(pipeline, PROMPTS, sampling, last_latents(together))
    for i, prompt in enumerate(PROMPTS):
        draw(pipeline, [prompt], replace(sampling, seed=3 + i), last_latents(alone))
        torch.testing.assert_close(together[-1][i], alone[-1][0], **TOLERANCE)


def test_guidance_of_one_is_none(pipeline):
    """With no second row, the same picture as with one whose weight is (almost) none."""
    none, almost, some = [], [], []
    for guidance_scale, steps in ((1.0, none), (1.0 + 1e-7, almost), (2.0, some)):
        sampling = Sampling(num_inference_steps=3, guidance_scale=guidance_scale)
        draw(pipeline, PROMPTS[:1], sampling, last_latents(steps))
    torch.testing.assert_close(none, almost, **TOLERANCE)
    assert not torch.allclose(none[-1], some[-1], atol=1e-2)


def test_guidance_changes_nothing_where_there_is_no_prompt(pipeline):
    """An empty prompt is the null prompt."""
    one, five = [], []
    draw(pipeline, [""], Sampling(num_inference_steps=3, guidance_scale=1.0), last_latents(one))
    draw(pipeline, [""], Sampling(num_inference_steps=3, guidance_scale=5.0), last_latents(five))
    torch.testing.assert_close(one, five, **TOLERANCE)


def test_drawing_reads_what_training_reads(pipeline):
    """Token for token, up to the end of the image, the prompt as well as what guidance steers away from."""
    tokenizer, image = pipeline.tokenizer, torch.zeros(3, 4, 4)
    recorder = Recorder(pipeline.net)
    draw(pipeline, PROMPTS[:2], Sampling(num_inference_steps=2))
    documents = [caption_first(tokenizer.encode(prompt), image, tokenizer) for prompt in PROMPTS[:2]]
    documents += [unconditional(image, tokenizer)] * 2
    for row, document in enumerate(documents):
        piece = flatten(document, tokenizer, P)
        end = piece.image_ids.index(0) + P
        words = ["patch" if i >= 0 else token for token, i in zip(piece.tokens, piece.image_ids, strict=True)]
        assert recorder.streams[row] == list(enumerate(words))[:end]
    assert [t for _, t in recorder.images] == [[999] * 4, [499] * 4]


def test_each_step_is_reported(pipeline):
    steps = []
    draw(pipeline, PROMPTS, Sampling(num_inference_steps=4), lambda step, latents: steps.append((step, latents.shape)))
    assert steps == [(i, (3, 3, 4, 4)) for i in range(4)]


# ---------------------------------------------------------------- write


@patchers
@masks
def test_writing_takes_the_likeliest_token_each_time(make_pipeline, patcher, mask):
    """Two pictures, each as if alone and read from the start for each token."""
    pipeline, images = make_pipeline(patcher, mask), torch.rand(2, 3, 4, 4) * 2 - 1
    tokenizer, recorder = pipeline.tokenizer, Recorder(pipeline.net)
    captions = write(pipeline, images, Sampling(max_new_tokens=6))
    recorder.handle.remove()
    for row, image in enumerate(images):
        caption = []
        for _ in range(6):
            segments = TextSegment((tokenizer.bos,)), ImageSegment(image), TextSegment(tuple(caption))
            with torch.no_grad():
                logits = forward(pipeline, Document(segments))[0][-1]
            logits[[tokenizer.boi, tokenizer.eoi]] = -torch.inf
            caption.append(int(logits.argmax()))
            if caption[-1] == tokenizer.eos:
                break
        read = [token for position, token in recorder.streams[row] if position > P + 2]
        assert [token for token in caption if token != tokenizer.eos] == read
        assert captions[row] == tokenizer.decode(read)


def test_writing_stops_at_eos_and_never_writes_markers(pipeline):
    """The first caption ends early, the second goes on; where BOI would come, the next best token does."""
    tokenizer = pipeline.tokenizer
    short, long = tokenizer.encode("a red circle"), tokenizer.encode("two green triangles on white")
    script(pipeline, P + 2, [*short, tokenizer.eos, *short], [*long, tokenizer.eos])
    recorder = Recorder(pipeline.net)
    assert write(pipeline, torch.zeros(2, 3, 4, 4)) == ["a red circle", "two green triangles on white"]
    assert recorder.streams[0][-1] == (P + 2 + len(short), short[-1])  # it reads nothing after its end


def test_writing_goes_on_past_an_image_it_may_not_begin(pipeline):
    tokenizer = pipeline.tokenizer
    word = tokenizer.encode("two")

    def speak(net, args, kwargs, output):
        logits = torch.zeros_like(output.logits)
        logits[:, tokenizer.boi], logits[:, tokenizer.eoi], logits[:, word[0]] = 9, 8, 1
        return output._replace(logits=logits)

    pipeline.net.register_forward_hook(speak, with_kwargs=True)
    recorder = Recorder(pipeline.net)
    caption = write(pipeline, torch.zeros(1, 3, 4, 4), Sampling(max_new_tokens=3))
    assert caption == [tokenizer.decode([word[0]] * 3)]
    assert not {tokenizer.boi, tokenizer.eoi} & {token for position, token in recorder.streams[0] if position > P + 2}


@pytest.mark.parametrize("max_new_tokens", [1, 4])
def test_writing_ends_at_its_limit(pipeline, max_new_tokens):
    script(pipeline, P + 2, [])
    sampling = Sampling(max_new_tokens=max_new_tokens)
    assert write(pipeline, torch.zeros(1, 3, 4, 4), sampling) == [pipeline.tokenizer.decode([50] * max_new_tokens)]


def test_a_temperature_draws_from_the_softmax():
    """p^(1/2), normalised, at a temperature of 2."""
    logits = torch.tensor([0.64, 0.32, 0.04]).log().expand(20_000, 3)
    counts = _pick(logits, 2.0, [torch.Generator().manual_seed(0)] * 20_000).bincount(minlength=3)
    expected = torch.tensor([0.64, 0.32, 0.04]).sqrt()
    assert torch.allclose(counts / 20_000, expected / expected.sum(), atol=0.02)


def test_the_seed_decides_what_is_written(pipeline):
    sampling = Sampling(temperature=1.0, max_new_tokens=8)
    image = torch.zeros(1, 3, 4, 4)
    first, again, other = (write(pipeline, image, replace(sampling, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_what_is_written_does_not_depend_on_the_other_rows(pipeline):
    sampling = Sampling(temperature=1.0, max_new_tokens=8)
    images = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    together = write(pipeline, images, sampling)
    alone = [write(pipeline, image[None], replace(sampling, seed=i))[0] for i, image in enumerate(images)]
    assert together == alone


# ---------------------------------------------------------------- interleave


def start(pipeline, prompt="a red circle"):
    """A document to go on from, and the position of its last token."""
    segment = prompt_segment(pipeline, prompt)
    return Document((segment,)), len(segment.token_ids) - 1


def test_the_model_decides_when_to_draw(pipeline):
    tokenizer = pipeline.tokenizer
    before, after = tokenizer.encode("two"), tokenizer.encode("on white")
    prompt, end = start(pipeline)
    script(pipeline, end, [*before, tokenizer.boi, *after, tokenizer.eos])
    document, stop = interleave(pipeline, prompt, Sampling(num_inference_steps=2))
    assert stop is StopReason.END_OF_TEXT
    words, said, image, said_after = document.segments
    assert words == prompt.segments[0]
    assert said == TextSegment(before)
    assert image.latents.shape == (3, 4, 4)
    assert said_after == TextSegment(after)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
@patchers
@masks
def test_two_images_in_one_document(make_pipeline, patcher, mask, guidance_scale):
    """The second is drawn under all that stands before it, the first image, clean, included; guidance steers it away
    from a null prompt in which the first has left no trace.
    """
    pipeline = make_pipeline(patcher, mask, DDPM(prediction_type="sample"))
    tokenizer = pipeline.tokenizer
    (prompt, end), between = start(pipeline), tokenizer.encode("two")
    script(pipeline, end, [tokenizer.boi, *between, tokenizer.boi, tokenizer.eos])
    sampling = Sampling("ddpm", num_inference_steps=3, guidance_scale=guidance_scale, max_images=2, seed=5)
    document, stop = interleave(pipeline, prompt, sampling)
    assert stop is StopReason.END_OF_TEXT
    kinds = [type(segment) for segment in document.segments]
    assert kinds == [TextSegment, ImageSegment, TextSegment, ImageSegment]
    for i, place in enumerate((1, 3)):  # each has noise of its own, as the images of a batch have
        expected = denoise(pipeline, document.segments[:place], *noise(5 + i), sampling)
        torch.testing.assert_close(document.segments[place].latents, expected[0], **TOLERANCE)


def test_what_is_read_is_one_document_and_the_null_prompt(pipeline):
    """The first row reads all, with EOI after the image; the other BOS, BOI and the image, and all of it once more."""
    tokenizer = pipeline.tokenizer
    prompt, end = start(pipeline)
    script(pipeline, end, [tokenizer.boi, 60, tokenizer.boi, 61, tokenizer.eos])
    recorder = Recorder(pipeline.net)
    document, _ = interleave(pipeline, prompt, Sampling(num_inference_steps=2, max_images=2))
    piece = flatten(document, tokenizer, P)
    words = ["patch" if i >= 0 else token for token, i in zip(piece.tokens, piece.image_ids, strict=True)]
    assert recorder.streams[0] == list(enumerate(words))
    null = flatten(unconditional(torch.zeros(3, 4, 4), tokenizer), tokenizer, P)
    assert recorder.streams[1] == [(0, null.tokens[0]), (1, null.tokens[1]), *((2 + i, "patch") for i in range(P))]


@torch.no_grad()
def test_the_text_after_an_image_sees_it_clean(pipeline):
    """As it is in the document and at t = 0, not as it was in the last step of denoising."""
    prompt, end = start(pipeline)
    own_logits = []  # of the first row, before the script overrules them
    pipeline.net.register_forward_hook(lambda net, args, output: own_logits.append(output.logits[0].clone()))
    overruling = script(pipeline, end, [pipeline.tokenizer.boi, 60, pipeline.tokenizer.eos])
    recorder = Recorder(pipeline.net)
    document, _ = interleave(pipeline, prompt, Sampling(num_inference_steps=3))
    overruling.remove()
    images, timesteps = recorder.images[-1]
    assert torch.equal(images[0], document.segments[1].latents) and timesteps[0] == 0
    at_eoi, at_word = own_logits[-2:]
    expected = forward(pipeline, document)[0]
    torch.testing.assert_close(at_eoi, expected[-2], **TOLERANCE)
    torch.testing.assert_close(at_word, expected[-1], **TOLERANCE)


def test_no_more_images_than_allowed(pipeline):
    tokenizer = pipeline.tokenizer
    prompt, end = start(pipeline)
    script(pipeline, end, [tokenizer.boi, 60, tokenizer.boi, 61])
    document, stop = interleave(pipeline, prompt, Sampling(num_inference_steps=2, max_images=1))
    assert stop is StopReason.IMAGE_LIMIT
    assert len(document.images) == 1
    assert document.segments[-1] == TextSegment((60,))


def test_no_image_at_all_if_none_is_allowed(pipeline):
    prompt, end = start(pipeline)
    script(pipeline, end, [60, pipeline.tokenizer.boi])
    document, stop = interleave(pipeline, prompt, Sampling(max_images=0))
    assert stop is StopReason.IMAGE_LIMIT
    assert document.segments[1:] == (TextSegment((60,)),)


def test_no_more_tokens_than_allowed(pipeline):
    prompt, end = start(pipeline)
    script(pipeline, end, [60, 61, 62, 63])
    document, stop = interleave(pipeline, prompt, Sampling(max_new_tokens=3))
    assert stop is StopReason.TOKEN_LIMIT
    assert document.segments[1:] == (TextSegment((60, 61, 62)),)


def test_an_end_at_once_adds_nothing(pipeline):
    prompt, end = start(pipeline)
    script(pipeline, end, [pipeline.tokenizer.eos])
    assert interleave(pipeline, prompt) == (prompt, StopReason.END_OF_TEXT)


def test_going_on_from_a_picture(pipeline):
    """The prompt's image is read clean, and stays the first of the document."""
    tokenizer, latents = pipeline.tokenizer, torch.rand(3, 4, 4)
    prompt = Document((TextSegment((tokenizer.bos,)), ImageSegment(latents)))
    script(pipeline, P + 2, [60, tokenizer.boi, tokenizer.eos])
    recorder = Recorder(pipeline.net)
    sampling = Sampling(num_inference_steps=2, guidance_scale=2.0)
    document, _ = interleave(pipeline, prompt, sampling)
    images, timesteps = recorder.images[0]
    assert torch.equal(images[0], latents) and timesteps == [0]
    assert document.segments[1].latents is latents
    recorder.handle.remove()
    expected = denoise(pipeline, document.segments[:3], *noise(0), sampling)
    torch.testing.assert_close(document.segments[3].latents, expected[0], **TOLERANCE)


def test_prompts_as_documents(pipeline):
    """BOS first, then the picture, then the words, of which either may be missing."""
    bos, words = pipeline.tokenizer.bos, pipeline.tokenizer.encode("a red circle")
    picture = torch.rand(1, 3, 4, 4)
    assert prompt_document(pipeline) == Document((TextSegment((bos,)),))
    assert prompt_document(pipeline, "a red circle") == Document((TextSegment((bos, *words)),))
    before, image, after = prompt_document(pipeline, "a red circle", picture).segments
    assert (before, after) == (TextSegment((bos,)), TextSegment(words))
    assert torch.equal(image.latents, picture[0])
    script(pipeline, P + 2, [60, pipeline.tokenizer.eos])  # a picture alone: the text comes right after it
    document, _ = interleave(pipeline, prompt_document(pipeline, picture=picture))
    assert document.segments[-1] == TextSegment((60,))


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1 is negative"),
        ({"max_new_tokens": 0}, "max_new_tokens 0 is less than 1"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        Sampling(**wrong)


def test_an_unknown_sampler_is_refused_before_anything_is_drawn(pipeline):
    with pytest.raises(InputError, match="unknown sampler 'euler'"):
        draw(pipeline, PROMPTS, Sampling("euler"))
