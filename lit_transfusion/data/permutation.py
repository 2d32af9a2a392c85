"""Pseudorandom orders of the examples of an epoch."""

from collections.abc import Sequence

import torch

LARGEST_LIST = 2**20  # longest order that is stored as a list, which takes 8 MB
ROUNDS = 6


def shuffled(size: int, seed: int) -> Sequence[int]:
    """A permutation of the numbers below `size`, chosen by `seed`. Memory does not grow with a large `size`."""
    if size > LARGEST_LIST:
        return Scrambled(size, seed)
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).numpy()


class Scrambled(Sequence[int]):
    """A permutation of the numbers below `size` that computes each element on access.

    A Feistel network permutes the numbers below a power of four that is at least `size`. If the result is not below
    `size`, it is applied again; this ends, because it is a permutation (cycle walking; Black and Rogaway, 2002).
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.keys = [hash_of(seed, number) for number in range(ROUNDS)]
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
            left, right = right, left ^ (hash_of(key, right, 0) >> 20 & mask)
        return left << self.half | right


def hash_of(*numbers: int) -> int:
    """Hash several numbers into one seed. Neighbouring numbers give unrelated seeds."""
    seed = 0
    for number in numbers:
        seed = (seed * 6364136223846793005 + number + 1442695040888963407) % 2**64
        seed ^= seed >> 29
    return seed % 2**63
