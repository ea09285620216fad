"""Random orders that depend on a seed alone: on no library's version and no number of processes."""

from __future__ import annotations

import numpy as np

from gpt2cli.arrays import NDArray


def shuffled(count: int, *seed: int) -> NDArray:
    """0 … count − 1 in the order of random numbers, of which i gets the i-th. → (count,) int64

    NumPy keeps these numbers the same in all versions, but not its own permutations. More
    numbers leave the order of those before them as it is.
    """
    numbers = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count)
    return np.argsort(numbers, kind="stable")
