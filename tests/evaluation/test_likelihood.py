"""Likelihoods of whole documents against the decoder, token by token, and against the training losses."""

import copy
from functools import partial

import pytest
import torch
from given_examples import CAPTIONS, random_examples

from lit_transfusion.data.grammar import caption_first, edit, image_first, unconditional
from lit_transfusion.data.packing import collate, flatten
from lit_transfusion.data.types import Document, ImageSegment, TextSegment
from lit_transfusion.errors import InputError
from lit_transfusion.evaluation.likelihood import (
    Noised,
    caption_alone,
    caption_given_image,
    image_losses,
    latents_of,
    text_likelihoods,
)
from lit_transfusion.generation.engine import read_prompts
from lit_transfusion.generation.prompts import prompt_document
from lit_transfusion.latents import Pixels
from lit_transfusion.training.lit_module import LitTransfusion
from lit_transfusion.training.optim import WarmupCosine


@pytest.fixture
def pipeline(make_pipeline):
    return make_pipeline()


def image(seed):
    return torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def mixed_documents(tokenizer):
    """Documents of different lengths: only text, both orders, no caption, two images of which one is learned."""
    words = [tokenizer.encode(caption) for caption in CAPTIONS]
    return [
        Document((TextSegment((tokenizer.bos, *words[0], tokenizer.eos)),)),
        caption_first(words[1], image(0), tokenizer),
        image_first(words[2], image(1), tokenizer),
        unconditional(image(2), tokenizer),
        edit(ImageSegment(image(3), learn=False), words[3], image(4), tokenizer, learn_instruction=True),
        Document((TextSegment((tokenizer.bos, *words[4])),)),
    ]


def noised(count, seed=5):
    generator = torch.Generator().manual_seed(seed)
    timesteps = torch.randint(1000, (count,), generator=generator)
    return Noised(timesteps, torch.randn(count, 3, 4, 4, generator=generator))


@pytest.mark.parametrize("with_picture", [False, True])
def test_text_equals_reading_token_by_token(pipeline, with_picture):
    documents, expected = [], []
    for example in random_examples():
        (caption,) = example.captions
        picture = example.image if with_picture else None
        documents.append(
            caption_given_image(pipeline, caption, example.image) if with_picture else caption_alone(pipeline, caption)
        )
        with torch.inference_mode():
            decoder = read_prompts(pipeline, [prompt_document(pipeline, picture=picture)], with_boi=False, room=30)
            log_probability = 0.0
            for token in pipeline.tokenizer.encode(caption):
                log_probability += float(decoder.logits[0].double().log_softmax(0)[token])
                decoder.read_tokens([token])
        expected.append(log_probability)
    found = text_likelihoods(pipeline, documents)
    assert [likelihood.log_probability for likelihood in found] == pytest.approx(expected, rel=1e-5)
    assert [likelihood.num_tokens for likelihood in found] == [len(pipeline.tokenizer.encode(c)) for c in CAPTIONS]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_equals_the_losses_of_training(pipeline, prediction_type):
    """Compares on the same noise and timesteps, with the documents packed as in training."""
    pipeline.noise = type(pipeline.noise)(prediction_type=prediction_type)
    module = LitTransfusion(
        pipeline.tokenizer,
        Pixels(),
        4,
        copy.deepcopy(pipeline.net.patcher),
        pipeline.net.mask,
        pipeline.noise,
        partial(torch.optim.AdamW, lr=1e-3),
        partial(WarmupCosine, warmup_steps=1, total_steps=2, final_lr=0.0),
        pipeline.net.transformer.config,
        ema_decay=None,
    )
    module.net.load_state_dict(pipeline.net.state_dict())
    documents = mixed_documents(pipeline.tokenizer)
    flat = [flatten(document, pipeline.tokenizer, lambda image: 4) for document in documents]
    batch = collate([flat[:3], flat[3:]], 100, pipeline.tokenizer.pad, (3, 4, 4))
    terms, _ = module.losses(module.net, batch, torch.Generator().manual_seed(7))

    generator = torch.Generator().manual_seed(7)
    timesteps = module.noise.draw_timesteps(batch.image_groups[0].max_timesteps, generator)
    same = Noised(timesteps, torch.randn(len(timesteps), 3, 4, 4, generator=generator))
    per_image = image_losses(pipeline, documents, same)
    assert torch.allclose(per_image[batch.image_groups[0].learned], terms.per_image, rtol=1e-5)
    text = text_likelihoods(pipeline, documents, noised=same)
    num_tokens = sum(likelihood.num_tokens for likelihood in text)
    assert num_tokens == len(batch.target_positions)
    assert -sum(likelihood.log_probability for likelihood in text) / num_tokens == pytest.approx(
        float(terms.text.detach())
    )


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_change_nothing(pipeline, batch_size):
    documents = mixed_documents(pipeline.tokenizer)
    whole, parts = (text_likelihoods(pipeline, documents, size, noised(5)) for size in (64, batch_size))
    assert [x.log_probability for x in parts] == pytest.approx([x.log_probability for x in whole], rel=1e-5)
    assert [x[1:] for x in parts] == [x[1:] for x in whole]
    whole, parts = (image_losses(pipeline, documents, noised(5), size) for size in (64, batch_size))
    assert torch.allclose(parts, whole, rtol=1e-5)
    order = [3, 4, 2, 1, 0]  # of the images if the documents are reversed; the fifth document has two images
    backwards = Noised(*(values[order] for values in noised(5)))
    assert torch.allclose(image_losses(pipeline, documents[::-1], backwards, batch_size), whole[order], rtol=1e-5)


