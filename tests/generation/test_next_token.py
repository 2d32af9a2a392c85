"""The choice of the next token: allowed tokens against their definitions, and frequencies."""

import pytest
import torch

from lit_transfusion.generation.next_token import likeliest, pick
from lit_transfusion.generation.settings import Sampling

SHARES = torch.tensor([0.05, 0.4, 0.1, 0.15, 0.3])  # likeliest first: 1, 4, 3, 2, 0


def allowed(logits, top_k, top_p):
    return [row.isfinite().nonzero().flatten().tolist() for row in likeliest(logits, top_k, top_p)]


def by_definition(probabilities, top_k, top_p):
    """The k likeliest tokens; of these, the fewest likeliest that have the share p of their sum."""
    order = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])[:top_k]
    total = sum(probabilities[i] for i in order)
    for count in range(1, len(order) + 1):
        if sum(probabilities[i] for i in order[:count]) / total >= top_p:
            return sorted(order[:count])
    return sorted(order)


@pytest.mark.parametrize("top_k", [None, 1, 2, 5, 100])
@pytest.mark.parametrize("top_p", [0.01, 0.37, 0.5, 0.8, 0.99, 1.0])
def test_the_likeliest_by_brute_force(top_k, top_p):
    logits = 2 * torch.randn(20, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[:, 3] = -torch.inf  # BOI, say
    left = likeliest(logits, top_k, top_p)
    for row, probabilities, remaining in zip(logits, logits.softmax(-1).tolist(), left, strict=True):
        expected = [i for i in by_definition(probabilities, top_k, top_p) if i != 3]
        assert remaining.isfinite().nonzero().flatten().tolist() == expected
        assert torch.equal(remaining[expected], row[expected])


def test_examples():
    logits = SHARES.log()[None]
    assert allowed(logits, None, 1.0) == [[0, 1, 2, 3, 4]]
    assert allowed(logits, 2, 1.0) == [[1, 4]]
    assert allowed(logits, None, 0.6) == [[1, 4]]
    assert allowed(logits, None, 0.72) == [[1, 3, 4]]  # the token that reaches the share is kept
    assert allowed(logits, 2, 0.5) == [[1]]  # 0.4 of the sum 0.7
    assert allowed(logits, None, 1e-9) == [[1]]


def test_top_k_of_equal_logits():
    assert allowed(torch.zeros(1, 6), 2, 1.0) == [[0, 1]]


def draw_many(**settings):
    logits = SHARES.log().expand(20_000, 5)
    picks = pick(logits, [torch.Generator().manual_seed(0)] * 20_000, Sampling(**settings))
    return torch.tensor(picks).bincount(minlength=5) / 20_000


def test_a_temperature_draws_from_the_softmax():
    """At temperature 2, the probabilities are p^(1/2), normalised; with top_k = 2, over the two likeliest."""
    expected = SHARES.sqrt()
    torch.testing.assert_close(draw_many(temperature=2.0), expected / expected.sum(), atol=0.02, rtol=0)
    expected = torch.tensor([0, 0.4, 0, 0, 0.3]) / 0.7
    torch.testing.assert_close(draw_many(temperature=1.0, top_k=2), expected, atol=0.02, rtol=0)


def test_temperature_0_takes_the_likeliest():
    assert pick(SHARES[None], [torch.Generator()], Sampling(temperature=0, top_p=0.1)) == [1]


def test_each_row_draws_with_its_own_generator():
    logits, sampling = torch.randn(3, 50), Sampling(temperature=1.0)
    together = pick(logits, [torch.Generator().manual_seed(i) for i in range(3)], sampling)
    assert together == [pick(logits[i : i + 1], [torch.Generator().manual_seed(i)], sampling)[0] for i in range(3)]


def test_a_very_small_temperature_equals_0():
    logits = torch.tensor([[1.0, 3.0, 2.9], [0.0, -5.0, -0.1]])
    assert pick(logits, [torch.Generator(), torch.Generator()], Sampling(temperature=1e-40)) == [1, 0]
