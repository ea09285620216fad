"""A draw from one text's logits in NumPy, by the usual rules and without sorting the vocabulary.

What `rules` says, to the token: temperature, then top-k, then top-p, then a draw. Weights are
whole numbers, so sums of parts, and in any order, are exact, and so is the result.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np

from gpt2cli.arrays import NDArray
from gpt2cli.sampling.rules import WHOLE

BLOCK = 256  # tokens; sums of blocks tell where in the vocabulary a draw falls
FEW = 4096  # tokens that are sorted in little time
STRIDE = 32  # one in as many tokens is sampled to see about where the mass reaches p
MARGIN = 12  # sampled tokens below there, from which on it is looked for


class _Arrays(NamedTuple):
    """Of one vocabulary, in whole blocks; past its end weights are 0. (N,)"""

    weights: NDArray  # float32
    exact: NDArray  # the same in float64
    mask: NDArray  # bool, as the next
    band: NDArray


class _Space(threading.local):
    """The arrays of a thread: to get new ones of this size takes as long as to fill them."""

    arrays = _Arrays(*(np.zeros(0, dtype) for dtype in (np.float32, np.float64, bool, bool)))

    def take(self, size: int) -> _Arrays:
        """Arrays for `size` tokens, with old contents."""
        padded = -(-size // BLOCK) * BLOCK
        if padded > len(self.arrays.mask):
            self.arrays = _Arrays(*(np.zeros(padded, array.dtype) for array in self.arrays))
        arrays = _Arrays(*(array[:padded] for array in self.arrays))
        arrays.weights[size:] = 0
        return arrays


_SPACE = _Space()


def draw_one(
    logits: NDArray, temperature: float, k: int | None, p: float | None, uniform: float
) -> int:
    """Draw from the tokens that top-k and top-p keep. (V,), in float32

    The temperature is above 0. V where no token is left.
    """
    size, best = len(logits), logits.max(initial=-np.inf)
    if not -np.inf < best < np.inf:
        return size
    if k is not None and k < size:
        scaled = (logits - best) / temperature
        ids = largest(scaled, k)
        return int(ids[draw_one(scaled[ids], 1, None, p, uniform)])
    if size <= FEW:
        return _draw_of_few(logits, best, temperature, p, uniform)
    arrays = _SPACE.take(size)
    weights = arrays.weights[:size]
    np.subtract(logits, best, out=weights)
    np.divide(weights, np.float32(temperature), out=weights)
    np.exp(weights, out=weights)
    np.multiply(weights, np.float32(WHOLE), out=weights)
    np.rint(weights, out=weights)
    np.copyto(arrays.exact, arrays.weights)
    if p is None or p == 1:
        arrays.mask[:] = True
        sums = arrays.exact.reshape(-1, BLOCK).sum(axis=1)
        return _draw_from_blocks(arrays, sums, uniform)
    total = float(arrays.exact.sum())
    # All tokens below this together do not weigh what top-p leaves out.
    least = (1 - p) * total / (2 * size)
    if np.count_nonzero(np.greater_equal(arrays.weights, least, out=arrays.mask)) > FEW:
        return _draw_from_blocks(arrays, _mask_rest(arrays, p * total, total), uniform)
    ids = np.flatnonzero(arrays.mask)
    some = arrays.exact[ids]
    some *= _needed(some, float(some.sum()), p * total)
    return int(ids[_draw_from(some, uniform)])


def _draw_of_few(
    logits: NDArray, best: np.float32, temperature: float, p: float | None, uniform: float
) -> int:
    weights = np.exp((logits - best) / temperature)
    weights *= WHOLE
    exact = np.rint(weights, out=weights).astype(float)
    if p is not None and p < 1:
        total = float(exact.sum())
        exact *= _needed(exact, total, p * total)
    return _draw_from(exact, uniform)


def largest(logits: NDArray, k: int) -> NDArray:
    """The ids that top-k keeps, in ascending order. (V,) → (k,), 1 ≤ k ≤ V"""
    ids = np.arange(len(logits))
    if k <= BLOCK < len(logits):
        # k groups with such a best token have k such tokens, so none below it counts.
        best = logits[: len(logits) // BLOCK * BLOCK].reshape(-1, BLOCK).max(axis=0)
        ids = np.flatnonzero(logits >= np.partition(best, -k)[-k])
    some = logits[ids]
    return ids[_at_most(some, np.partition(some, -k)[-k], k)]


def _needed(weights: NDArray, mass: float, goal: float) -> NDArray:
    """The heaviest, until they reach the goal; `mass` counts these and all heavier tokens."""
    ordered = np.sort(weights)
    before = mass - np.cumsum(ordered)
    if count := int(np.count_nonzero(before < goal)):
        return _at_most(weights, ordered[-count], count)
    return np.zeros(len(weights), bool)


def _at_most(values: NDArray, least: float, count: int) -> NDArray:
    """Where the `count` largest are, of which this is the least; among equals the first."""
    keep = values >= least
    if surplus := np.count_nonzero(keep) - count:
        keep[np.flatnonzero(values == least)[-surplus:]] = False
    return keep


def _mask_rest(arrays: _Arrays, goal: float, total: float) -> NDArray:
    """Mask what top-p removes, where it leaves many tokens. → sums of the blocks"""
    weights, exact, mask, band = arrays
    # The lighter tokens are many and alike, so a sample tells their mass well.
    sample = np.sort(weights[::STRIDE])
    below = np.cumsum(sample)
    first, margin = int(np.searchsorted(below, (total - goal) / STRIDE)), MARGIN
    mass = 0.0
    while mass < goal:
        first -= margin
        np.greater_equal(weights, sample[first] if first > 0 else 0, out=mask)
        sums = np.einsum("ij,ij->i", exact.reshape(-1, BLOCK), mask.reshape(-1, BLOCK))
        mass, margin = float(sums.sum()), margin * 4
    # Of those that are left the lightest weigh too much.
    last, margin = (
        int(np.searchsorted(below, below[max(first, 0)] + (mass - goal) / STRIDE)),
        MARGIN,
    )
    kept = np.zeros(0, bool)
    while not kept.any():
        last += margin
        np.less_equal(weights, sample[last] if last < len(sample) else np.inf, out=band)
        ids = np.flatnonzero(np.logical_and(mask, band, out=band))
        kept, margin = _needed(exact[ids], mass, goal), margin * 4
    mask[ids] = kept
    removed = ids[~kept]
    return np.asarray(sums - np.bincount(removed // BLOCK, exact[removed], len(sums)))


def _draw_from_blocks(arrays: _Arrays, sums: NDArray, uniform: float) -> int:
    """Draw from the tokens in the mask, of which these are the blocks' sums."""
    cumulative = np.cumsum(sums)
    target = _target(cumulative[-1], uniform)
    block = int(np.searchsorted(cumulative, target, side="right"))
    tokens = slice(block * BLOCK, (block + 1) * BLOCK)
    inside = np.cumsum(arrays.exact[tokens] * arrays.mask[tokens])
    inside += cumulative[block] - sums[block]
    return tokens.start + int(np.searchsorted(inside, target, side="right"))


def _draw_from(weights: NDArray, uniform: float) -> int:
    cumulative = np.cumsum(weights)
    return int(np.searchsorted(cumulative, _target(cumulative[-1], uniform), side="right"))


def _target(total: float, uniform: float) -> float:
    """Where a uniform number falls within the sum of all weights."""
    return min(uniform * total, total - 1)