def test_an_image_is_clean_unless_noise_is_given(pipeline):
    document = caption_given_image(pipeline, "a red circle", image(0))
    clean, little, much = (
        text_likelihoods(pipeline, [document], noised=noise)[0].log_probability
        for noise in (None, Noised(torch.tensor([0]), torch.zeros(1, 3, 4, 4)), noised(1))
    )
    assert clean == pytest.approx(little, rel=1e-3)
    assert abs(much - clean) > 100 * abs(little - clean)


def test_greedy_if_each_token_is_the_likeliest(pipeline):
    with torch.inference_mode():
        decoder = read_prompts(pipeline, [prompt_document(pipeline)], with_boi=False, room=4)
        tokens = []
        for _ in range(3):
            tokens.append(int(decoder.logits[0].argmax()))
            decoder.read_tokens(tokens[-1:])
    documents = [
        Document((TextSegment((pipeline.tokenizer.bos, *words)),)) for words in (tokens, [*tokens[:2], tokens[2] ^ 1])
    ]
    assert [likelihood.is_greedy for likelihood in text_likelihoods(pipeline, documents)] == [True, False]


def test_probabilities_of_the_next_token_sum_to_one(pipeline):
    words = pipeline.tokenizer.encode("a red")
    document = [TextSegment((pipeline.tokenizer.bos, *words), learn=False)]
    every = [Document((*document, TextSegment((token,)))) for token in range(pipeline.tokenizer.vocab_size)]
    found = text_likelihoods(pipeline, every, batch_size=100)
    assert {likelihood.num_tokens for likelihood in found} == {1}
    total = torch.tensor([likelihood.log_probability for likelihood in found]).logsumexp(0)
    assert float(total) == pytest.approx(0, abs=1e-5)


def test_parts_that_are_not_learned_do_not_count(pipeline):
    found = text_likelihoods(pipeline, [unconditional(image(0), pipeline.tokenizer), prompt_document(pipeline, "")])
    assert found == [(0.0, 0, True)] * 2
    assert text_likelihoods(pipeline, []) == []
    assert image_losses(pipeline, [], noised(0)).tolist() == []


def test_captions_are_cut_as_in_training(pipeline):
    caption = "two green triangles on white and a blue square"
    pipeline.sequence_length = 12  # 8 of them are BOS, EOS, BOI, four patches and EOI
    assert text_likelihoods(pipeline, [caption_given_image(pipeline, caption, image(0))])[0].num_tokens == 4


def test_a_document_longer_than_in_training_is_an_error(pipeline):
    document = caption_alone(pipeline, CAPTIONS[1])
    length = 1 + len(pipeline.tokenizer.encode(CAPTIONS[1]))
    pipeline.sequence_length = length
    text_likelihoods(pipeline, [document])
    pipeline.sequence_length = length - 1
    with pytest.raises(InputError, match=rf"\b{length} positions.*\b{length - 1}\b"):
        text_likelihoods(pipeline, [document])


def test_noise_for_other_images_is_an_error(pipeline):
    with pytest.raises(ValueError, match=r"4 timesteps .*4 .*5 images"):
        image_losses(pipeline, mixed_documents(pipeline.tokenizer), noised(4))


def test_latents_are_the_same_each_time_if_the_codec_samples_them(pipeline):
    class Drawn(Pixels):
        def encode(self, images, generator=None):
            return images + torch.randn(images.shape, generator=generator)

    pipeline.codec = Drawn()
    pictures = torch.stack([image(0), image(0), image(1)])
    latents = latents_of(pipeline, pictures)
    assert all(map(torch.equal, latents, latents_of(pipeline, pictures))) and torch.equal(latents[0], latents[1])
    assert torch.equal(latents[2], prompt_document(pipeline, picture=image(1)).images[0].latents)


@pytest.mark.filterwarnings("ignore")
def test_rows_are_multiples_of_the_tiles_of_flex(pipeline):
    documents = mixed_documents(pipeline.tokenizer)[1:2]
    expected = text_likelihoods(pipeline, documents)
    pipeline.net.attention = "flex"
    found = text_likelihoods(pipeline, documents)
    assert [x.log_probability for x in found] == pytest.approx([x.log_probability for x in expected], rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_same_on_a_gpu(pipeline):
    documents, noise = mixed_documents(pipeline.tokenizer), noised(5)
    text, losses = text_likelihoods(pipeline, documents), image_losses(pipeline, documents, noise)
    pipeline.net.cuda()
    on_gpu = text_likelihoods(pipeline, documents)
    assert [x.log_probability for x in on_gpu] == pytest.approx([x.log_probability for x in text], rel=1e-3)
    assert torch.allclose(image_losses(pipeline, documents, noise), losses, rtol=1e-3)
