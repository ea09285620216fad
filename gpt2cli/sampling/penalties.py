"""What the text so far does to the next token: penalties and bans, one pure function per rule.

All but one rule touch only a few tokens, so they are computed from a row's ids on the host,
as {token id: amount to add to its logit}; `add` applies them to the logits (B, V).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from array_api_compat import device

from gpt2cli.arrays import Array, array_namespace

Changes = Mapping[int, float]
LONGEST_MATCH = 50  # where `dry` stops counting, as in the program that introduced it


def penalise_repetition(logits: Array, seen: Array, penalty: float) -> Array:
    """Divide the positive logits of tokens in `seen` (B, V) by `penalty`; multiply negative ones.

    Keskar et al. 2019 (CTRL), arXiv:1909.05858, section 4.1, with the sign handled as in
    transformers. 1 changes nothing.
    """
    xp = array_namespace(logits)
    penalised = xp.where(logits > 0, logits / penalty, logits * penalty)
    return xp.where(seen, penalised, logits)


def mark_seen(logits: Array, ids: Sequence[Sequence[int]]) -> Array:
    """A (B, V) mask of the tokens in each row's `ids`."""
    xp = array_namespace(logits)
    mask = np.zeros(logits.shape, dtype=bool)
    for row, row_ids in enumerate(ids):
        mask[row, row_ids] = True
    return xp.asarray(mask, device=device(logits))


def mark_chosen(seen: Array, chosen: Array) -> Array:
    """Add one new token per row, without leaving the device. (B, V), (B,) → (B, V)"""
    xp = array_namespace(seen)
    return seen | (xp.arange(seen.shape[1], device=device(seen)) == chosen[:, None])


def add(logits: Array, changes: Sequence[Changes]) -> Array:
    """Add to each row's logits its changes; −∞ bans a token."""
    if not any(changes):
        return logits
    xp = array_namespace(logits)
    amounts = np.zeros(logits.shape, dtype=np.float32)
    for row, row_changes in enumerate(changes):
        amounts[row, list(row_changes)] = list(row_changes.values())
    return logits + xp.asarray(amounts, device=device(logits))


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


def _power(base: float, exponent: int) -> float:
    try:
        return base**exponent
    except OverflowError:
        return math.inf
