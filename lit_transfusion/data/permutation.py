"""The order in which an epoch goes through the documents of a source."""

from collections.abc import Sequence

import torch

LARGEST_LIST = 2**20  # of more documents no list is kept; of as many it takes 8 MB
ROUNDS = 6


def shuffled(size: int, seed: int) -> Sequence[int]:
    """The numbers below `size` in an order that depends on `seed`, in memory that does not grow with a large `size`."""
    if size > LARGEST_LIST:
        return Scrambled(size, seed)
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).numpy()


class Scrambled(Sequence[int]):
    """A permutation of the numbers below `size` of which each is computed when it is asked for.

    A Feistel network permutes the numbers below a power of four that is not much larger than `size`. Where it leads
    beyond `size` it is applied again, which ends since it is a permutation (cycle walking; Black and Rogaway, 2002).
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.keys = [mix(seed, number) for number in range(ROUNDS)]
        self.half = max(1, ((size - 1).bit_length() + 1) // 2)  # bits of each half of a number

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} of {self.size}")
        index = self._permuted(index)
        while index >= self.size:
            index = self._permuted(index)
        return index

    def _permuted(self, number: int) -> int:
        mask = (1 << self.half) - 1
        left, right = number >> self.half, number & mask
        for key in self.keys:
            left, right = right, left ^ (mix(key, right, 0) >> 20 & mask)
        return left << self.half | right


def mix(*numbers: int) -> int:
    """One seed out of several numbers; neighbours give unrelated streams."""
    seed = 0
    for number in numbers:
        seed = (seed * 6364136223846793005 + number + 1442695040888963407) % 2**64
        seed ^= seed >> 29
    return seed % 2**63
