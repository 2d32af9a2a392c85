"""Training with images as tokens: the loss against a plain language model, and errors for parts that do not fit."""

import pytest
import torch
import torch.nn.functional as F
from sign_codec import Signs

from lit_transfusion.data.grammar import caption_first, image_first
from lit_transfusion.data.image_tokens import positions_before
from lit_transfusion.data.packing import collate, flatten
from lit_transfusion.data.types import Document, ImageSegment, Raw, TextSegment
from lit_transfusion.diffusion import DDPM, NextToken
from lit_transfusion.errors import InputError
from lit_transfusion.latents import Pixels
from lit_transfusion.model import Bidirectional, LinearPatcher, NoPatcher, TransformerConfig
from lit_transfusion.training.lit_module import LitTransfusion
from lit_transfusion.training.objective import run_with_codes

CODES = 8


@pytest.fixture
def make_module(tokenizer):
    def make_module(**options):
        torch.manual_seed(0)
        options = {
            "codec": Signs(),
            "patcher": NoPatcher(dim=16),
            "noise": NextToken(),
            "size": TransformerConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=32),
            "image_loss_weight": None,
        } | options
        return LitTransfusion(tokenizer, image_size=4, mask=Bidirectional(), optimizer=None, scheduler=None, **options)

    return make_module


def picture(seed):
    return torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def rows(tokenizer):
    """Two documents in one row, text alone, and an image without a loss; pixels and codes."""
    words = tokenizer.encode("a red circle")
    given = ImageSegment(Signs().encode(picture(3)[None])[0], learn=False)
    documents = [
        [caption_first(words, Raw(picture(0)), tokenizer), image_first(words, Raw(picture(1)), tokenizer)],
        [Document((TextSegment((tokenizer.bos, *words, tokenizer.eos)),))],
        [Document((TextSegment((tokenizer.bos,)), given, TextSegment(words)))],
    ]
    return [[flatten(document, tokenizer, lambda image: 4) for document in row] for row in documents]


def batch_of(rows, tokenizer):
    return collate(rows, 48, tokenizer.pad, (1, 2, 2))


def by_hand(net, tokenizer, rows):
    """Losses of text (T,) and codes (K,), each document alone, from the definition of a language model."""
    text, codes = [], []
    for document in (document for row in rows for document in row):
        tokens = list(document.tokens)
        for number, image in enumerate(document.images):
            value = image.value.tensor if isinstance(image.value, Raw) else image.value
            grid = Signs().encode(value[None])[0] if isinstance(image.value, Raw) else value
            at = [i for i, own in enumerate(document.image_ids) if own == number]
            for position, code in zip(at, grid.flatten().tolist(), strict=True):
                tokens[position] = tokenizer.vocab_size + code
        ids = torch.tensor([tokens])
        positions = torch.arange(len(tokens))
        nothing = torch.full_like(ids, -1)
        logits = net(ids, positions[None], torch.zeros_like(ids), nothing, [], positions).logits
        losses = F.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
        for position, loss in enumerate(losses):
            own = document.image_ids[position + 1]
            if own >= 0 and document.images[own].learn:
                codes.append(loss)
            elif document.labels[position] >= 0:
                text.append(loss)
    return torch.stack(text), torch.stack(codes)


def test_loss_is_that_of_a_language_model_over_all_tokens(make_module, tokenizer, rows):
    module, batch = make_module(z_loss_weight=0.1), batch_of(rows, tokenizer)
    terms, timesteps = module.losses(module.net, batch, torch.Generator())
    text, codes = by_hand(module.net, tokenizer, rows)
    assert len(codes) == batch.num_learned_patches == 8
    torch.testing.assert_close(terms.text, text.mean())
    torch.testing.assert_close(terms.image, codes.mean())
    torch.testing.assert_close(terms.total, torch.cat([text, codes]).mean() + 0.1 * terms.z)
    assert timesteps.numel() == terms.per_image.numel() == 0
    weighted = make_module(image_loss_weight=3.0)
    terms, _ = weighted.losses(weighted.net, batch, torch.Generator())
    torch.testing.assert_close(terms.total, text.mean() + 3 * codes.mean())


def test_losses_of_micro_batches_add_up(make_module, tokenizer, rows):
    module = make_module(z_loss_weight=0.1)
    whole, _ = module.losses(module.net, batch_of(rows, tokenizer), torch.Generator())
    batches = [batch_of([row], tokenizer) for row in rows]
    counts = torch.stack([batch.step_counts for batch in batches]).sum(0)[::2]
    parts = [module.losses(module.net, batch, torch.Generator(), counts)[0] for batch in batches]
    for name in ("total", "text", "image", "z"):
        torch.testing.assert_close(sum(getattr(part, name) for part in parts), getattr(whole, name))


def test_every_weight_has_a_gradient_also_without_images(make_module, tokenizer, rows):
    module = make_module()
    terms, _ = module.losses(module.net, batch_of(rows[1:2], tokenizer), torch.Generator())
    terms.total.backward()
    assert all(weight.grad is not None for weight in module.net.parameters())
    assert terms.image == 0


def test_codes_are_seen_causally_whatever_the_mask(make_module, tokenizer, rows):
    """No logit depends on a later code, though the mask is bidirectional inside images."""
    module, batch = make_module(), batch_of(rows[:1], tokenizer)
    run = run_with_codes(module.net, module.codec, batch, torch.Generator(), tokenizer.vocab_size)
    (group,) = batch.image_groups
    changed = group._replace(images=Raw(-group.images.tensor))
    other = run_with_codes(
        module.net, module.codec, batch._replace(image_groups=(changed,)), torch.Generator(), tokenizer.vocab_size
    )
    first = int(group.at.min())
    assert (run.targets != other.targets).any()
    before = torch.cat([batch.target_positions, positions_before(batch.image_groups)]) < first
    torch.testing.assert_close(run.logits[before], other.logits[before])
    assert not torch.allclose(run.logits[~before], other.logits[~before])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": Pixels()}, r"model\.noise NextToken is for images as tokens, but data\.codec Pixels .*VQ"),
        ({"noise": DDPM()}, r"data\.codec Signs .*but model\.noise DDPM .*NextToken"),
        ({"patcher": LinearPatcher(1, 16, 1)}, r"but model\.patcher LinearPatcher is for images with noise"),
        ({"size": TransformerConfig(dim=16, n_layers=1, n_heads=2, modality_weights="ffn")}, "modality_weights ffn"),
    ],
)
def test_parts_that_do_not_fit_are_an_error(make_module, options, message):
    with pytest.raises(InputError, match=message):
        make_module(**options)


def test_images_with_noise_need_a_number_as_weight(make_module):
    with pytest.raises(InputError, match="image_loss_weight null is for images as tokens"):
        make_module(codec=Pixels(), noise=DDPM(), patcher=LinearPatcher(3, 16, 2))
