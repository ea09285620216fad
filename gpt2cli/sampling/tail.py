"""The logits of a whole vocabulary in little: the best by themselves, all others in groups.

Whoever has these can apply every rule of `sampler` without the model: a rule of temperature 0.7
needs the mass of all tokens, and one token more or less among fifty thousand changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt2cli.arrays import NDArray

_GROWTH = 0.02  # a group's share of the ranks before it: its logits are within some hundredths
_LEAST = 8  # tokens of a group


def tail(logits: NDArray, listed: Sequence[int]) -> dict[str, list[float]]:
    """Groups of neighbours in rank, of all tokens but those `listed`. (V,)

    Of each group: `counts`, how many tokens it has; `means`, the mean of their logits; `masses`,
    the logarithm of the sum of their exponentials; `tops`, the best of their logits. The best
    group comes first; there is none where all tokens are listed.
    """
    others = np.ones(len(logits), bool)
    others[list(listed)] = False
    values = -np.sort(-logits[others].astype(np.float64))
    values = values[values > -np.inf]
    starts = _starts(len(listed), len(values))
    if not starts:
        return {"counts": [], "means": [], "masses": [], "tops": []}
    counts, tops = np.diff([*starts, len(values)]), values[starts]
    sums = np.add.reduceat(np.exp(values - np.repeat(tops, counts)), starts)
    found: dict[str, NDArray] = {
        "counts": counts,
        "means": np.add.reduceat(values, starts) / counts,
        "masses": tops + np.log(sums),
        "tops": tops,
    }
    return {name: _numbers(each) for name, each in found.items()}


def _starts(rank: int, count: int) -> list[int]:
    """Where groups of `count` tokens begin, which come after `rank` better ones."""
    starts, start = list[int](), 0
    while start < count:
        starts.append(start)
        start += max(_LEAST, round((rank + start) * _GROWTH))
    return starts


def _numbers(values: NDArray) -> list[Any]:
    return list(values.tolist())
