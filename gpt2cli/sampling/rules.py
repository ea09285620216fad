"""From logits to the next token: one pure function per rule that depends on these logits alone.

Written against the Python array API standard (data-apis.org/array-api), so the same code
serves NumPy arrays and torch tensors on any device. Logits are (B, V); a rule that removes
a token sets its logit to −∞. Rules that depend on the text so far are in `penalties`, the
order in which all apply in `sampler`.

Ties go to the lower token id, so that exactly k tokens stay.

Probabilities are counted in whole numbers, `WHOLE` for the best token (see `weigh`). Their sums
are exact, so the same in any order: a row becomes the same alone or among others, in pieces or
at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from array_api_compat import device, is_numpy_array

from gpt2cli.arrays import Array, NDArray, array_namespace, to_device_of

# Sums of up to 2^17 weights are exact in float64. What is less probable than 1 / (2 · WHOLE) of
# the best token counts as impossible: one in 1.4e11.
WHOLE = 2.0**36
_GROUP = 64  # numbers of which the best is found first, where many are looked through

Ranked = tuple[float, list[tuple[int, float]]]
"""A token's log-probability, and those of the best tokens, by their ids."""


def weigh(logits: Array) -> Array:
    """Weights as probabilities, whole numbers in the logits' own type. (B, V) → (B, V)"""
    xp = array_namespace(logits)
    return xp.round(xp.exp(logits - xp.max(logits, axis=-1, keepdims=True)) * WHOLE)


def log_softmax(logits: Array) -> Array:
    """Log-probabilities, in the logits' own precision. (B, V) → (B, V)"""
    xp = array_namespace(logits)
    total = xp.astype(xp.log(_total(weigh(logits)) / WHOLE), logits.dtype)
    return logits - xp.max(logits, axis=-1, keepdims=True) - total


def log_probabilities(logits: Array, targets: Sequence[int], count: int) -> list[Ranked]:
    """Of each row's target, and of its `count` best tokens, best first, on the host. (N, V), (N,)

    They are those of `log_softmax`, a row at a time in NumPy, so that it stays in the cache.
    """
    if isinstance(logits, np.ndarray):
        return [_ranked(*each, count) for each in zip(logits, targets, strict=True)]
    xp = array_namespace(logits)
    table, own = log_softmax(logits), to_device_of(logits, np.array(targets, np.int64)[:, None])
    chosen = xp.take_along_axis(table, own, axis=-1)[:, 0].tolist()
    if not count:
        return [(value, []) for value in chosen]
    ids = xp.argsort(-logits, axis=-1, stable=True)[:, :count]
    values = xp.take_along_axis(table, ids, axis=-1)
    rows = zip(chosen, ids.tolist(), values.tolist(), strict=True)
    return [(value, list(zip(*best, strict=True))) for value, *best in rows]


def _ranked(row: NDArray, target: int, count: int) -> Ranked:
    """`log_probabilities` of one row. (V,)"""
    ids = largest_ids(row, max(count, 1))
    total = np.log(_total(weigh(row[None]))[0, 0] / WHOLE).astype(row.dtype)
    own, *values = (row[[target, *ids]] - row[ids[0]] - total).tolist()
    return own, list(zip(ids, values, strict=True))[:count]


def ranks(logits: Array, targets: Sequence[int]) -> list[int]:
    """The place of each row's target among all tokens, 1 for the best, on the host. (N, V), (N,)

    Among equals the lower ids come first.
    """
    if isinstance(logits, np.ndarray):  # a row at a time, as `log_probabilities` does it
        return [_rank(*each) for each in zip(logits, targets, strict=True)]
    xp, own = array_namespace(logits), to_device_of(logits, np.array(targets, np.int64)[:, None])
    values = xp.take_along_axis(logits, own, axis=-1)
    ids = xp.arange(logits.shape[1], device=device(logits))[None]
    before = (logits > values) | ((logits == values) & (ids < own))
    found: list[int] = (xp.sum(before, axis=-1, dtype=xp.int64) + 1).tolist()
    return found


def _rank(row: NDArray, target: int) -> int:
    """`ranks` of one row. (V,)"""
    value = row[target]
    equal = np.count_nonzero(row[:target] == value)
    return int(1 + np.count_nonzero(row > value) + equal)


