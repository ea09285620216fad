"""Which heads do what: induction, previous-token and first-token heads, by where they look.

A text of random tokens that repeats itself means nothing, so that what a head looks at in it is a
matter of places alone. The scores are means of attention weights, from 0 to 1:

    induction  from a token to those that followed the same token before: "prefix matching" of
               Olsson et al. 2022, "In-context Learning and Induction Heads" (arXiv:2209.11895)
    previous   from a token to the one before it, which induction needs a layer below (there, and
               in Elhage et al. 2021, transformer-circuits.pub/2021/framework)
    first      from a token to the first of all, where heads rest that find nothing: Xiao et al.
               2023, "attention sinks" (arXiv:2309.17453)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt2cli.analysis.plain import plain
from gpt2cli.arrays import NDArray
from gpt2cli.errors import UsageError
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.model.trace import trace
from gpt2cli.progress import Advance
from gpt2cli.text.tokenizer import Tokenizer

KINDS = ("induction", "previous", "first")
# Of the texts, as Olsson et al. have them.
DIFFERENT = 25  # tokens
COPIES = 4


@dataclass(frozen=True, slots=True)
class HeadScores:
    """The scores of all heads, (L, H) each, over `texts` texts of `tokens` tokens."""

    induction: NDArray
    previous: NDArray
    first: NDArray
    texts: int
    tokens: int

    def of_kind(self, kind: str, least: float) -> dict[str, float]:
        """Scores of the heads that reach `least`, by name as layer.head, the highest first."""
        scores = getattr(self, kind)
        found = {f"{i}.{j}": float(scores[i, j]) for i, j in np.argwhere(scores >= least)}
        return dict(sorted(found.items(), key=lambda head: -head[1]))

    def named(self, least: float) -> dict[str, dict[str, float]]:
        """The same of all kinds, as JSON can hold it, numbers to six digits."""
        found: dict[str, Any] = plain({kind: self.of_kind(kind, least) for kind in KINDS})
        return found

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold, numbers to six digits."""
        found: dict[str, Any] = plain(self)
        return found


def score_heads(
    model: GPT2,
    tokenizer: Tokenizer,
    *,
    seed: int = 0,
    texts: int = 8,
    advance: Advance = lambda _: None,
) -> HeadScores:
    """Read `texts` texts of 4 times the same 25 random tokens, after end-of-text, and score heads.

    A context of fewer than 101 tokens takes fewer different ones. `advance` is called after each
    text. Raises `UsageError` for a context of fewer than 9.
    """
    n = min(DIFFERENT, (model.config.context_length - 1) // COPIES)
    if n < 2:
        raise UsageError(f"a context of {model.config.context_length} is too short to score heads")
    sums = np.zeros((len(KINDS), model.config.n_layers, model.config.n_heads))
    begin = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    for ids in random_texts(tokenizer, seed, texts, n):
        text = begin + ids * COPIES
        attention = trace(model, text, len(text)).attention.float().cpu().numpy()
        sums += scores(attention, n, len(begin))
        advance(1)
    induction, previous, first = sums / texts
    return HeadScores(induction, previous, first, texts, len(begin) + n * COPIES)


def random_texts(tokenizer: Tokenizer, seed: int, texts: int, n: int) -> Iterator[list[int]]:
    """So many times n different tokens, end-of-text never among them."""
    tokens = [
        i for i, data in enumerate(tokenizer.token_bytes()) if data and i != tokenizer.end_of_text
    ]
    generator = np.random.default_rng(seed)
    for _ in range(texts):
        yield generator.choice(tokens, min(n, len(tokens)), replace=False).tolist()


def scores(attention: NDArray, n: int, begin: int) -> NDArray:
    """Scores of the heads that attend like that to copies of n tokens, after `begin` others.

    (L, H, T, T) → (3, L, H), in the order of `KINDS`
    """
    T = attention.shape[-1]
    query, key = np.arange(T)[:, None], np.arange(T)
    # What followed the same token in each copy before: n − 1, 2n − 1, … tokens back.
    follows = ((query - key + 1) % n == 0) & (key > begin) & (key < query)
    repeated = np.arange(T) >= begin + n
    previous, later = attention.diagonal(-1, 2, 3), attention[..., 1:, 0]
    induction = (attention * follows).sum(-1)[..., repeated].mean(-1)
    return np.stack([induction, previous.mean(-1), later.mean(-1)])
