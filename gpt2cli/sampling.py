"""From logits to the next token: one pure function a rule, and the order they apply in.

Written against the Python array API standard (data-apis.org/array-api), so the same code
serves NumPy arrays and torch tensors on any device. Logits are (B, V); a rule that removes
a token sets its logit to −∞. The order is transformers', so its settings carry over:

    repetition penalty → temperature → top-k → top-p → min-p → draw

Ties are settled towards the lower token id, so k tokens are k tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from gpt2cli.config import SamplingConfig

Array = Any  # whatever the array API standard calls an array


def greedy(logits: Array) -> Array:
    """The most probable token of each row. (B, V) → (B,)"""
    return array_namespace(logits).argmax(logits, axis=-1)


def penalise_repetition(logits: Array, seen: Array, penalty: float) -> Array:
    """Divide the positive logits of tokens in `seen` (B, V) by `penalty`; multiply negative ones.

    Keskar et al. 2019 (CTRL), arXiv:1909.05858, section 4.1, with the sign handled as in
    transformers. 1 changes nothing.
    """
    xp = array_namespace(logits)
    penalised = xp.where(logits > 0, logits / penalty, logits * penalty)
    return xp.where(seen, penalised, logits)


def scale_by_temperature(logits: Array, temperature: float) -> Array:
    """Logits / temperature: below 1 sharpens the distribution, above 1 flattens it."""
    xp = array_namespace(logits)
    return (logits - xp.max(logits, axis=-1, keepdims=True)) / temperature


def keep_top_k(logits: Array, k: int) -> Array:
    """Keep the k most probable tokens. Fan et al. 2018, arXiv:1805.04833."""
    xp = array_namespace(logits)
    count = xp.full((logits.shape[0], 1), min(k, logits.shape[1]), device=device(logits))
    return _keep_largest(logits, _descending(logits), count)


def keep_top_p(logits: Array, p: float) -> Array:
    """Keep the smallest set of most probable tokens whose mass reaches p ("nucleus").

    The token that crosses p is kept, as in Holtzman et al. 2019 (arXiv:1904.09751) and
    transformers; OpenAI's script for GPT-2 drops it.
    """
    xp = array_namespace(logits)
    ordered = _descending(logits)
    mass = xp.cumulative_sum(_softmax(ordered), axis=-1, dtype=xp.float64)
    # A token stays as long as those before it have not reached p.
    wanted = xp.astype(mass[:, :-1] < p, xp.int64)
    return _keep_largest(logits, ordered, xp.sum(wanted, axis=-1, keepdims=True) + 1)


def keep_min_p(logits: Array, p: float) -> Array:
    """Keep tokens at least p times as probable as the best.

    Nguyen et al. 2024, arXiv:2407.01082.
    """
    if p == 0:
        return logits
    xp = array_namespace(logits)
    best = xp.max(logits, axis=-1, keepdims=True)
    return _only(logits, logits >= best + float(np.log(p)))


def draw(logits: Array, uniforms: Array) -> Array:
    """Draw from softmax(logits) by inverting its cumulative sum. (B, V), (B,) → (B,)

    `uniforms` are in [0, 1): the randomness comes from outside, so it can be seeded once
    for all backends.
    """
    xp = array_namespace(logits)
    cumulative = xp.cumulative_sum(_exp(logits), axis=-1, dtype=xp.float64)
    target = uniforms[:, None] * cumulative[:, -1:]
    return xp.sum(xp.astype(cumulative <= target, xp.int64), axis=-1)


def mark_seen(seen: Array | None, logits: Array, ids: list[list[int]]) -> Array:
    """Add each row's `ids` to the (B, V) mask of tokens already in its text."""
    xp = array_namespace(logits)
    mask = np.zeros(logits.shape, dtype=bool)
    for row, row_ids in enumerate(ids):
        mask[row, row_ids] = True
    new = xp.asarray(mask, device=device(logits))
    return new if seen is None else seen | new


def mark_chosen(seen: Array, chosen: Array) -> Array:
    """`mark_seen` for one new token a row, without leaving the device. (B, V), (B,) → (B, V)"""
    xp = array_namespace(seen)
    return seen | (xp.arange(seen.shape[1], device=device(seen)) == chosen[:, None])


def choose(logits: Array, config: SamplingConfig, uniforms: Array, seen: Array | None) -> Array:
    """One token for each row, by the rules of `config`. (B, V), (B,), (B, V) → (B,)

    `seen` is needed for the repetition penalty only.
    """
    if config.repetition_penalty is not None and seen is not None:
        logits = penalise_repetition(logits, seen, config.repetition_penalty)
    if config.temperature == 0:
        return greedy(logits)
    logits = scale_by_temperature(logits, config.temperature)
    if config.top_k is not None:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p is not None and config.top_p < 1:
        logits = keep_top_p(logits, config.top_p)
    if config.min_p is not None:
        logits = keep_min_p(logits, config.min_p)
    xp = array_namespace(logits)
    return draw(logits, xp.asarray(uniforms, device=device(logits)))


def generators(seed: int, samples: int) -> list[np.random.Generator]:
    """One random generator a sample, derived from (seed, i) alone.

    Sample i is therefore the same whatever the number of samples.
    """
    return [
        np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(i,))) for i in range(samples)
    ]


def uniforms(random: list[np.random.Generator], logits: Array) -> Iterator[Array]:
    """For token after token one number from each generator, where the logits are. → (B,), …

    They are copied there for 64 tokens at a time: each copy waits until a GPU is idle.
    """
    xp = array_namespace(logits)
    while True:
        block = np.stack([generator.random(64) for generator in random], axis=1)
        yield from xp.asarray(block, device=device(logits))


def _exp(logits: Array) -> Array:
    xp = array_namespace(logits)
    return xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))


def _softmax(logits: Array) -> Array:
    weights = _exp(logits)
    return weights / array_namespace(logits).sum(weights, axis=-1, keepdims=True)


def _descending(logits: Array) -> Array:
    # Values alone need no stable sort, which takes NumPy thirty times as long.
    xp = array_namespace(logits)
    return xp.flip(xp.sort(logits, axis=-1, stable=False), axis=-1)


def _only(logits: Array, keep: Array) -> Array:
    xp = array_namespace(logits)
    return xp.where(keep, logits, -xp.inf)


def _keep_largest(logits: Array, ordered: Array, count: Array) -> Array:
    """Keep `count` (B, 1) tokens of each row; among equals, those with lower ids.

    Sorting values and comparing is several times faster than sorting indices.
    """
    xp = array_namespace(logits)
    smallest = xp.take_along_axis(ordered, count - 1, axis=-1)
    above, equal = logits > smallest, logits == smallest
    room = count - xp.sum(xp.astype(above, xp.int64), axis=-1, keepdims=True)
    place = xp.cumulative_sum(xp.astype(equal, xp.int64), axis=-1)
    return _only(logits, above | (equal & (place <= room)))
