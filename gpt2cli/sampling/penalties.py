"""What the text so far does to the next token: penalties and bans, one pure function per rule.

All but one rule touch only a few tokens, so they are computed from a row's ids on the host,
as {token id: amount to add to its logit}; `add` applies them to the logits (B, V).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from gpt2cli.arrays import Array, array_namespace, to_device_of

Changes = Mapping[int, float]
LONGEST_MATCH = 50  # where `dry` stops counting, as in the program that introduced it


def penalise_repetition(logits: Array, ids: Sequence[Sequence[int]], penalty: float) -> Array:
    """Divide the positive logits of the tokens in each row's `ids` by `penalty`.

    Negative ones are multiplied. Keskar et al. 2019 (CTRL), arXiv:1909.05858, section 4.1, with
    the sign handled as in transformers. 1 changes nothing.
    """
    xp, places = array_namespace(logits), _places(logits, ids)
    seen = logits[places]
    return _replace(logits, places, xp.where(seen > 0, seen / penalty, seen * penalty))


def add(logits: Array, changes: Sequence[Changes]) -> Array:
    """Add to each row's logits its changes; −∞ bans a token."""
    if not any(changes):
        return logits
    places = _places(logits, changes)
    amounts = np.array([amount for row in changes for amount in row.values()])
    xp = array_namespace(logits)
    amounts = xp.astype(to_device_of(logits, amounts), logits.dtype)
    return _replace(logits, places, logits[places] + amounts)


def count_penalties(generated: Sequence[int], frequency: float, presence: float) -> Changes:
    """−(n · frequency + presence) for a token generated n times; the prompt does not count.

    OpenAI's API: platform.openai.com/docs/api-reference, frequency_penalty and
    presence_penalty. Negative penalties reward.
    """
    return {i: -(n * frequency + presence) for i, n in Counter(generated).items()}


def ngram_bans(ids: Sequence[int], n: int) -> Changes:
    """Ban every token that would complete an n-gram that is already there.

    Paulus et al. 2017, arXiv:1705.04304, section 2.5; over prompt and text, as transformers.
    """
    if len(ids) < n:
        return {}
    text: np.ndarray[Any, Any] = np.array(ids)
    windows = np.lib.stride_tricks.sliding_window_view(text, n)
    same = (windows[:, :-1] == text[len(ids) + 1 - n :]).all(axis=1)
    return dict.fromkeys(windows[same, -1].tolist(), -math.inf)


def dry_penalties(
    ids: Sequence[int],
    multiplier: float,
    base: float,
    allowed_length: int,
    breakers: Collection[int] = (),
) -> Changes:
    """Penalise a token the more, the longer the sequence is that it would repeat.

    "DRY", by p-e-w: github.com/oobabooga/text-generation-webui/pull/5677. If the last n
    tokens, n ≥ `allowed_length`, preceded some token earlier, that token loses
    multiplier · base^(n − allowed_length). No match reaches across a token of `breakers`,
    and those are never penalised.
    """
    text: np.ndarray[Any, Any] = np.array(ids)
    longest: dict[int, int] = {}
    ends: np.ndarray[Any, Any] = np.arange(len(ids) - 1)  # where a match may end
    for n in range(LONGEST_MATCH):
        ends = ends[ends >= n]
        if not ends.size or ids[-1 - n] in breakers:
            break
        ends = ends[text[ends - n] == ids[-1 - n]]
        longest |= dict.fromkeys(text[ends + 1].tolist(), n + 1)
    return {
        # Bounded, so that float32 can tell it from a ban.
        token: -min(multiplier * _power(base, n - allowed_length), 1e30)
        for token, n in longest.items()
        if n >= allowed_length and token not in breakers
    }


def _places(logits: Array, ids: Sequence[Collection[int]]) -> tuple[Array, Array]:
    """The index of the tokens `ids` of each row: their rows and columns. (N,), (N,)"""
    rows = np.repeat(np.arange(len(ids)), [len(row) for row in ids])
    columns = np.fromiter(chain.from_iterable(ids), np.int64, len(rows))
    return to_device_of(logits, rows), to_device_of(logits, columns)


def _replace(logits: Array, places: tuple[Array, Array], values: Array) -> Array:
    changed = array_namespace(logits).asarray(logits, copy=True)
    # Not of the standard, but NumPy and torch agree on it.
    changed[places] = values
    return changed


def _power(base: float, exponent: int) -> float:
    try:
        return base**exponent
    except OverflowError:
        return math.inf
