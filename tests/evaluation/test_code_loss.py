"""The loss of codes against a language model that reads each document alone."""

import pytest
import torch
import torch.nn.functional as F
from given_examples import subject_of
from sign_codec import Signs

from lit_transfusion.data.types import Example
from lit_transfusion.diffusion import NextToken
from lit_transfusion.evaluation.code_loss import CodeLoss
from lit_transfusion.evaluation.metric import Unavailable
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.model import Bidirectional, NoPatcher, TransformerConfig, Transfusion

CAPTIONS = ("a red circle", "two blue squares on white", "a dot")


def picture(seed):
    return torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def of_tokens(tokenizer):
    torch.manual_seed(0)
    size = TransformerConfig(dim=32, n_layers=2, n_heads=2, multiple_of=16)
    net = Transfusion(tokenizer.vocab_size + 8, size, NoPatcher(dim=32), Bidirectional()).eval()
    return Pipeline(net, NextToken(), Signs(), tokenizer, image_size=4)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_code_loss_is_that_of_a_language_model(of_tokens, batch_size):
    tokenizer, expected = of_tokens.tokenizer, []
    for seed, caption in enumerate(CAPTIONS):
        codes = Signs().encode(picture(seed)[None]).flatten() + tokenizer.vocab_size
        start = [tokenizer.bos, *tokenizer.encode(caption), tokenizer.boi]
        tokens = torch.tensor([[*start, *codes.tolist()]])
        positions, nothing = torch.arange(tokens.shape[1]), torch.full_like(tokens, -1)
        with torch.no_grad():
            logits = of_tokens.net(
                tokens, positions[None], torch.zeros_like(tokens), nothing, [], positions[len(start) - 1 : -1]
            ).logits
        expected.append(F.cross_entropy(logits, codes))
    examples = [Example(picture(seed), (caption,)) for seed, caption in enumerate(CAPTIONS)]
    found = CodeLoss()(subject_of(of_tokens, examples, batch_size=batch_size))
    assert found == {"code_loss": pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)}
    assert list(found) == list(CodeLoss.columns)


def test_images_with_noise_have_no_code_loss(make_pipeline):
    with pytest.raises(Unavailable, match="use DiffusionLoss"):
        CodeLoss()(subject_of(make_pipeline(), [Example(picture(0), ("a dot",)), Example(picture(1), ("a dot",))]))