def largest_ids(row: NDArray, count: int) -> list[int]:
    """Where its largest numbers are, the largest first; among equals the lower ids. (V,)"""
    if count == 1:
        return [int(row.argmax())]
    # The best of some groups are a bound for the best of all, in a fifth of a partition's time.
    groups = len(row) // _GROUP
    if groups >= count:
        best = row[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
        ids = np.flatnonzero(row >= np.partition(best, -count)[-count])
    else:
        ids = np.arange(len(row))
    return [int(i) for i in ids[np.argsort(-row[ids], kind="stable")[:count]]]


def greedy(logits: Array) -> Array:
    """The most probable token of each row. (B, V) → (B,)"""
    return array_namespace(logits).argmax(logits, axis=-1)


def scale_by_temperature(logits: Array, temperature: float) -> Array:
    """Logits / temperature: below 1 sharpens the distribution, above 1 flattens it."""
    xp = array_namespace(logits)
    return (logits - xp.max(logits, axis=-1, keepdims=True)) / temperature


def keep_top_k(logits: Array, k: int) -> Array:
    """Keep the k most probable tokens. Fan et al. 2018, arXiv:1805.04833."""
    xp = array_namespace(logits)
    count = xp.full((logits.shape[0], 1), min(k, logits.shape[1]), device=device(logits))
    return _only(logits, _largest(logits, _descending(logits), count))


def keep_top_p(logits: Array, p: float) -> Array:
    """Keep the smallest set of most probable tokens whose mass reaches p ("nucleus").

    The token that crosses p is kept, as in Holtzman et al. 2019 (arXiv:1904.09751) and
    transformers; OpenAI's script for GPT-2 drops it.
    """
    if p == 1:
        return logits
    xp = array_namespace(logits)
    weights = weigh(logits)
    ordered = _descending(weights)
    mass = _cumulative_sum(ordered)
    # A token stays as long as those before it have not reached p.
    wanted = xp.astype(mass[:, :-1] < p * mass[:, -1:], xp.int64)
    count = xp.sum(wanted, axis=-1, keepdims=True) + 1
    return _only(logits, _largest(weights, ordered, count))


def keep_min_p(logits: Array, p: float) -> Array:
    """Keep tokens at least p times as probable as the best.

    Nguyen et al. 2024, arXiv:2407.01082.
    """
    if p == 0:
        return logits
    xp = array_namespace(logits)
    best = xp.max(logits, axis=-1, keepdims=True)
    return _only(logits, logits >= best + float(np.log(p)))


def keep_typical(logits: Array, p: float) -> Array:
    """Keep the tokens whose surprise is nearest to the entropy, until their mass reaches p.

    Meister et al. 2022, arXiv:2202.00666. Ties with the last one stay.
    """
    if p == 1:
        return logits
    xp = array_namespace(logits)
    weights, surprise = weigh(logits), xp.max(logits, axis=-1, keepdims=True) - logits
    # Of the best token; whole numbers again, because their sum must not depend on its order.
    excess = xp.round(weights * xp.where(weights > 0, surprise, 0.0))
    mean = xp.astype(_total(excess) / _total(weights), logits.dtype)
    distance = xp.abs(surprise - mean)
    order = xp.argsort(distance, axis=-1, stable=False)
    mass = _cumulative_sum(xp.take_along_axis(weights, order, axis=-1))
    reached = xp.sum(xp.astype(mass < p * mass[:, -1:], xp.int64), axis=-1, keepdims=True)
    last = xp.take_along_axis(order, xp.clip(reached, 0, logits.shape[1] - 1), axis=-1)
    return _only(logits, distance <= xp.take_along_axis(distance, last, axis=-1))


def exclude_top_choices(
    logits: Array, threshold: float, probability: float, uniforms: Array
) -> Array:
    """With `probability`, remove all tokens as probable as `threshold` but the least of them.

    "XTC", by p-e-w: github.com/oobabooga/text-generation-webui/pull/6335. `uniforms` (B,) in
    [0, 1) decide for each row; where fewer than two tokens reach the threshold none goes.
    """
    xp = array_namespace(logits)
    weights = weigh(logits)
    above = weights >= threshold * _total(weights)
    least = xp.min(xp.where(above, weights, xp.inf), axis=-1, keepdims=True)
    # Among equals the highest id counts as the least probable, as everywhere in this module.
    ids = xp.arange(logits.shape[1], device=device(logits))
    survivor = xp.max(xp.where(weights == least, ids, -1), axis=-1, keepdims=True)
    drawn = uniforms[:, None] < probability
    return _only(logits, ~(above & (ids != survivor) & drawn))


def keep_surprise(logits: Array, limit: Array) -> Array:
    """Keep the tokens with at most `limit` (B,) bits of surprise, and the best in any case.

    The first half of a step of mirostat 2: Basu et al. 2021, arXiv:2007.14966, algorithm 2.
    """
    xp = array_namespace(logits)
    bits = -log_softmax(logits) / float(np.log(2))
    least = xp.min(bits, axis=-1, keepdims=True)
    return _only(logits, bits <= xp.maximum(limit[:, None], least))


def next_limit(logits: Array, ids: Array, limit: Array, tau: float, eta: float) -> Array:
    """The limit for `keep_surprise` after `ids` (B,) were drawn. → (B,)

    The second half: what surprised more than `tau` bits lowers the limit, by `eta` per bit.
    `logits` are those before `keep_surprise`, as in the authors' program
    (github.com/basusourya/mirostat).
    """
    xp = array_namespace(logits)
    chosen = xp.take_along_axis(log_softmax(logits), ids[:, None], axis=-1)[:, 0]
    return limit - eta * (-chosen / float(np.log(2)) - tau)


def draw(logits: Array, uniforms: Array) -> Array:
    """Draw from softmax(logits) by inverting its cumulative sum. (B, V), (B,) → (B,)

    `uniforms` are in [0, 1): the randomness comes from outside, so it can be seeded once
    for all backends. A row without any token gives V, no token's id.
    """
    xp = array_namespace(logits)
    cumulative = _cumulative_sum(weigh(logits))
    total = cumulative[:, -1:]
    # Rounded, a uniform number next to 1 would give all of the total, and no token.
    target = xp.minimum(xp.asarray(uniforms, device=device(logits))[:, None] * total, total - 1)
    # NaN, which a row without tokens is, compares as False.
    return xp.sum(xp.astype(~(cumulative > target), xp.int64), axis=-1)


def draw_or_keep(logits: Array, proposed: Array, draft: Array, uniforms: Array) -> Array:
    """Draw from softmax(logits), and keep `proposed` as often as that allows.

    If `proposed` (B,) was drawn from softmax(draft), the result is distributed as that of
    `draw`: a token with p < q is rejected with probability 1 − p / q, and drawn again from the
    excess of p over q. Leviathan et al. 2022, arXiv:2211.17192, algorithm 1. A row without any
    token gives V.
    """
    xp = array_namespace(logits)
    p, q = _softmax(logits), _softmax(draft)
    at = proposed[:, None]
    chance = (xp.take_along_axis(p, at, axis=-1) / xp.take_along_axis(q, at, axis=-1))[:, 0]
    # Given that it is not below `chance`, this is uniform too.
    left = xp.clip((uniforms - chance) / (1 - chance), 0, 1 - 2**-24)
    drawn = draw(xp.log(xp.clip(p - q, 0, None)), left)
    # Where rounding left nothing to draw from, both distributions are the same.
    kept = (uniforms < chance) | ((drawn == logits.shape[1]) & (chance > 0))
    return xp.where(kept, proposed, drawn)


def generator(seed: int, sample: int) -> np.random.Generator:
    """The random generator of one sample, derived from (seed, sample) alone.

    A sample is therefore the same whatever the number of samples.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(sample,)))


def uniforms(random: np.random.Generator, count: int) -> Iterator[list[float]]:
    """`count` random numbers in [0, 1) for one token after another."""
    while True:  # for 64 tokens at a time: a call takes longer than a number
        yield from random.random((64, count)).tolist()


def _softmax(logits: Array) -> Array:
    weights = weigh(logits)
    return weights / _total(weights)


def _total(weights: Array) -> Array:
    """(B, V) → (B, 1), in float64"""
    xp = array_namespace(weights)
    return xp.sum(weights, axis=-1, keepdims=True, dtype=xp.float64)


def _cumulative_sum(weights: Array) -> Array:
    # Converted first: NumPy takes twice as long to do both at once.
    xp = array_namespace(weights)
    return xp.cumulative_sum(xp.astype(weights, xp.float64), axis=-1)


def _descending(logits: Array) -> Array:
    # Values alone need no stable sort, which takes NumPy thirty times as long.
    xp = array_namespace(logits)
    return -xp.sort(-logits, axis=-1, stable=False)


def _only(logits: Array, keep: Array) -> Array:
    xp = array_namespace(logits)
    return xp.where(keep, logits, -xp.inf)


def _largest(values: Array, ordered: Array, count: Array) -> Array:
    """Where the `count` (B, 1) largest values of each row are; among equals, those of lower ids.

    Sorting values and comparing is several times faster than sorting indices.
    """
    xp = array_namespace(values)
    smallest = xp.take_along_axis(ordered, count - 1, axis=-1)
    if is_numpy_array(values):
        keep = values >= smallest
        if (np.count_nonzero(keep, axis=-1)[:, None] == count).all():
            return keep  # the usual case: nothing to settle
    above, equal = values > smallest, values == smallest
    room = count - xp.sum(xp.astype(above, xp.int64), axis=-1, keepdims=True)
    place = xp.cumulative_sum(xp.astype(equal, xp.int64), axis=-1)
    return above | (equal & (place <= room))
