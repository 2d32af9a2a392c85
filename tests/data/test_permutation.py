"""Orders of an epoch: each number once, determined by the seed."""

import pytest
import torch

from lit_transfusion.data import permutation as order
from lit_transfusion.data.permutation import Scrambled, shuffled


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000])
def test_computed_order_has_each_number_once(size):
    assert sorted(Scrambled(size, seed=3)) == list(range(size))
    assert list(Scrambled(size, seed=3)) == list(Scrambled(size, seed=3))


def test_computed_orders_are_unrelated_to_each_other_and_to_the_place():
    """Correlations over 4,000 numbers are within 0.06, four standard deviations."""
    orders = torch.tensor([list(Scrambled(4000, seed)) for seed in (0, 1, 2)], dtype=torch.float32)
    places = torch.arange(4000.0)
    neighbours = orders.roll(1, 1)
    assert torch.corrcoef(torch.cat([orders, neighbours, places[None]])).fill_diagonal_(0).abs().max() < 0.06


def test_only_a_small_order_is_a_list(monkeypatch):
    monkeypatch.setattr(order, "LARGEST_LIST", 100)
    generator = torch.Generator().manual_seed(7)
    assert shuffled(100, 7).tolist() == torch.randperm(100, generator=generator).tolist()
    assert isinstance(shuffled(101, 7), Scrambled)


def test_order_of_any_size_is_ready_immediately():
    numbers = [Scrambled(10**12, 5)[i] for i in range(1000)]
    assert len(set(numbers)) == 1000 and 0 <= min(numbers) < 10**10 and 99 * 10**10 < max(numbers) < 10**12


def test_index_out_of_range_is_an_error():
    with pytest.raises(IndexError):
        Scrambled(10, 0)[10]
